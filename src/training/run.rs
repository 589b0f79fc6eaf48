//! A job as the code that trains sees it: what to learn from, where to go on, and whom to tell.

use std::{path::Path, sync::Arc};

use pleach_store::{
    BlobError, EventLevel, GenerationDigest, JobError, JobEvent, JobReport, JobSignal,
    NewCheckpoint, NewLineage, Origin, StagedBlob, StoreError, StoredJob,
};
use pleach_trainer::recipe::Parent;
use serde_json::json;
use tokio::runtime::Handle;

use super::{
    BlobSource,
    parent::{find_parent, read_parent},
    spec::JobSpec,
};
use crate::{
    adapter_service::{ServiceError, SpoolFolder, Target},
    http::state::AppState,
};

/// Largest state that is read: moments of an adapter of rank 256 of a large model.
const STATE_BYTES_MAX: u64 = 16 << 30;

/// Code for which [`JobError`]s are made here.
pub(super) const INVALID_TRAINING_FILE: &str = "invalid_training_file";

/// A job that this process runs. Its calls block, and are for a thread that may.
#[derive(Debug)]
pub struct Run {
    /// The job, as it was when it was claimed.
    pub job: StoredJob,
    /// What it was asked to do.
    pub spec: JobSpec,
    /// The name that its model is going to have.
    pub model_name: String,
    state: Arc<AppState>,
    runner: Arc<str>,
    runtime: Handle,
}

/// What became of a training.
#[derive(Debug)]
pub struct Trained {
    /// The adapter, in PEFT's format.
    pub folder: SpoolFolder,
    /// Tokens that were learned from.
    pub trained_tokens: u64,
    /// Losses by step.
    pub csv: String,
    /// SHA-256 of all rows, 64 hex digits.
    pub data_sha256: String,
}

/// Why a training ends without a model.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot succeed.
    #[error("{}", .0.message)]
    Job(JobError),
    /// Somebody paused or cancelled it, another process has it, or this one stops. What is to be gone on from was told.
    #[error("interrupted")]
    Interrupted,
    /// The store failed: somebody else may be luckier, later.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The adapter could not be registered.
    #[error(transparent)]
    Adapter(Box<ServiceError>),
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl From<ServiceError> for RunError {
    fn from(error: ServiceError) -> Self {
        Self::Adapter(Box::new(error))
    }
}

impl RunError {
    /// A fault of the request or its files.
    pub fn job(code: &str, message: impl Into<String>, param: Option<&str>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self::Job(JobError { code, message, param: param.map(str::to_owned) })
    }

    /// A fault of the training rows.
    pub fn training_file(message: impl Into<String>) -> Self {
        Self::job(INVALID_TRAINING_FILE, message, Some("training_file"))
    }

    /// A fault of the server.
    pub fn server(message: impl std::fmt::Display) -> Self {
        Self::job("server_error", message.to_string(), None)
    }
}

impl Run {
    /// A job that `runner` has claimed.
    pub(super) fn new(
        state: Arc<AppState>,
        runner: Arc<str>,
        job: StoredJob,
        spec: JobSpec,
        model_name: String,
    ) -> Self {
        Self { job, spec, model_name, state, runner, runtime: Handle::current() }
    }

    /// What it goes on from: a generation, or nothing learned in the shape of one.
    ///
    /// # Errors
    /// When that cannot be had any more.
    pub fn parent(&self) -> Result<Option<Parent>, RunError> {
        let Some(digest) = self.spec.parent.or(self.spec.shape_of) else { return Ok(None) };
        self.runtime.block_on(self.refresh_parent())?;
        let (registry, spec) = (self.state.adapters.registry(), self.state.engine.spec());
        let found = find_parent(registry, &self.job.owner, digest);
        let read = found.and_then(|generation| read_parent(&generation, spec));
        let begun = read.and_then(|read| match self.spec.parent {
            Some(_) => Ok(read),
            None => Ok(read.anew(spec, self.spec.seed)?),
        });
        begun.map(Some).map_err(|error| {
            let message = format!("{:?} cannot be trained on: {error}", self.job.model);
            RunError::job("invalid_model", message, Some("model"))
        })
    }

    /// Learns of the name that has the parent, which another process may have made.
    async fn refresh_parent(&self) -> Result<(), RunError> {
        let owner = self.job.owner.clone();
        let name = match &self.spec.round {
            Some(round) => self.state.store.round(&owner, round).await?.name,
            None => self.job.model.clone(),
        };
        let who = format!("job {}", self.job.id);
        Ok(self.state.adapters.refresh(Target { owner, name, who }).await?)
    }

    /// The server.
    pub fn server(&self) -> &AppState {
        &self.state
    }

    /// Whether this process is about to end.
    pub fn is_stopping(&self) -> bool {
        !self.state.is_serving()
    }

    /// Opens a file of the owner's.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn source(&self, file: &str, param: &'static str) -> Result<BlobSource, RunError> {
        let opened = self.runtime.block_on(async {
            let file = self.state.store.file(&self.job.owner, file).await?;
            self.state.store.blob_reader(&file.blob).await
        });
        match opened {
            Ok(reader) => Ok(BlobSource::new(reader, self.runtime.clone())),
            Err(
                error @ (StoreError::NotFound { .. } | StoreError::Blob(BlobError::Missing { .. })),
            ) => {
                tracing::warn!(job = self.job.id, %error, "a file of a job is gone");
                Err(RunError::job(&format!("invalid_{param}"), "the file is gone", Some(param)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what an earlier process told of its state to `path`; whether there was any.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn restore(&self, path: &Path) -> Result<bool, RunError> {
        let Some(state) = &self.job.state else { return Ok(false) };
        let bytes = self.runtime.block_on(self.state.store.read_blob(state, STATE_BYTES_MAX))?;
        std::fs::write(path, bytes).map_err(RunError::server)?;
        Ok(true)
    }

    /// Tells of progress; what to do next.
    ///
    /// # Errors
    /// When the store fails.
    pub fn report(&self, report: &JobReport) -> Result<JobSignal, RunError> {
        let told = self.state.store.report_job(&self.job, &self.runner, report);
        Ok(self.runtime.block_on(told)?)
    }

    /// Says that it lives; what to do next.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn heard(&self) -> Result<JobSignal, RunError> {
        let told = JobReport::default();
        Ok(self.state.store.report_job(&self.job, &self.runner, &told).await?)
    }

    /// Waits for something of the server's.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Makes a file a blob that a report can name.
    ///
    /// # Errors
    /// When it cannot be read, or the store fails.
    pub fn put_file(&self, path: &Path) -> Result<StagedBlob, RunError> {
        let put = async {
            let file = tokio::fs::File::open(path).await.map_err(RunError::server)?;
            let name = path.display().to_string();
            Ok(self.state.store.put_blob_from(&name, file, STATE_BYTES_MAX).await?)
        };
        self.runtime.block_on(put)
    }

    /// A new folder, gone when it is dropped.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn folder(&self) -> Result<SpoolFolder, RunError> {
        Ok(self.state.adapters.new_folder()?)
    }

    /// Serves a model on the way, and tells of it; or tells why it cannot be served. What to do next, and what is served.
    ///
    /// # Errors
    /// When the store fails.
    pub fn checkpoint(
        &self,
        folder: SpoolFolder,
        data_sha256: &str,
        checkpoint: NewCheckpoint,
        mut report: JobReport,
    ) -> Result<(JobSignal, Option<GenerationDigest>), RunError> {
        if self.spec.round.is_some() {
            // Nothing of a round serves before it is judged.
            return Ok((self.report(&report)?, None));
        }
        let served =
            match self.runtime.block_on(self.register(folder, &checkpoint.model, data_sha256)) {
                Ok(generation) => {
                    report.checkpoint = Some(checkpoint);
                    Some(generation)
                }
                // The training is worth more than a stop on its way.
                Err(error) => {
                    let message =
                        format!("The checkpoint {} is not served: {error}", checkpoint.model);
                    report
                        .events
                        .push(JobEvent { level: EventLevel::Warn, ..JobEvent::info(message) });
                    None
                }
            };
        Ok((self.report(&report)?, served))
    }

    /// Makes files an adapter of the job's owner; its generation.
    pub(super) async fn register(
        &self,
        folder: SpoolFolder,
        name: &str,
        data_sha256: &str,
    ) -> Result<GenerationDigest, RunError> {
        let target = Target {
            owner: self.job.owner.clone(),
            name: name.to_owned(),
            who: format!("job {}", self.job.id),
        };
        let origin = Origin::Training {
            job: self.job.id.clone(),
            data_sha256: data_sha256.to_owned(),
            parent: self.spec.parent,
        };
        let moved = self.state.adapters.register_trained(target, folder, origin).await?;
        let generation = GenerationDigest(moved.alias.generation.digest.0);
        // Before anybody is told of it: whoever is interrupted here does it again. Of a round's jobs, the round knows more.
        if self.spec.round.is_none() {
            let lineage = self.lineage(generation, data_sha256);
            self.state.store.put_lineage(&self.job.owner, &lineage).await?;
        }
        Ok(generation)
    }

    /// What a generation of this job came from.
    fn lineage(&self, generation: GenerationDigest, data_sha256: &str) -> NewLineage {
        let JobSpec { method, hyperparameters, seed, grader, precision, .. } = &self.spec;
        let mut recipe = json!({
            "method": method,
            "hyperparameters": hyperparameters,
            "precision": precision.name(),
        });
        if let Some(grader) = grader {
            recipe["grader"] = grader.clone();
        }
        NewLineage {
            generation,
            base_sha256: self.state.adapters.base_digest().to_owned(),
            parent: self.spec.parent,
            round: None,
            job: Some(self.job.id.clone()),
            data_sha256: Some(data_sha256.to_owned()),
            recipe,
            seed: *seed,
        }
    }
}
