//! A training under way: its steps, what is measured, and from where it could go on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pleach_trainer::{
    Better, Diagnosis, EarlyStopping, Learner, Precision, StepReport, StopSignal, TrainState,
    recipe::{Measured, Place, Prepared, Results, Validation},
    save_peft,
};
use serde::{Deserialize, Serialize};

use super::{base::OpenBase, screen::Screen, setup::Setup, work::WorkFolder};
use crate::cli::serve::settings::name_of_model;

/// How often the state is saved: not more often than that, and so that it takes one part in so many of the time.
const SAVE_EVERY: Duration = Duration::from_secs(10);
const SAVES_ONE_PART_IN: u32 = 20;

/// How a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    /// It can be gone on with.
    Interrupted {
        step: u64,
        total: u64,
    },
}

/// A measure on the validation rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    /// Steps before it.
    pub(super) step: u64,
    /// The loss, as the bits of its f64: what is decided by it must be the same after a restart.
    loss_bits: u64,
}

impl Point {
    pub(super) fn loss(self) -> f64 {
        f64::from_bits(self.loss_bits)
    }
}

/// Something that was the matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) step: u64,
    pub(super) message: String,
}

/// Where a training is, kept in its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) place: Place,
    pub(super) points: Vec<Point>,
    /// The measure that was best.
    pub(super) best: Option<Point>,
    /// No progress for too long.
    pub(super) stopped_early: bool,
    pub(super) symptoms: Vec<Told>,
    pub(super) seconds: f64,
}

/// A training under way.
pub(super) struct Course<'a> {
    prepared: &'a Prepared,
    learner: Learner,
    base: &'a OpenBase,
    work: &'a WorkFolder,
    setup: Setup,
    standing: Standing,
    results: Results,
    stopping: EarlyStopping,
    diagnosis: Diagnosis,
    began: Instant,
    seconds_before: f64,
    saved: Instant,
    saving: Duration,
}

/// What came of it: the adapter is in the folder of the best one.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) standing: Standing,
    pub(super) csv: String,
}

impl<'a> Course<'a> {
    /// Begins, or goes on from the state that was saved.
    ///
    /// # Errors
    /// A state that cannot be read.
    pub(super) fn begin(
        prepared: &'a Prepared,
        mut learner: Learner,
        base: &'a OpenBase,
        work: &'a WorkFolder,
        setup: Setup,
    ) -> anyhow::Result<Self> {
        let mut standing = Standing::default();
        let mut results = Results::default();
        let mut stopping =
            EarlyStopping::new(Better::Lower, setup.patience, EarlyStopping::MIN_DELTA);
        let path = work.state();
        if path.exists() {
            let state = TrainState::load(&path, base.spec(), learner.adapter(), None)?;
            standing = serde_json::from_str(&state.position)
                .with_context(|| path.display().to_string())?;
            results = Results::resumed(std::mem::take(&mut standing.place.csv));
            for point in &standing.points {
                stopping.observe(point.loss());
            }
            learner.restore(state);
        }
        let now = Instant::now();
        Ok(Self {
            prepared,
            learner,
            base,
            work,
            setup,
            results,
            stopping,
            diagnosis: Diagnosis::default(),
            began: now,
            seconds_before: standing.seconds,
            standing,
            saved: now,
            saving: Duration::ZERO,
        })
    }

    /// Makes the steps that are left, until `must_stop`.
    ///
    /// # Errors
    /// Of the learner or the disk.
    pub(super) fn run(
        &mut self,
        screen: &mut Screen,
        must_stop: &AtomicBool,
    ) -> anyhow::Result<Ended> {
        let prepared = self.prepared;
        screen.resume(&self.standing.place);
        let total = prepared.total_steps();
        let mut steps = prepared.steps_from(self.standing.place.position);
        while !self.standing.stopped_early {
            if must_stop.load(Ordering::Relaxed) {
                self.save()?;
                return Ok(Ended::Interrupted { step: self.standing.place.steps, total });
            }
            let Some(step) = steps.next() else { break };
            let report = self.learner.step(prepared.batch(&step))?;
            self.standing.place.advance(prepared.next(&step), &report);
            let is_due = match self.setup.validate_every {
                Some(every) => self.standing.place.steps.is_multiple_of(every),
                None => prepared.is_epoch_end(&step),
            };
            let is_last = self.standing.place.steps == total;
            let valid = if is_due || is_last { self.validate()? } else { None };
            self.note(&report, valid, screen)?;
            if self.saved.elapsed() >= SAVE_EVERY.max(self.saving * SAVES_ONE_PART_IN) {
                self.save()?;
            }
        }
        Ok(Ended::Done)
    }

    /// Loss of all validation rows.
    fn validate(&mut self) -> anyhow::Result<Option<Measured>> {
        let mut validation = Validation::default();
        for batch in self.prepared.validation() {
            validation.add(&self.learner.evaluate(batch.clone())?);
        }
        Ok(validation.measured())
    }

    fn note(
        &mut self,
        report: &StepReport,
        valid: Option<Measured>,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let step = self.standing.place.steps;
        self.results.push(step, Measured::of(report), valid);
        screen.step(step, report);
        for symptom in self.diagnosis.step(report) {
            self.tell(symptom.to_string(), screen);
        }
        let Some(valid) = valid else { return Ok(()) };
        if let Some(symptom) = self.diagnosis.validation(valid.loss) {
            self.tell(symptom.to_string(), screen);
        }
        let point = Point { step, loss_bits: valid.loss.to_bits() };
        self.standing.points.push(point);
        let verdict = self.stopping.observe(valid.loss);
        screen.validation(step, valid, verdict);
        match verdict {
            StopSignal::Best => {
                self.standing.best = Some(point);
                self.write_adapter()?;
            }
            StopSignal::Wait => {}
            StopSignal::Stop => self.standing.stopped_early = true,
        }
        Ok(())
    }

    fn tell(&mut self, message: String, screen: &mut Screen) {
        let step = self.standing.place.steps;
        screen.warn(&format!("step {step}: {message}"));
        self.standing.symptoms.push(Told { step, message });
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64()
    }

    fn save(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut standing = self.standing.clone();
        self.results.csv().clone_into(&mut standing.place.csv);
        standing.seconds = self.seconds();
        let state = self.learner.state(serde_json::to_string(&standing)?);
        state.save(&self.work.state(), self.base.spec())?;
        (self.saved, self.saving) = (Instant::now(), begun.elapsed());
        Ok(())
    }

    /// The adapter as it is now, as the best so far.
    fn write_adapter(&self) -> anyhow::Result<()> {
        let folder = self.work.best();
        let name = name_of_model(&self.setup.model);
        let (weights, lora) = (self.learner.adapter(), self.prepared.lora());
        save_peft(&folder, weights, lora, self.base.spec(), &name, Precision::F16)
            .with_context(|| folder.display().to_string())
    }

    /// Ends it. Without validation rows the adapter is the last one.
    ///
    /// # Errors
    /// When nothing was learned, or of the disk.
    pub(super) fn finish(mut self) -> anyhow::Result<Finished> {
        ensure!(
            self.learner.skipped_steps() < self.standing.place.steps,
            "no step could be learned from: losses or gradients were not finite"
        );
        if self.standing.best.is_none() {
            self.write_adapter()?;
        }
        self.standing.seconds = self.seconds();
        Ok(Finished { standing: self.standing, csv: self.results.csv().to_owned() })
    }
}
