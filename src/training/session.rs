//! One training under way: its steps, what it tells, and from where it could go on.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use pleach_engine::train::Progress;
use pleach_store::{
    EventLevel, JobEvent, JobReport, JobSignal, JobStatus, NewCheckpoint, StagedBlob,
};
use pleach_trainer::{
    Learner, LoraSettings, Precision, Sample, StepReport, TrainState,
    data::Position,
    recipe::{Measured, Place, Resolved, Results, Validation},
    save_peft,
};
use serde_json::json;

use super::{
    CpuTrainer,
    run::{Run, RunError, Trained},
    spec::checkpoint_name,
};
use crate::{adapter_service::SpoolFolder, telemetry::unix_time};

/// How often a training tells of itself.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// How often it tells from where it could go on: not more often than that, and so that it takes one part in so many of
/// the time.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const SAVES_ONE_PART_IN: u32 = 20;
/// Of a core's time, while steps run, training takes one part in so many.
const ONE_PART_IN: u32 = 4;
/// Steps whose metrics are events; of longer trainings every so many.
const METRIC_EVENTS_MAX: u64 = 1000;
const STATE_FILE: &str = "state.safetensors";

/// A training under way.
pub(super) struct Session<'a> {
    run: &'a Run,
    trainer: &'a CpuTrainer,
    learner: Learner,
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
    ) -> Result<Self, RunError> {
        let folder = run.folder()?;
        let path = folder.path().join(STATE_FILE);
        let mut place = Place::default();
        let mut results = Results::default();
        if run.restore(&path)? {
            let state = TrainState::load(&path, trainer.spec(), learner.adapter(), None);
            let state = state.map_err(RunError::server)?;
            place = serde_json::from_str(&state.position).map_err(RunError::server)?;
            results = Results::resumed(std::mem::take(&mut place.csv));
            learner.restore(state);
        }
        let now = Instant::now();
        Ok(Self {
            run,
            trainer,
            learner,
            lora,
            data_sha256: String::new(),
            results,
            steps_before: place.steps,
            place,
            total_steps,
            events,
            told: now,
            saved: now,
            saving: Duration::ZERO,
            began: now,
            must_pause: false,
        })
    }

    pub(super) fn announce(&mut self, resolved: &Resolved) -> Result<(), RunError> {
        let is_resumed = self.place.steps > 0;
        if is_resumed {
            self.events.clear();
            let at = self.place.steps;
            self.events.push(JobEvent::info(format!("Training goes on after step {at}")));
        } else {
            self.events.insert(0, JobEvent::info("Files validated, moving job to queued state"));
            let queued = JobReport {
                status: Some(JobStatus::Queued),
                events: std::mem::take(&mut self.events),
                ..JobReport::default()
            };
            self.obey(self.run.report(&queued)?)?;
            let settings = json!(resolved);
            self.events.push(JobEvent {
                metrics: Some(settings),
                ..JobEvent::info("Fine-tuning job started")
            });
        }
        let running = JobReport {
            status: Some(JobStatus::Running),
            events: std::mem::take(&mut self.events),
            ..JobReport::default()
        };
        self.obey(self.run.report(&running)?)
    }

    /// One step of the optimizer.
    pub(super) fn step(&mut self, batch: Vec<Sample>) -> Result<StepReport, RunError> {
        self.learner.begin(batch).map_err(RunError::server)?;
        self.drive()?;
        self.learner.finish().map_err(RunError::server)
    }

    /// Works on what was begun until it is done, aside for what is served, and tells that it lives.
    fn drive(&mut self) -> Result<(), RunError> {
        let engine = self.trainer.engine.clone();
        loop {
            let until = self.told + TELL_EVERY;
            let mut since = Instant::now();
            let go_on = |_| {
                let now = Instant::now();
                if engine.stats().running > 0 {
                    std::thread::sleep((now - since) * (ONE_PART_IN - 1));
                    since = Instant::now();
                } else {
                    since = now;
                }
                since < until
            };
            let progress = self.learner.advance(go_on).map_err(RunError::server)?;
            if self.told.elapsed() >= TELL_EVERY {
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
                return Ok(());
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
            self.learner.begin_evaluation(batch.clone()).map_err(RunError::server)?;
            self.drive()?;
            validation.add(&self.learner.finish().map_err(RunError::server)?);
        }
        Ok(validation.measured())
    }

    /// Notes what a step came to.
    pub(super) fn note(&mut self, next: Position, report: &StepReport, valid: Option<Measured>) {
        self.place.advance(next, report);
        let (step, total) = (self.place.steps, self.total_steps);
        self.results.push(step, Measured::of(report), valid);
        if report.skipped {
            let message =
                format!("Step {step}: a gradient or the loss is not finite, the weights stay");
            self.events.push(JobEvent { level: EventLevel::Warn, ..JobEvent::info(message) });
        }
        let stride = total.div_ceil(METRIC_EVENTS_MAX);
        if step.is_multiple_of(stride) || valid.is_some() {
            let mut metrics = metrics(step, report, valid);
            metrics["total_steps"] = json!(total);
            metrics["learning_rate"] = json!(report.learning_rate);
            metrics["grad_norm"] = json!(report.grad_norm);
            metrics["update_norm"] = json!(report.update_norm);
            let mut message = format!("Step {step}/{total}: training loss={:.2}", report.loss);
            if let Some(valid) = valid {
                // Writing to a string cannot fail.
                let _ = write!(message, ", full validation loss={:.2}", valid.loss);
            }
            self.events.push(JobEvent { metrics: Some(metrics), ..JobEvent::info(message) });
        }
    }

    /// Tells of progress when it is time, or now; and of the state when that is due.
    pub(super) fn tell(&mut self, must_save: bool) -> Result<(), RunError> {
        let must_stop = self.must_pause || self.run.is_stopping();
        let is_due = self.saved.elapsed() >= SAVE_EVERY.max(self.saving * SAVES_ONE_PART_IN);
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
        let text = serde_json::to_string(&place).map_err(RunError::server)?;
        let begun = Instant::now();
        let folder = self.run.folder()?;
        let path = folder.path().join(STATE_FILE);
        let state = self.learner.state(text);
        state.save(&path, self.trainer.spec()).map_err(RunError::server)?;
        let blob = self.run.put_file(&path)?;
        (self.saved, self.saving) = (Instant::now(), begun.elapsed());
        Ok(blob)
    }

    /// The adapter as it is now, in a folder.
    fn write(&self) -> Result<SpoolFolder, RunError> {
        let folder = self.run.folder()?;
        let (base, spec) = (&self.trainer.base_name, self.trainer.spec());
        let weights = self.learner.adapter();
        save_peft(folder.path(), weights, &self.lora, spec, base, Precision::F16)
            .map_err(RunError::server)?;
        Ok(folder)
    }

    /// Serves the adapter as it is now beside the one that is to come.
    pub(super) fn checkpoint(
        &mut self,
        report: &StepReport,
        valid: Option<Measured>,
    ) -> Result<(), RunError> {
        let step = self.place.steps;
        let model = checkpoint_name(&self.run.model_name, step);
        let message = format!("Checkpoint created at step {step}");
        self.events.push(JobEvent::info(message));
        let checkpoint = NewCheckpoint { step, model, metrics: metrics(step, report, valid) };
        let (folder, told) = (self.write()?, self.progress());
        let signal = self.run.checkpoint(folder, &self.data_sha256, checkpoint, told)?;
        self.obey(signal)
    }

    /// The last checkpoint is the model itself, which is registered when all is done.
    pub(super) fn last_checkpoint(
        &mut self,
        report: &StepReport,
        valid: Option<Measured>,
    ) -> Result<(), RunError> {
        let step = self.place.steps;
        let model = self.run.model_name.clone();
        let mut told = self.progress();
        told.checkpoint =
            Some(NewCheckpoint { step, model, metrics: metrics(step, report, valid) });
        let signal = self.run.report(&told)?;
        self.obey(signal)
    }

    pub(super) fn finish(self) -> Result<Trained, RunError> {
        let folder = self.write()?;
        Ok(Trained {
            folder,
            trained_tokens: self.place.tokens,
            csv: self.results.csv().to_owned(),
            data_sha256: self.data_sha256,
        })
    }
}

/// With the names of `OpenAI`'s checkpoints.
fn metrics(step: u64, report: &StepReport, valid: Option<Measured>) -> serde_json::Value {
    let mut metrics = json!({
        "step": step,
        "train_loss": report.loss,
        "train_mean_token_accuracy": Measured::of(report).accuracy,
    });
    if let Some(valid) = valid {
        metrics["full_valid_loss"] = json!(valid.loss);
        metrics["full_valid_mean_token_accuracy"] = json!(valid.accuracy);
    }
    metrics
}
