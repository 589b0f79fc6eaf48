//! Training through the weights that serve, on the cores that serve, in units of less than a millisecond.

use std::{io::BufReader, sync::Arc};

use pleach_engine::{
    cpu::{FrozenBase, Isa},
    engine::EngineHandle,
    spec::ModelSpec,
    train::TrainOptions,
};
use pleach_store::{EventLevel, JobEvent};
use pleach_text::{ChatTemplate, Tokenizer};
use pleach_trainer::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, Schedule,
    Targeted,
    data::{
        BatchPlan, BatchSettings, EncodeSettings, Encoder, Example, Item, Level, Loaded, Order,
        Packing, Position, ReadLimits, Record, ReportSettings, RowReader, load,
    },
    objective::{Dpo, Kto},
};

use super::{
    BlobSource,
    jobs::Trainer,
    run::{Run, RunError, Trained},
    session::Session,
    spec::{JobSpec, Method, Resolved},
};
use crate::{hex::hex, http::wire::files::UPLOAD_BYTES_MAX};

/// Longest example, tokens: what a pass takes memory for.
const EXAMPLE_TOKENS_MAX: usize = 2048;
/// Least rows of a micro-batch: short examples go through together.
const MICRO_BATCH_ROWS: usize = 512;
/// Memory for activations that are kept for the backward half; what does not fit is computed again.
const ACTIVATION_BYTES: usize = 256 << 20;
/// Epochs whose models are kept as checkpoints: the last ones.
const CHECKPOINTS_MAX: u32 = 3;
/// Steps of a hundred in which the learning rate rises.
const WARMUP_PERCENT: u64 = 5;

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

    /// Reads and encodes all rows, and tells what stands out.
    fn load(&self, run: &Run, events: &mut Vec<JobEvent>) -> Result<Loaded, RunError> {
        let limits = ReadLimits { file_bytes_max: UPLOAD_BYTES_MAX, ..ReadLimits::default() };
        let reader =
            |source: BlobSource| RowReader::new(BufReader::new(source), None, limits.clone());
        let mut train = reader(run.source(&run.job.training_file, "training_file")?);
        let validation = run.job.validation_file.as_deref();
        let validation = validation.map(|file| run.source(file, "validation_file")).transpose()?;
        let mut validation = validation.map(reader);
        let tokens_max = EXAMPLE_TOKENS_MAX.min(self.spec().context);
        let mut encoder = Encoder::new(
            self.template.as_deref(),
            &self.tokenizer,
            EncodeSettings::new(tokens_max),
        );
        let loaded = load(
            &mut train,
            validation.as_mut().map(|rows| rows as _),
            &mut encoder,
            ReportSettings::default(),
        );
        let loaded = loaded.map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            RunError::training_file(lines.join("; "))
        })?;
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

    fn learner(
        &self,
        run: &Run,
        lora: &LoraSettings,
        resolved: &Resolved,
        total_steps: u64,
        rows_max: usize,
    ) -> Result<Learner, RunError> {
        let objective = match run.spec.method {
            Method::Supervised => Objective::Sft,
            Method::Dpo => Objective::Dpo(Dpo { beta: resolved.beta, ..Dpo::default() }),
            Method::Kto => Objective::Kto(Kto { beta: resolved.beta, ..Kto::default() }),
        };
        let optimizer = OptimizerSettings {
            learning_rate: resolved.learning_rate,
            schedule: Schedule::Linear,
            warmup_steps: total_steps * WARMUP_PERCENT / 100,
            total_steps,
            ..OptimizerSettings::default()
        };
        let settings = LearnerSettings { objective, optimizer, dropout: 0.0, seed: run.spec.seed };
        let options = TrainOptions {
            isa: self.options.isa,
            threads: self.options.threads,
            rows_max,
            activation_bytes: ACTIVATION_BYTES,
            unit_work: TrainOptions::UNIT_WORK,
        };
        let fresh = lora.fresh(self.spec(), run.spec.seed).map_err(RunError::server)?;
        Learner::new(&self.base, fresh, None, settings, options).map_err(RunError::server)
    }
}

impl Trainer for CpuTrainer {
    fn train(&self, run: &Run) -> Result<Trained, RunError> {
        let mut events = Vec::new();
        let loaded = self.load(run, &mut events)?;
        let samples = samples(&loaded.data.items, &run.spec)?;
        let validation = samples_or_none(&loaded.validation.items, &run.spec)?;
        let resolved = run.spec.resolve(samples.len(), self.spec().hidden);
        let lengths: Vec<u32> = loaded.data.items.iter().map(n_tokens).collect();
        let longest = lengths
            .iter()
            .chain(&loaded.validation.items.iter().map(n_tokens).collect::<Vec<_>>())
            .max()
            .copied();
        // KTO also takes an answer after another's prompt.
        let longest = longest.unwrap_or_default() as usize
            * if run.spec.method == Method::Kto { 2 } else { 1 };
        let rows_max = longest.max(MICRO_BATCH_ROWS);
        let plan = BatchPlan::new(
            lengths,
            BatchSettings {
                batch_size: resolved.batch_size as usize,
                tokens_max: rows_max,
                order: Order::Shuffled,
                packing: Packing::default(),
                seed: run.spec.seed,
            },
        );
        let total_steps = u64::from(plan.steps_per_epoch()) * u64::from(resolved.n_epochs);
        let lora = LoraSettings::all_linear(resolved.lora_rank as usize);
        let learner = self.learner(run, &lora, &resolved, total_steps, rows_max)?;
        let mut session = Session::begin(self, run, learner, lora, events, total_steps)?;
        session.data_sha256 = hex(&loaded.data.digest());
        session.announce(&resolved)?;
        let n_epochs = resolved.n_epochs;
        for step in plan.steps_from(session.place.position, n_epochs) {
            let batch = step.records.iter().map(|&index| samples[index as usize].clone()).collect();
            let report = session.step(batch)?;
            let is_epoch_end = step.position.step + 1 == plan.steps_per_epoch();
            let next = if is_epoch_end {
                Position { epoch: step.position.epoch + 1, step: 0 }
            } else {
                Position { step: step.position.step + 1, ..step.position }
            };
            let valid = if is_epoch_end { session.validate(&validation)? } else { None };
            session.note(next, &report, valid);
            let is_last = is_epoch_end && step.position.epoch + 1 == n_epochs;
            let is_kept = is_epoch_end && step.position.epoch + 1 + CHECKPOINTS_MAX > n_epochs;
            if is_last {
                session.last_checkpoint(&report, valid)?;
            } else {
                if is_kept {
                    session.checkpoint(&report, valid)?;
                }
                // After the checkpoint: whoever goes on from here does not make it again.
                session.tell(is_epoch_end)?;
            }
        }
        session.finish()
    }
}

fn n_tokens(item: &Item) -> u32 {
    u32::try_from(item.record.n_tokens()).unwrap_or(u32::MAX)
}

/// What the objective of a job learns from.
fn samples(items: &[Item], spec: &JobSpec) -> Result<Vec<Sample>, RunError> {
    let sample = |item: &Item| {
        let sample = match (&item.record, spec.method) {
            (Record::Supervised(example), Method::Supervised) => {
                Sample::Supervised(targeted(example))
            }
            (Record::Preference { preferred, rejected }, Method::Dpo) => {
                Sample::Preference { preferred: targeted(preferred), rejected: targeted(rejected) }
            }
            (Record::Rated { example, desirable }, Method::Kto) => {
                Sample::Rated { answer: targeted(example), desirable: *desirable }
            }
            _ => {
                let (line, method) = (item.line, spec.method.name());
                let message =
                    format!("line {line}: the method {method} cannot learn from such rows");
                return Err(RunError::training_file(message));
            }
        };
        Ok(sample)
    };
    items.iter().map(sample).collect()
}

/// Validation rows, in batches.
fn samples_or_none(items: &[Item], spec: &JobSpec) -> Result<Vec<Vec<Sample>>, RunError> {
    let samples = samples(items, spec).map_err(|error| {
        let RunError::Job(error) = error else { return error };
        RunError::job("invalid_validation_file", error.message, Some("validation_file"))
    })?;
    // KTO compares rows of a batch with each other.
    Ok(samples.chunks(8).map(<[Sample]>::to_vec).collect())
}

fn targeted(example: &Example) -> Targeted {
    let mut weights = vec![0.0; example.ids.len()];
    for (index, weight) in example.targets() {
        weights[index] = weight;
    }
    Targeted { tokens: example.ids.clone(), weights: weights.into() }
}
