//! The jobs of this process: one at a time, from the store, until the server stops.
//!
//! ```text
//! claim ──> Trainer::train on a thread that may block ──> the adapter under its name ──> finish
//!                 │ paused, cancelled, or this process stops
//!                 └──> let go: whoever claims it next goes on from the state that was told
//! ```

use std::{fmt, sync::Arc, time::Duration};

use pleach_engine::train::ProductPrecision;
use pleach_store::{BlobError, JobEnd, JobReport, NewFile, StoreError, StoredJob};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use super::{
    run::{Run, RunError, Trained},
    spec::JobSpec,
};
use crate::{
    adapter_service::ServiceError,
    http::{ids, state::AppState, wire::files::RESULTS},
};

/// A process that was not heard of for so long has died. A training tells of itself at least every few seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// How often jobs are looked for that other processes took, or left.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a job rests that failed for the store's sake.
const REST: Duration = Duration::from_secs(5);

/// Trains adapters.
pub trait Trainer: fmt::Debug + Send + Sync + 'static {
    /// Trains one, from the beginning or from what was told before. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`RunError`].
    fn train(&self, run: &Run) -> Result<Trained, RunError>;
}

/// Whether this process trains, and how it is woken.
#[derive(Debug, Default)]
pub struct Training {
    trainer: Option<Arc<dyn Trainer>>,
    precision: ProductPrecision,
    wake: Notify,
}

impl Training {
    /// With a trainer, or without: then jobs are refused. `precision` is that of jobs to come.
    pub fn new(trainer: Option<Arc<dyn Trainer>>, precision: ProductPrecision) -> Self {
        Self { trainer, precision, wake: Notify::new() }
    }

    /// Precision of jobs that are made here.
    pub fn precision(&self) -> ProductPrecision {
        self.precision
    }

    /// Whether jobs are taken.
    pub fn is_on(&self) -> bool {
        self.trainer.is_some()
    }

    /// There is something to do, or to stop.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

/// Begins to run jobs, if this process trains. Ends when the server stops.
pub fn run_jobs(state: &Arc<AppState>) -> Option<JoinHandle<()>> {
    let trainer = state.training.trainer.clone()?;
    Some(tokio::spawn(run_all(Arc::clone(state), trainer)))
}

async fn run_all(state: Arc<AppState>, trainer: Arc<dyn Trainer>) {
    let runner: Arc<str> = ids::random("run-").into();
    while state.is_serving() {
        match state.store.claim_job(&runner, SILENCE).await {
            Ok(Some(job)) => run_one(&state, &trainer, &runner, job).await,
            Ok(None) => {
                // Woken or not: it is time to look again.
                let _ = timeout(LOOK_EVERY, state.training.wake.notified()).await;
            }
            Err(error) => {
                tracing::warn!(%error, "training jobs cannot be looked for");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn run_one(
    state: &Arc<AppState>,
    trainer: &Arc<dyn Trainer>,
    runner: &Arc<str>,
    job: StoredJob,
) {
    let id = job.id.clone();
    tracing::info!(job = id, owner = %job.owner, is_resumed = job.state.is_some(), "training begins");
    let outcome = train(state, trainer, runner, &job).await.map_err(lasting);
    state.telemetry.set_training_itl_budget(None);
    let result = match &outcome {
        Ok(_) => "succeeded",
        Err(RunError::Job(_)) => "failed",
        Err(_) => "interrupted",
    };
    state.telemetry.count_training(result);
    let settled = match outcome {
        Ok(end) => state.store.finish_job(&job, runner, &end).await.map(drop),
        Err(RunError::Job(error)) => {
            tracing::warn!(job = id, code = error.code, message = error.message, "training failed");
            state.store.finish_job(&job, runner, &JobEnd::Failed(error)).await.map(drop)
        }
        Err(RunError::Interrupted) => state.store.release_job(&job, runner).await,
        Err(error @ (RunError::Store(_) | RunError::Adapter(_))) => {
            tracing::warn!(job = id, %error, "training is interrupted");
            tokio::time::sleep(REST).await;
            state.store.release_job(&job, runner).await
        }
    };
    match settled {
        Ok(()) => {
            tracing::info!(job = id, "training ends");
            // Its round goes on.
            state.learning.wake.all();
        }
        // It is claimed again when its time is over.
        Err(error) => tracing::warn!(job = id, %error, "the end of a training is not stored"),
    }
}

/// Trains, and serves what came of it.
async fn train(
    state: &Arc<AppState>,
    trainer: &Arc<dyn Trainer>,
    runner: &Arc<str>,
    job: &StoredJob,
) -> Result<JobEnd, RunError> {
    let spec: JobSpec = serde_json::from_str(&job.spec).map_err(RunError::server)?;
    let base = state.adapters.registry().base_names().first().cloned().unwrap_or_default();
    let name = spec.name_of(&base, job.owner.as_str(), &job.id);
    let run = Run::new(Arc::clone(state), Arc::clone(runner), job.clone(), spec, name.clone());
    let run = Arc::new(run);
    let (trainer, of_thread) = (Arc::clone(trainer), Arc::clone(&run));
    let mut training = tokio::task::spawn_blocking(move || trainer.train(&of_thread));
    let outcome = loop {
        match timeout(LOOK_EVERY, &mut training).await {
            Ok(outcome) => break outcome,
            // Reading files takes its time, too. What to do next is told to the trainer, when it asks.
            Err(_) => drop(state.store.report_job(job, runner, &JobReport::default()).await),
        }
    };
    let outcome = outcome.map_err(|_| RunError::server("the training panicked"))?;
    let Trained { folder, trained_tokens, csv, data_sha256 } = outcome?;
    if let Err(error) = run.register(folder, &name, &data_sha256).await {
        return Err(refused(error));
    }
    let blob = state.store.put_blob(csv).await?;
    let results = NewFile {
        owner: job.owner.clone(),
        filename: format!("{}-results.csv", job.id),
        purpose: RESULTS.to_owned(),
        blob,
        keep_ms: None,
    };
    Ok(JobEnd::Succeeded { fine_tuned_model: name, trained_tokens, results })
}

/// What a store does not have or take once it never will; one that fails may do so later.
fn lasting(error: RunError) -> RunError {
    let RunError::Store(error) = error else { return error };
    if error.may_pass() {
        return RunError::Store(error);
    }
    if matches!(&*error, StoreError::Blob(BlobError::TooLarge { .. })) {
        return RunError::server(error);
    }
    // Its words may tell of the server's surroundings.
    tracing::error!(%error, "a training cannot go on");
    RunError::server("the store does not have or take what the training needs")
}

/// What a server refuses once it refuses again; a store that fails may not.
fn refused(error: RunError) -> RunError {
    let RunError::Adapter(error) = error else { return error };
    if matches!(&*error, ServiceError::Store(error) if error.may_pass()) {
        return RunError::Adapter(error);
    }
    let message = format!("the trained adapter cannot be registered: {error}");
    RunError::job("adapter_refused", message, None)
}
