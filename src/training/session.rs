//! One training under way: its steps, what it tells, and from where it could go on.

mod events;
mod exploring;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pleach_engine::{
    adapter_weights::AdapterWeights,
    train::{AdapterShape, Progress, UnitCost},
};
use pleach_store::{JobEvent, JobReport, JobSignal, NewCheckpoint, StagedBlob};
use pleach_trainer::{
    Diagnosis, Learner, LoraSettings, Precision, Sample, StepReport, TrainState, TrainerError,
    grader::Grader,
    recipe::{Measured, Place, Results, Validation},
    save_peft,
};
use serde::{Deserialize, Serialize};

use events::metrics;
pub(super) use exploring::{Rewards, grader_of};

use super::{
    CpuTrainer,
    best::{Best, Seen},
    parent::{find_parent, read_parent},
    run::{Run, RunError, Trained},
    slices::BesideSteps,
    spec::checkpoint_name,
};
use crate::{adapter_service::SpoolFolder, telemetry::unix_time};

/// How often a training tells of itself.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// How often it tells from where it could go on: not more often than that, and so that it takes one part in so many of
/// the time. While sequences run less, as it takes a core from steps: a 99th percentile must not see it.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const SAVES_ONE_PART_IN: u32 = 20;
const SAVES_ONE_PART_IN_BESIDE_STEPS: u32 = 250;
/// How often a training looks whether it may compute.
const TURN_LOOKS_EVERY: Duration = Duration::from_millis(100);
const STATE_FILE: &str = "state.safetensors";

/// What is kept in a state beside weights and moments.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    place: Place,
    #[serde(default)]
    best: Seen,
}

/// Waits until nobody else computes between steps, as an examination does for a while.
fn turn(trainer: &CpuTrainer, run: &Run) -> Result<BesideSteps, RunError> {
    let mut told = Instant::now();
    loop {
        if let Some(beside) = BesideSteps::new(trainer.engine.clone(), trainer.itl_budget()) {
            return Ok(beside);
        }
        if run.is_stopping() {
            return Err(RunError::Interrupted);
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            if run.report(&JobReport::default())? != JobSignal::GoOn {
                return Err(RunError::Interrupted);
            }
        }
        std::thread::sleep(TURN_LOOKS_EVERY);
    }
}

/// A training under way.
pub(super) struct Session<'a> {
    run: &'a Run,
    trainer: &'a CpuTrainer,
    learner: Learner,
    beside: BesideSteps,
    lora: LoraSettings,
    pub(super) data_sha256: String,
    results: Results,
    pub(super) place: Place,
    total_steps: u64,
    /// What was not told yet.
    events: Vec<JobEvent>,
    told: Instant,
    saved: Instant,
    /// How long that took.
    saving: Duration,
    began: Instant,
    /// Steps that were made before this process took the job.
    steps_before: u64,
    /// Somebody wants it to pause.
    must_pause: bool,
    /// It was told that it waits.
    told_waiting: bool,
    diagnosis: Diagnosis,
    best: Best,
    /// What answers are worth, in a training by rewards.
    pub(super) grader: Option<Arc<Grader>>,
    /// Steps in a row in which all answers to each prompt were worth the same.
    flat_steps: u32,
    memory_bytes: usize,
    /// When metrics were last told, and how many tokens it were then.
    measured: (Instant, u64),
}

impl<'a> Session<'a> {
    /// Begins, or goes on where another process was.
    pub(super) fn begin(
        trainer: &'a CpuTrainer,
        run: &'a Run,
        mut learner: Learner,
        lora: LoraSettings,
        events: Vec<JobEvent>,
        total_steps: u64,
        memory_bytes: usize,
    ) -> Result<Self, RunError> {
        let folder = run.folder()?;
        let path = folder.path().join(STATE_FILE);
        let Saved { mut place, mut best } = Saved::default();
        let mut results = Results::new(run.spec.method);
        if run.restore(&path)? {
            let state = TrainState::load(&path, trainer.spec(), learner.adapter(), None);
            let state = state.map_err(RunError::server)?;
            Saved { place, best } =
                serde_json::from_str(&state.position).map_err(RunError::server)?;
            results = Results::resumed(std::mem::take(&mut place.csv));
            learner.restore(state);
        }
        let beside = turn(trainer, run)?;
        let now = Instant::now();
        Ok(Self {
            run,
            trainer,
            learner,
            beside,
            lora,
            data_sha256: String::new(),
            results,
            steps_before: place.steps,
            measured: (now, place.tokens),
            place,
            total_steps,
            events,
            told: now,
            saved: now,
            saving: Duration::ZERO,
            began: now,
            must_pause: false,
            told_waiting: false,
            diagnosis: Diagnosis::default(),
            best: Best::new(run.spec.early_stopping, best),
            grader: None,
            flat_steps: 0,
            memory_bytes,
        })
    }

    /// One step of the optimizer.
    pub(super) fn step(&mut self, batch: Vec<Sample>) -> Result<StepReport, RunError> {
        self.drive(batch, Learner::begin)
    }

    /// Begins and works until it is done, aside for what is served, and tells that it lives.
    fn drive(
        &mut self,
        batch: Vec<Sample>,
        begin: fn(&mut Learner, Vec<Sample>) -> Result<(), TrainerError>,
    ) -> Result<StepReport, RunError> {
        let n_parameters =
            AdapterShape::of(self.learner.adapter()).n_parameters(self.trainer.spec());
        let beginning = UnitCost { work: n_parameters as u64 };
        let mut batch = Some(batch);
        loop {
            let learner = &mut self.learner;
            let advance = |go_on: &mut dyn FnMut(UnitCost) -> bool| {
                if batch.is_some() && !go_on(beginning) {
                    return Ok(Progress::Paused);
                }
                if let Some(batch) = batch.take() {
                    begin(learner, batch)?;
                }
                learner.advance(go_on)
            };
            let progress = self.beside.work(self.told + TELL_EVERY, advance);
            let progress = progress.map_err(RunError::server)?;
            if self.told.elapsed() >= TELL_EVERY {
                self.tell_of_waiting();
                self.run.server().telemetry.set_training_itl_budget(self.beside.interval_max());
                let report = self.progress();
                let signal = self.run.report(&report)?;
                self.told = Instant::now();
                if self.run.is_stopping() {
                    // What was told last is good enough to go on from.
                    return Err(RunError::Interrupted);
                }
                match signal {
                    JobSignal::GoOn => {}
                    // After this step: what it has done so far cannot be kept.
                    JobSignal::Pause => self.must_pause = true,
                    JobSignal::Stop => return Err(RunError::Interrupted),
                }
            }
            if progress == Progress::Done {
                return self.learner.finish().map_err(RunError::server);
            }
        }
    }

    /// Loss of all validation rows.
    pub(super) fn validate(
        &mut self,
        batches: &[Vec<Sample>],
    ) -> Result<Option<Measured>, RunError> {
        let mut validation = Validation::default();
        for batch in batches {
            validation.add(&self.drive(batch.clone(), Learner::begin_evaluation)?);
        }
        Ok(validation.measured())
    }

    /// Takes the validation loss of an epoch; whether its model is to be kept for it.
    pub(super) fn judge(&mut self, valid: Option<Measured>) -> bool {
        let Some(valid) = valid else { return false };
        self.best.observe(self.place.steps, valid.loss, self.learner.adapter())
    }

    /// Whether there was no progress for too long.
    pub(super) fn must_stop(&self) -> bool {
        self.best.must_stop()
    }

    /// Tells of progress when it is time, or now; and of the state when that is due.
    pub(super) fn tell(&mut self, must_save: bool) -> Result<(), RunError> {
        let must_stop = self.must_pause || self.run.is_stopping();
        let is_serving = self.trainer.engine.stats().running > 0;
        let part = if is_serving { SAVES_ONE_PART_IN_BESIDE_STEPS } else { SAVES_ONE_PART_IN };
        let is_due = self.saved.elapsed() >= SAVE_EVERY.max(self.saving * part);
        if !(must_save || must_stop || is_due || self.told.elapsed() >= TELL_EVERY) {
            return Ok(());
        }
        let mut report = self.progress();
        if must_save || must_stop || is_due {
            report.state = Some(self.save()?);
        }
        let signal = self.run.report(&report)?;
        self.told = Instant::now();
        if signal == JobSignal::Pause && report.state.is_none() {
            let state = Some(self.save()?);
            self.run.report(&JobReport { state, ..JobReport::default() })?;
        }
        if must_stop { Err(RunError::Interrupted) } else { self.obey(signal) }
    }

    #[expect(clippy::unused_self, reason = "it is what a session does with a signal")]
    fn obey(&self, signal: JobSignal) -> Result<(), RunError> {
        if signal == JobSignal::GoOn { Ok(()) } else { Err(RunError::Interrupted) }
    }

    fn progress(&mut self) -> JobReport {
        let done = self.place.steps - self.steps_before;
        let left = self.total_steps.saturating_sub(self.place.steps);
        let finish = (done > 0).then(|| {
            let left_s = self.began.elapsed().as_secs_f64() / done as f64 * left as f64;
            let now_ms = unix_time().as_millis() as f64;
            #[expect(clippy::cast_possible_truncation, reason = "a time of this millennium")]
            let finish_ms = (now_ms + 1000.0 * left_s) as i64;
            finish_ms
        });
        JobReport {
            events: std::mem::take(&mut self.events),
            trained_tokens: Some(self.place.tokens),
            estimated_finish_ms: finish,
            ..JobReport::default()
        }
    }

    /// Makes what is to be gone on from a blob.
    fn save(&mut self) -> Result<StagedBlob, RunError> {
        let place = Place {
            csv: self.results.csv().to_owned(),
            position: self.place.position,
            ..self.place
        };
        let saved = Saved { place, best: self.best.seen().clone() };
        let text = serde_json::to_string(&saved).map_err(RunError::server)?;
        let begun = Instant::now();
        let folder = self.run.folder()?;
        let path = folder.path().join(STATE_FILE);
        let state = self.learner.state(text);
        state.save(&path, self.trainer.spec()).map_err(RunError::server)?;
        let blob = self.run.put_file(&path)?;
        (self.saved, self.saving) = (Instant::now(), begun.elapsed());
        Ok(blob)
    }

    /// An adapter in a folder.
    fn write(&self, weights: &AdapterWeights) -> Result<SpoolFolder, RunError> {
        let folder = self.run.folder()?;
        let (base, spec) = (&self.trainer.base_name, self.trainer.spec());
        save_peft(folder.path(), weights, &self.lora, spec, base, Precision::F16)
            .map_err(RunError::server)?;
        Ok(folder)
    }

    /// Serves the adapter as it is now beside the one that is to come.
    pub(super) fn checkpoint(
        &mut self,
        report: &StepReport,
        rewards: Option<Rewards>,
        valid: Option<Measured>,
    ) -> Result<(), RunError> {
        let step = self.place.steps;
        let model = checkpoint_name(&self.run.model_name, step);
        let message = format!("Checkpoint created at step {step}");
        self.events.push(JobEvent::info(message));
        let checkpoint =
            NewCheckpoint { step, model, metrics: metrics(step, report, rewards, valid) };
        let (folder, told) = (self.write(self.learner.adapter())?, self.progress());
        let (signal, served) = self.run.checkpoint(folder, &self.data_sha256, checkpoint, told)?;
        if let Some(generation) = served {
            self.best.served_as(step, generation);
        }
        self.obey(signal)
    }

    /// The last checkpoint is the model itself, which is registered when all is done.
    pub(super) fn last_checkpoint(
        &mut self,
        report: &StepReport,
        rewards: Option<Rewards>,
        valid: Option<Measured>,
    ) -> Result<(), RunError> {
        let step = self.place.steps;
        let model = self.run.model_name.clone();
        let metrics = metrics(step, report, rewards, valid);
        let mut checkpoint = Some(NewCheckpoint { step, model, metrics });
        if let Some(best) = self.best.earlier_than(step) {
            checkpoint = None;
            let end = if self.must_stop() { "Training ends early" } else { "Training ends" };
            let message = format!(
                "{end} after step {step}: the model is that of step {best}, the best on validation rows"
            );
            self.events.push(JobEvent::info(message));
        }
        let told = JobReport { checkpoint, ..self.progress() };
        let signal = self.run.report(&told)?;
        self.obey(signal)
    }

    /// Weights of the model to keep.
    fn weights(&self) -> Result<Arc<AdapterWeights>, RunError> {
        let last = self.learner.adapter();
        let Some(step) = self.best.earlier_than(self.place.steps) else {
            return Ok(Arc::clone(last));
        };
        if let Some(weights) = self.best.weights() {
            return Ok(Arc::clone(weights));
        }
        // Another process trained it: it is what was served then.
        let gone =
            || RunError::server(format!("the checkpoint of step {step}, the best one, is gone"));
        let generation = self.best.generation().ok_or_else(gone)?;
        let registry = self.run.server().adapters.registry();
        let found = find_parent(registry, &self.run.job.owner, generation).map_err(|_| gone())?;
        let read = read_parent(&found, self.trainer.spec()).map_err(RunError::server)?;
        Ok(Arc::clone(read.weights()))
    }

    pub(super) fn finish(self) -> Result<Trained, RunError> {
        let folder = self.write(&*self.weights()?)?;
        Ok(Trained {
            folder,
            trained_tokens: self.place.tokens,
            csv: self.results.csv().to_owned(),
            data_sha256: self.data_sha256,
        })
    }
}
