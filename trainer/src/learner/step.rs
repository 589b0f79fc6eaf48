//! One step as a list of tasks.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use pleach_engine::train::{MicroBatch, Progress, Purpose, UnitCost};

use crate::{
    error::TrainerError,
    objective::{BatchFacts, Kto, Objective, Outcome, Sample, Score, Targeted},
    optimizer::{StepScale, narrow},
};

use super::{Learner, StepReport};

/// Multiply-adds that moving one weight, or squaring one gradient, is counted as.
const WEIGHT_WORK: u64 = 16;

/// Who scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// The adapter in training.
    Policy,
    /// What it is compared with.
    Reference,
}

/// One thing to do. Sequences and samples are ranges of the step's.
#[derive(Clone, Debug)]
enum Task {
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
}

/// A step that is under way.
#[derive(Debug)]
pub(super) struct Step {
    objective: Objective,
    batch: Vec<Sample>,
    /// Those of the samples, in their order, then KTO's mismatched ones.
    sequences: Vec<Targeted>,
    /// The first sequence of each sample, and the end of the last.
    sample_indptr: Vec<usize>,
    scores: Vec<Score>,
    facts: BatchFacts,
    tasks: VecDeque<Task>,
    /// The first task is a pass that has begun.
    running: bool,
    squares: f64,
    scale: StepScale,
    moved: f64,
    hits: usize,
    report: StepReport,
}

/// Cuts `0..n` into ranges of at most `rows_max` rows, at least one item each.
fn cut(rows: &[usize], rows_max: usize) -> Vec<Range<usize>> {
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
    /// [`TrainerError::Sample`], [`TrainerError::TooLong`], [`TrainerError::NoTargets`].
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
        let rows_of = |sequence: &Targeted| MicroBatch::rows_of(&sequence.mask());
        let (mut sequences, mut sample_indptr) = (Vec::new(), vec![0]);
        for sample in &batch {
            sequences.extend(sample.sequences().into_iter().cloned());
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
        let score = |sequence: &Targeted| Score {
            weight: sequence.target_weights().map(f64::from).sum(),
            ..Score::default()
        };
        let scores: Vec<Score> = sequences.iter().map(score).collect();
        let total_weight = scores[..n_own].iter().map(|score| score.weight).sum();
        let targets = sequences[..n_own].iter().map(|s| s.target_weights().count()).sum();
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

    pub(super) fn report(mut self) -> StepReport {
        let (n, report) = (self.facts.n_samples, &mut self.report);
        report.token_accuracy = self.hits as f64 / report.targets.max(1) as f64;
        report.update_norm = self.moved.sqrt();
        report.divergence = self.facts.divergence;
        report.reward /= n;
        report.reward_accuracy /= n;
        self.report
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
            } else {
                if !go_on(UnitCost { work: weight_work(learner, &task) }) {
                    return Ok(Progress::Paused);
                }
            }
            self.tasks.pop_front();
            self.finish_task(learner, task)?;
        }
        Ok(Progress::Done)
    }

    fn begin_pass(&self, learner: &mut Learner, task: &Task) -> Result<(), TrainerError> {
        let (sequences, adapter, purpose) = match task {
            Task::Score { sequences, model } => {
                let adapter = match model {
                    Model::Policy => Some(Arc::clone(&learner.adapter)),
                    Model::Reference => learner.reference.clone(),
                };
                (sequences.clone(), adapter, Purpose::Score)
            }
            Task::Learn { samples } => {
                let purpose = Purpose::Learn { dropout: learner.dropout() };
                (self.sequences_of(samples), Some(Arc::clone(&learner.adapter)), purpose)
            }
            // Begun when its forward half was done.
            Task::Backward
            | Task::Tally
            | Task::Norm { .. }
            | Task::Judge
            | Task::Update { .. } => return Ok(()),
        };
        let mut batch = MicroBatch::default();
        for sequence in &self.sequences[sequences] {
            let stream = if purpose == Purpose::Score { 0 } else { learner.next_stream() };
            batch.push(&sequence.tokens, &sequence.mask(), stream);
        }
        learner.pass.begin(batch, adapter, purpose)?;
        Ok(())
    }

    fn finish_task(&mut self, learner: &mut Learner, task: Task) -> Result<(), TrainerError> {
        match task {
            Task::Score { sequences, model } => {
                self.take_scores(learner, sequences.clone(), model)?;
                let n_own = self.sample_indptr.last().copied().unwrap_or(0);
                if model == Model::Policy && sequences.end == self.sequences.len() {
                    self.facts.divergence = self.divergence(n_own);
                }
            }
            Task::Learn { samples } => {
                let sequences = self.sequences_of(&samples);
                self.take_scores(learner, sequences, Model::Policy)?;
                let weights = self.slopes(samples);
                let gradients = std::mem::take(&mut learner.gradients);
                learner.pass.begin_backward(&weights, gradients)?;
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
        }
        Ok(())
    }

    fn sequences_of(&self, samples: &Range<usize>) -> Range<usize> {
        self.sample_indptr[samples.start]..self.sample_indptr[samples.end]
    }

    /// Sums of log-probabilities of the pass that was just done.
    fn take_scores(
        &mut self,
        learner: &Learner,
        sequences: Range<usize>,
        model: Model,
    ) -> Result<(), TrainerError> {
        let (pass, n_own) = (&learner.pass, self.sample_indptr.last().copied().unwrap_or(0));
        let (logps, hits) = (pass.logps()?, pass.hits()?);
        self.report.rows += pass.batch().n_rows();
        for (place, index) in sequences.enumerate() {
            let targets = pass.batch().targets_of(place);
            let weights = self.sequences[index].target_weights();
            let terms = logps[targets.clone()].iter().zip(weights);
            let sum = terms.map(|(logp, weight)| f64::from(*logp) * f64::from(weight)).sum();
            match model {
                Model::Policy => {
                    self.scores[index].logp = sum;
                    if index < n_own {
                        self.hits += hits[targets].iter().filter(|hit| **hit).count();
                    }
                }
                Model::Reference => self.scores[index].reference = sum,
            }
        }
        Ok(())
    }

    /// KTO's estimate, from the mismatched sequences.
    fn divergence(&self, n_own: usize) -> f64 {
        let ratios: Vec<f64> =
            self.scores[n_own..].iter().map(|score| score.logp - score.reference).collect();
        Kto::divergence(&ratios)
    }

    fn outcome(&self, sample: usize) -> Outcome {
        let scores = &self.scores[self.sequences_of(&(sample..sample + 1))];
        self.objective.outcome(&self.batch[sample], scores, self.facts)
    }

    /// `dL/dlogp` of every target of some samples.
    fn slopes(&self, samples: Range<usize>) -> Vec<f32> {
        let mut slopes = Vec::new();
        for sample in samples {
            let sequences = &self.sequences[self.sequences_of(&(sample..sample + 1))];
            for (sequence, slope) in sequences.iter().zip(self.outcome(sample).slopes) {
                let weights = sequence.target_weights();
                slopes.extend(weights.map(|weight| narrow(slope * f64::from(weight))));
            }
        }
        slopes
    }

    fn tally(&mut self) {
        for (index, sample) in self.batch.iter().enumerate() {
            let outcome = self.outcome(index);
            self.report.loss += outcome.loss;
            self.report.reward += outcome.reward;
            let is_right = match sample {
                Sample::Supervised(_) => false,
                Sample::Preference { .. } | Sample::Rated { desirable: true, .. } => {
                    outcome.reward > 0.0
                }
                Sample::Rated { desirable: false, .. } => outcome.reward < 0.0,
            };
            self.report.reward_accuracy += f64::from(u8::from(is_right));
        }
    }

    /// Moves the weights, unless something is not finite.
    fn judge(&mut self, learner: &mut Learner) {
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
    }
}

/// Multiply-adds of a task about weights.
fn weight_work(learner: &Learner, task: &Task) -> u64 {
    match task {
        Task::Norm { site } | Task::Update { site } => {
            let weights = &learner.adapter.sites[*site];
            (weights.a.len() + weights.b.len()) as u64 * WEIGHT_WORK
        }
        Task::Score { .. } | Task::Learn { .. } | Task::Backward | Task::Tally | Task::Judge => 0,
    }
}
