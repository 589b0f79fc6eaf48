//! Steps of the optimizer: a batch of samples through passes of the engine, an objective, and `AdamW`.
//!
//! ```text
//! begin ──> score under the reference ──> score mismatched rows (KTO) ──> micro-batch: forward, loss, backward ──> …
//!       ──> norm ──> weights move, site by site ──> StepReport
//! ```
//! A step is a list of tasks, each of short units, so that it can stand aside for serving after any of them; what it comes
//! to does not depend on where it was interrupted.

mod passes;
mod step;

use std::sync::Arc;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    cpu::{FrozenBase, TrainPass},
    train::{AdapterGradients, AdapterShape, Dropout, Progress, TrainOptions, UnitCost},
};

use crate::{
    error::TrainerError,
    head::Head,
    objective::{Objective, Sample, SequenceScores},
    optimizer::{AdamW, Moments, OptimizerSettings},
    state::TrainState,
};

use step::Step;

pub(crate) use step::cut;

/// How an adapter is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnerSettings {
    /// What is minimized.
    pub objective: Objective,
    /// How weights move.
    pub optimizer: OptimizerSettings,
    /// Share of the adapter's inputs that are dropped; 0 is none.
    pub dropout: f32,
    /// Of dropout.
    pub seed: u64,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Loss of the batch before the weights moved.
    pub loss: f64,
    /// Norm of all gradients before clipping; 0 in an evaluation.
    pub grad_norm: f64,
    /// Learning rate at the topmost layer.
    pub learning_rate: f64,
    /// Norm of what the weights moved by.
    pub update_norm: f64,
    /// Tokens that the loss is about.
    pub targets: usize,
    /// Rows that the learner ran forward, those of references included.
    pub rows: usize,
    /// Share of targets that were the likeliest token.
    pub token_accuracy: f64,
    /// Mean reward: of pairs their margin (DPO, reward heads), of answers their own (KTO). Of rollouts whoever graded them
    /// knows it.
    pub reward: f64,
    /// Share of samples that came out right: pairs with a margin above zero, answers with a reward of the right sign,
    /// texts whose label is the likeliest; 0 under other objectives.
    pub sample_accuracy: f64,
    /// Divergence from the reference: KTO's estimate, that from a teacher, or of a policy gradient with a KL weight.
    pub divergence: f64,
    /// A gradient or the loss was not finite: the weights stayed.
    pub skipped: bool,
}

/// An adapter in training.
#[derive(Debug)]
pub struct Learner {
    pass: TrainPass,
    rows_max: usize,
    settings: LearnerSettings,
    adapter: Arc<AdapterWeights>,
    /// What objectives compare with or learn from; `None` is the base.
    reference: Option<Arc<AdapterWeights>>,
    head: Option<Head>,
    optimizer: AdamW,
    gradients: AdapterGradients,
    head_gradient: Vec<f32>,
    scores: Vec<SequenceScores>,
    skipped_steps: u64,
    streams: u64,
    step: Option<Step>,
}

impl Learner {
    /// Takes all memory that steps will need. `reference` is what objectives compare with or learn from: another generation
    /// of the same shape, or the base. Where the objective needs a head, a fresh one is drawn; see [`Self::set_head`].
    ///
    /// # Errors
    /// Of the engine, or [`TrainerError::Setting`].
    pub fn new(
        base: &FrozenBase,
        adapter: AdapterWeights,
        reference: Option<Arc<AdapterWeights>>,
        settings: LearnerSettings,
        options: TrainOptions,
    ) -> Result<Self, TrainerError> {
        settings.objective.check()?;
        if !(0.0..1.0).contains(&settings.dropout) {
            return Err(TrainerError::Setting {
                setting: "dropout",
                value: f64::from(settings.dropout),
                expected: "at least 0 and below 1",
            });
        }
        let hidden = base.spec().hidden;
        let mut learner = Self {
            pass: TrainPass::new(base, &AdapterShape::of(&adapter), options)?,
            rows_max: options.rows_max,
            settings,
            optimizer: AdamW::new(settings.optimizer, &adapter, base.spec().n_layers)?,
            gradients: AdapterGradients::zeros(&adapter),
            adapter: Arc::new(adapter),
            reference,
            head: None,
            head_gradient: Vec::new(),
            scores: Vec::new(),
            skipped_steps: 0,
            streams: 0,
            step: None,
        };
        if let Some(n_outputs) = settings.objective.n_outputs() {
            learner.set_head(Head::fresh(n_outputs, hidden, settings.seed))?;
        }
        Ok(learner)
    }

    /// Goes on from another head, that of a parent for example; its moments are zero.
    ///
    /// # Errors
    /// [`TrainerError::Outputs`] if the objective has another number of outputs, or no head.
    pub fn set_head(&mut self, head: Head) -> Result<(), TrainerError> {
        let (found, objective) = (head.n_outputs(), self.settings.objective);
        let expected = objective.n_outputs().unwrap_or(0);
        if found != expected {
            let objective = objective.name();
            return Err(TrainerError::Outputs { found, objective, expected });
        }
        self.head_gradient = vec![0.0; head.weights().len()];
        self.optimizer.of_head = Some(Moments::zeros(head.weights().len()));
        self.head = Some(head);
        Ok(())
    }

    /// The head, where the objective trains one.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Gradient of the head at the last step, as it was before clipping; empty without one.
    pub fn head_gradient(&self) -> &[f32] {
        &self.head_gradient
    }

    /// What the last step or evaluation that was finished found out, of every sequence of its samples in their order: the
    /// two of a pair one after the other.
    pub fn scores(&self) -> &[SequenceScores] {
        &self.scores
    }

    /// Goes on where a run stood. The state must be of an adapter of this shape, as [`TrainState::load`] makes sure.
    pub fn restore(&mut self, state: TrainState) {
        self.step = None;
        self.gradients = AdapterGradients::zeros(&state.adapter);
        self.adapter = Arc::new(state.adapter);
        self.optimizer.moments = state.moments;
        self.optimizer.of_head = state.head_moments;
        self.head_gradient = vec![0.0; state.head.as_ref().map_or(0, |head| head.weights().len())];
        self.head = state.head;
        self.optimizer.steps = state.optimizer_steps;
        self.skipped_steps = state.skipped_steps;
        self.streams = state.streams;
    }

    /// What [`Self::restore`] needs, between two steps; `position` is the caller's place in its data.
    pub fn state(&self, position: impl Into<String>) -> TrainState {
        TrainState {
            adapter: AdapterWeights::clone(&self.adapter),
            moments: self.optimizer.moments.clone(),
            head: self.head.clone(),
            head_moments: self.optimizer.of_head.clone(),
            optimizer_steps: self.optimizer.steps(),
            skipped_steps: self.skipped_steps,
            streams: self.streams,
            position: position.into(),
        }
    }

    /// The weights as they are now.
    pub fn adapter(&self) -> &Arc<AdapterWeights> {
        &self.adapter
    }

    /// Gradients of the last step, as they were before clipping.
    pub fn gradients(&self) -> &AdapterGradients {
        &self.gradients
    }

    /// Steps that moved the weights.
    pub fn optimizer_steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Steps that were skipped because the loss or a gradient was not finite.
    pub fn skipped_steps(&self) -> u64 {
        self.skipped_steps
    }

    /// The engine's side, for what it takes.
    pub fn pass(&self) -> &TrainPass {
        &self.pass
    }

    /// Begins a step over a batch; a step that was under way is forgotten.
    ///
    /// # Errors
    /// [`TrainerError::Sample`], [`TrainerError::TooLong`], [`TrainerError::NoTargets`].
    pub fn begin(&mut self, batch: Vec<Sample>) -> Result<(), TrainerError> {
        self.start(batch, true)
    }

    /// Begins to compute the loss of a batch without learning from it.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_evaluation(&mut self, batch: Vec<Sample>) -> Result<(), TrainerError> {
        self.start(batch, false)
    }

    fn start(&mut self, batch: Vec<Sample>, learns: bool) -> Result<(), TrainerError> {
        self.step = None;
        let sites = learns.then_some(self.adapter.sites.len());
        let step = Step::new(batch, self.settings.objective, self.rows_max, sites)?;
        if learns {
            // A step that was forgotten may have left its gradients with the engine.
            if self.gradients.sites.is_empty() {
                self.gradients = AdapterGradients::zeros(&self.adapter);
            }
            self.gradients.clear();
            self.head_gradient.fill(0.0);
        }
        self.step = Some(step);
        Ok(())
    }

    /// Works unit by unit while `go_on`, asked before each with its cost, says so.
    ///
    /// # Errors
    /// Of the engine; the step is forgotten then. [`TrainerError::Order`] without a step.
    pub fn advance(
        &mut self,
        mut go_on: impl FnMut(UnitCost) -> bool,
    ) -> Result<Progress, TrainerError> {
        let order = TrainerError::Order { call: "advance", needs: "a step that was begun" };
        let mut step = self.step.take().ok_or(order)?;
        let progress = step.advance(self, &mut go_on)?;
        self.step = Some(step);
        Ok(progress)
    }

    /// What the step came to, once [`Self::advance`] was done.
    ///
    /// # Errors
    /// [`TrainerError::Order`] before.
    pub fn finish(&mut self) -> Result<StepReport, TrainerError> {
        match self.step.take_if(|step| step.is_done()) {
            Some(step) => {
                let (report, scores) = step.finish();
                self.scores = scores;
                Ok(report)
            }
            None => Err(TrainerError::Order { call: "finish", needs: "a step that was done" }),
        }
    }

    /// One whole step.
    ///
    /// # Errors
    /// Of the others.
    pub fn step(&mut self, batch: Vec<Sample>) -> Result<StepReport, TrainerError> {
        self.begin(batch)?;
        self.advance(|_| true)?;
        self.finish()
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// Of the others.
    pub fn evaluate(&mut self, batch: Vec<Sample>) -> Result<StepReport, TrainerError> {
        self.begin_evaluation(batch)?;
        self.advance(|_| true)?;
        self.finish()
    }

    fn dropout(&self) -> Option<Dropout> {
        let LearnerSettings { dropout: probability, seed, .. } = self.settings;
        (probability > 0.0).then_some(Dropout { probability, seed })
    }

    /// The next dropout stream: another for every sequence that is learned from.
    fn next_stream(&mut self) -> u32 {
        let stream = u32::try_from(self.streams & u64::from(u32::MAX)).unwrap_or(0);
        self.streams += 1;
        stream
    }
}
