//! Training through the weights that serve, on the cores that serve, in units of less than a millisecond.

use std::{io::BufReader, sync::Arc, time::Duration};

use pleach_engine::{
    breaks::with_breaks,
    cpu::{FrozenBase, Isa},
    engine::EngineHandle,
    spec::ModelSpec,
    train::TrainOptions,
};
use pleach_store::{EventLevel, JobEvent};
use pleach_text::{ChatTemplate, Tokenizer};
use pleach_trainer::{
    data::{Level, Loaded, ReadLimits, RowReader},
    recipe::{ACTIVATION_BYTES, Compute, Prepared, RecipeError, RowsOf, Text, load},
};

use super::{
    BlobSource,
    jobs::Trainer,
    limits::TrainingLimits,
    run::{Run, RunError, Trained},
    session::{Session, grader_of},
};
use crate::{hex::hex, http::wire::files::UPLOAD_BYTES_MAX};

/// Epochs whose models are kept as checkpoints: the last ones.
const CHECKPOINTS_MAX: u32 = 3;
/// Of a core's time, while sequences run, reading rows takes one part in so many.
const READING_ONE_PART_IN: u32 = 4;

/// Trains on the CPU.
#[derive(Debug)]
pub struct CpuTrainer {
    base: FrozenBase,
    options: CpuTrainerOptions,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    pub(super) engine: EngineHandle,
    pub(super) base_name: String,
}

/// With what a [`CpuTrainer`] computes.
#[derive(Clone, Copy, Debug)]
pub struct CpuTrainerOptions {
    /// Kernels.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
    /// What it may take of what is served.
    pub limits: TrainingLimits,
}

impl CpuTrainer {
    /// A trainer through `base`, beside what `engine` serves from it.
    pub fn new(
        base: FrozenBase,
        options: CpuTrainerOptions,
        tokenizer: Arc<Tokenizer>,
        template: Option<Arc<ChatTemplate>>,
        engine: EngineHandle,
        base_name: String,
    ) -> Self {
        Self { base, options, tokenizer, template, engine, base_name }
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        self.base.spec()
    }

    pub(super) fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    pub(super) fn itl_budget(&self) -> Option<Duration> {
        self.options.limits.itl_budget
    }

    /// Reads and encodes all rows, and tells what stands out.
    fn load(&self, run: &Run, events: &mut Vec<JobEvent>) -> Result<Loaded, RunError> {
        let limits = ReadLimits { file_bytes_max: UPLOAD_BYTES_MAX, ..ReadLimits::default() };
        let reader =
            |source: BlobSource| RowReader::new(BufReader::new(source), None, limits.clone());
        let mut train = reader(run.source(&run.job.training_file, "training_file")?);
        let validation = run.job.validation_file.as_deref();
        let validation = validation.map(|file| run.source(file, "validation_file")).transpose()?;
        let mut validation = validation.map(reader);
        let text = Text { tokenizer: &self.tokenizer, template: self.template.as_deref() };
        let validation = validation.as_mut().map(|rows| rows as _);
        let engine = self.engine.clone();
        let length = move |worked: Duration| {
            let is_serving = engine.stats().running > 0;
            if is_serving { worked * (READING_ONE_PART_IN - 1) } else { Duration::ZERO }
        };
        let context = self.spec().context;
        let loaded = with_breaks(length, || load(&mut train, validation, text, context));
        let loaded = loaded.map_err(RecipeError::Rows)?;
        for finding in &loaded.report.findings {
            let message = format!("{}: {}", finding.check, finding.message);
            match finding.level {
                Level::Fail => return Err(RunError::training_file(message)),
                Level::Warn => {
                    events.push(JobEvent { level: EventLevel::Warn, ..JobEvent::info(message) });
                }
                Level::Note => events.push(JobEvent::info(message)),
            }
        }
        Ok(loaded)
    }

    fn compute(&self) -> Compute {
        let CpuTrainerOptions { isa, threads, .. } = self.options;
        let unit_work = TrainOptions::UNIT_WORK;
        Compute { isa, threads, activation_bytes: ACTIVATION_BYTES, unit_work }
    }
}

impl Trainer for CpuTrainer {
    fn train(&self, run: &Run) -> Result<Trained, RunError> {
        let mut events = Vec::new();
        let loaded = self.load(run, &mut events)?;
        let parent = run.parent()?;
        let prepared = Prepared::new(run.spec.recipe(), &loaded, parent, self.spec())?;
        drop(loaded);
        let need = prepared.memory(self.spec(), self.compute())?.reserved_bytes();
        self.options.limits.check_memory(need as u64)?;
        let (n_epochs, total_steps) = (prepared.resolved().n_epochs, prepared.total_steps());
        let grader = grader_of(run, &prepared)?;
        let learner = prepared.learner(&self.base, self.compute())?;
        let lora = prepared.lora().clone();
        let mut session = Session::begin(self, run, learner, lora, events, total_steps, need)?;
        session.data_sha256 = hex(&prepared.data_sha256());
        session.grader = grader;
        session.announce(prepared.resolved())?;
        let exploration = prepared.resolved().exploration;
        for step in prepared.steps_from(session.place.position) {
            // Interrupted when there was no progress any more.
            if session.must_stop() {
                break;
            }
            let (batch, rewards) = match exploration {
                None => (prepared.batch(&step), None),
                Some(how) => {
                    let found = session.explore(&prepared.prompts_of(&step), how)?;
                    (found.samples, Some(found.rewards))
                }
            };
            let report = session.step(batch)?;
            let is_epoch_end = prepared.is_epoch_end(&step);
            let valid = match exploration {
                _ if !prepared.is_evaluated(&step) => None,
                None => session.validate(prepared.validation())?,
                Some(how) => session.evaluate(prepared.prompts().1, how)?,
            };
            session.note(prepared.next(&step), &report, rewards, valid);
            let is_best = session.judge(valid);
            let is_among_last = step.position.epoch + 1 + CHECKPOINTS_MAX > n_epochs;
            let is_kept = is_best || is_epoch_end && is_among_last;
            let is_last = is_epoch_end && step.position.epoch + 1 == n_epochs;
            if is_last || session.must_stop() {
                session.last_checkpoint(&report, rewards, valid)?;
            } else {
                if is_kept {
                    session.checkpoint(&report, rewards, valid)?;
                }
                // After the checkpoint: whoever goes on from here does not make it again.
                session.tell(is_epoch_end)?;
            }
        }
        session.finish()
    }
}

impl From<RecipeError> for RunError {
    fn from(error: RecipeError) -> Self {
        let message = error.to_string();
        match error {
            RecipeError::Rows(_) | RecipeError::Method { rows_of: RowsOf::Training, .. } => {
                Self::training_file(message)
            }
            RecipeError::Method { rows_of: RowsOf::Validation, .. } => {
                Self::job("invalid_validation_file", message, Some("validation_file"))
            }
            RecipeError::Parent { .. } => Self::job("invalid_model", message, Some("model")),
            RecipeError::Rank { .. } => {
                Self::job("invalid_hyperparameters", message, Some("hyperparameters"))
            }
            RecipeError::Trainer(_) => Self::server(message),
        }
    }
}
