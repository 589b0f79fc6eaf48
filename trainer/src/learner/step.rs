//! One step as a list of tasks.

use std::{borrow::Cow, collections::VecDeque, ops::Range, sync::Arc};

use pleach_engine::train::{MicroBatch, Progress, UnitCost};

use crate::{
    error::TrainerError,
    objective::{Asked, BatchFacts, Objective, Sample, SequenceScores, Targeted},
    optimizer::StepScale,
};

use super::{Learner, StepReport};

/// Multiply-adds that moving one weight, or squaring one gradient, is counted as.
const WEIGHT_WORK: u64 = 16;

/// Who scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// The adapter in training.
    Policy,
    /// What it is compared with.
    Reference,
}

/// One thing to do. Sequences and samples are ranges of the step's.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// Forward only.
    Score {
        sequences: Range<usize>,
        model: Model,
    },
    /// Forward; the backward half follows.
    Learn {
        samples: Range<usize>,
    },
    Backward,
    /// All passes are done: the loss.
    Tally,
    /// Adds a site's gradients to the norm.
    Norm {
        site: usize,
    },
    /// Decides whether the weights move.
    Judge,
    /// Moves a site's weights.
    Update {
        site: usize,
    },
    /// Moves the head's.
    UpdateHead,
}

/// A step that is under way.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) objective: Objective,
    pub(super) batch: Vec<Sample>,
    /// Those of the samples, in their order, then KTO's mismatched ones.
    pub(super) sequences: Vec<Targeted>,
    /// The first sequence of each sample, and the end of the last.
    pub(super) sample_indptr: Vec<usize>,
    pub(super) scores: Vec<SequenceScores>,
    pub(super) facts: BatchFacts,
    tasks: VecDeque<Task>,
    /// The first task is a pass that has begun.
    running: bool,
    squares: f64,
    scale: StepScale,
    moved: f64,
    pub(super) hits: usize,
    pub(super) report: StepReport,
}

/// Cuts `0..n` into ranges of at most `rows_max` rows, at least one item each.
pub(crate) fn cut(rows: &[usize], rows_max: usize) -> Vec<Range<usize>> {
    let (mut ranges, mut sum) = (Vec::<Range<usize>>::new(), 0);
    for (index, rows) in rows.iter().enumerate() {
        match ranges.last_mut() {
            Some(last) if sum + rows <= rows_max => last.end = index + 1,
            _ => {
                ranges.push(index..index + 1);
                sum = 0;
            }
        }
        sum += rows;
    }
    ranges
}

impl Step {
    /// `learns` is the number of the adapter's sites, `None` for an evaluation.
    ///
    /// # Errors
    /// [`TrainerError::Sample`], [`TrainerError::BadSample`], [`TrainerError::TooLong`], [`TrainerError::NoTargets`].
    pub(super) fn new(
        batch: Vec<Sample>,
        objective: Objective,
        rows_max: usize,
        learns: Option<usize>,
    ) -> Result<Self, TrainerError> {
        if let Some(index) = batch.iter().position(|sample| !objective.takes(sample)) {
            let (found, expected) = (batch[index].kind(), objective.expects());
            let objective = objective.name();
            return Err(TrainerError::Sample { index, found, objective, expected });
        }
        for (index, sample) in batch.iter().enumerate() {
            if let Some(problem) = objective.problem_of(sample) {
                return Err(TrainerError::BadSample { index, problem });
            }
        }
        let asks = objective.asks();
        let rows_of = |sequence: &Targeted| match asks {
            Asked::Outputs => sequence.tokens.len(),
            Asked::Targets | Asked::Candidates { .. } => MicroBatch::rows_of(&sequence.mask()),
        };
        let (mut sequences, mut sample_indptr) = (Vec::new(), vec![0]);
        for sample in &batch {
            sequences.extend(sample.sequences().into_iter().map(Cow::into_owned));
            sample_indptr.push(sequences.len());
        }
        let n_own = sequences.len();
        let own_rows: Vec<usize> = sequences.iter().map(rows_of).collect();
        let sample_rows: Vec<usize> =
            sample_indptr.windows(2).map(|pair| own_rows[pair[0]..pair[1]].iter().sum()).collect();
        if matches!(objective, Objective::Kto(_)) {
            let answers = (0..n_own).map(|index| {
                let before = (index + n_own - 1) % n_own;
                sequences[before].after_prompt_of(&sequences[index])
            });
            let mismatched: Vec<_> = answers.collect();
            sequences.extend(mismatched);
        }
        let rows: Vec<usize> = sequences.iter().map(rows_of).collect();
        let all_rows = sample_rows.iter().chain(&rows[n_own..]);
        if let Some((at, &rows)) = all_rows.enumerate().find(|(_, rows)| **rows > rows_max) {
            return Err(TrainerError::TooLong { index: at % batch.len(), rows, rows_max });
        }
        let score = |sequence: &Targeted| SequenceScores {
            weights: sequence.target_weights().collect(),
            ..SequenceScores::default()
        };
        let scores: Vec<SequenceScores> = sequences.iter().map(score).collect();
        let of_sample = |sample: &Sample| match sample {
            Sample::Labelled { weight, .. } => f64::from(*weight),
            Sample::Supervised(_)
            | Sample::Preference { .. }
            | Sample::Rated { .. }
            | Sample::Rollout { .. }
            | Sample::Scored { .. } => 1.0,
        };
        let (total_weight, targets) = match asks {
            Asked::Outputs => (batch.iter().map(of_sample).sum(), n_own),
            Asked::Targets | Asked::Candidates { .. } => (
                scores[..n_own].iter().map(|scores| scores.total().weight).sum::<f64>(),
                scores[..n_own].iter().map(|scores| scores.weights.len()).sum(),
            ),
        };
        if targets == 0 || total_weight == 0.0 {
            return Err(TrainerError::NoTargets);
        }
        let n_samples = batch.len() as f64;
        let mut tasks = VecDeque::new();
        let mut score_all = |from: usize, model: Model| {
            let ranges = cut(&rows[from..], rows_max).into_iter();
            let shifted = ranges.map(|range| range.start + from..range.end + from);
            tasks.extend(shifted.map(|sequences| Task::Score { sequences, model }));
        };
        if objective.needs_reference() {
            score_all(0, Model::Reference);
        }
        score_all(if learns.is_some() { n_own } else { 0 }, Model::Policy);
        if learns.is_some() {
            let samples = cut(&sample_rows, rows_max).into_iter();
            tasks.extend(samples.map(|samples| Task::Learn { samples }));
        }
        tasks.push_back(Task::Tally);
        if let Some(n_sites) = learns {
            tasks.extend((0..n_sites).map(|site| Task::Norm { site }));
            tasks.push_back(Task::Judge);
        }
        Ok(Self {
            objective,
            batch,
            sequences,
            sample_indptr,
            scores,
            facts: BatchFacts { n_samples, total_weight, divergence: 0.0 },
            tasks,
            running: false,
            squares: 0.0,
            scale: StepScale { rate: 0.0, clip: 1.0 },
            moved: 0.0,
            hits: 0,
            report: StepReport { targets, ..StepReport::default() },
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.tasks.is_empty()
    }

    /// What the step came to, and the scores of its own sequences.
    pub(super) fn finish(mut self) -> (StepReport, Vec<SequenceScores>) {
        let (n, report) = (self.facts.n_samples, &mut self.report);
        report.token_accuracy = self.hits as f64 / report.targets.max(1) as f64;
        report.update_norm = self.moved.sqrt();
        report.divergence += self.facts.divergence;
        report.reward /= n;
        report.sample_accuracy /= n;
        self.scores.truncate(self.n_own());
        (self.report, self.scores)
    }

    /// Sequences of the samples themselves.
    pub(super) fn n_own(&self) -> usize {
        self.sample_indptr.last().copied().unwrap_or(0)
    }

    pub(super) fn advance(
        &mut self,
        learner: &mut Learner,
        go_on: &mut impl FnMut(UnitCost) -> bool,
    ) -> Result<Progress, TrainerError> {
        while let Some(task) = self.tasks.front().cloned() {
            let is_pass = matches!(task, Task::Score { .. } | Task::Learn { .. } | Task::Backward);
            if is_pass {
                if !self.running {
                    self.begin_pass(learner, &task)?;
                    self.running = true;
                }
                if learner.pass.advance(&mut *go_on) == Progress::Paused {
                    return Ok(Progress::Paused);
                }
                self.running = false;
            } else if !go_on(UnitCost { work: weight_work(learner, &task) }) {
                return Ok(Progress::Paused);
            }
            self.tasks.pop_front();
            self.finish_task(learner, task)?;
        }
        Ok(Progress::Done)
    }

    fn finish_task(&mut self, learner: &mut Learner, task: Task) -> Result<(), TrainerError> {
        match task {
            Task::Score { sequences, model } => {
                self.take_scores(learner, sequences.clone(), model)?;
                if model == Model::Policy && sequences.end == self.sequences.len() {
                    self.facts.divergence = self.divergence();
                }
            }
            Task::Learn { samples } => {
                let sequences = self.sequences_of(&samples);
                self.take_scores(learner, sequences, Model::Policy)?;
                self.begin_backward(learner, samples)?;
                self.tasks.push_front(Task::Backward);
                self.running = true;
            }
            Task::Backward => learner.gradients = learner.pass.take_gradients()?,
            Task::Tally => self.tally(),
            Task::Norm { site } => {
                let site = &learner.gradients.sites[site];
                let square = |value: &f32| f64::from(*value) * f64::from(*value);
                self.squares += site.a.iter().chain(&site.b).map(square).sum::<f64>();
            }
            Task::Judge => self.judge(learner),
            Task::Update { site } => {
                let weights = &mut Arc::make_mut(&mut learner.adapter).sites[site];
                let gradients = &learner.gradients.sites[site];
                self.moved += learner.optimizer.update(site, self.scale, weights, gradients);
            }
            Task::UpdateHead => {
                if let Some(head) = &mut learner.head {
                    let (weights, gradient) = (&mut head.weights, &learner.head_gradient);
                    self.moved += learner.optimizer.update_head(self.scale, weights, gradient);
                }
            }
        }
        Ok(())
    }

    fn tally(&mut self) {
        for index in 0..self.batch.len() {
            let outcome = self.outcome(index);
            self.report.loss += outcome.loss;
            self.report.reward += outcome.reward;
            self.report.divergence += outcome.divergence;
            self.report.sample_accuracy += f64::from(u8::from(outcome.is_right));
        }
    }

    /// Moves the weights, unless something is not finite.
    fn judge(&mut self, learner: &mut Learner) {
        self.squares +=
            learner.head_gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        let norm = self.squares.sqrt();
        self.report.grad_norm = norm;
        if !norm.is_finite() || !self.report.loss.is_finite() {
            self.report.skipped = true;
            learner.skipped_steps += 1;
            return;
        }
        self.scale = learner.optimizer.begin(norm);
        self.report.learning_rate = self.scale.rate;
        let sites = 0..learner.adapter.sites.len();
        self.tasks.extend(sites.map(|site| Task::Update { site }));
        if learner.head.is_some() {
            self.tasks.push_back(Task::UpdateHead);
        }
    }
}

/// Multiply-adds of a task about weights.
fn weight_work(learner: &Learner, task: &Task) -> u64 {
    match task {
        Task::Norm { site } | Task::Update { site } => {
            let weights = &learner.adapter.sites[*site];
            (weights.a.len() + weights.b.len()) as u64 * WEIGHT_WORK
        }
        Task::UpdateHead => learner.head_gradient.len() as u64 * WEIGHT_WORK,
        Task::Score { .. } | Task::Learn { .. } | Task::Backward | Task::Tally | Task::Judge => 0,
    }
}
