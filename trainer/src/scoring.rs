//! Scores of samples under an adapter, or under the base alone: what generations are compared by.

use std::{borrow::Cow, collections::VecDeque, ops::Range, sync::Arc};

use pleach_engine::{
    adapter_weights::AdapterWeights,
    cpu::{FrozenBase, TrainPass},
    train::{AdapterShape, MemoryNeed, MicroBatch, Progress, Purpose, TrainOptions, UnitCost},
};

use crate::{
    error::TrainerError,
    learner::cut,
    objective::{Sample, SequenceScores, Targeted},
};

/// What a sample came to.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleScore {
    /// Larger is better, in nats:
    ///
    /// | sample | score |
    /// |---|---|
    /// | supervised | mean log-probability of its targets |
    /// | pair | sum of the log-probabilities of the preferred answer, less that of the rejected one |
    /// | rated, desirable | mean log-probability of the answer |
    /// | rated, undesirable | the same, negated |
    ///
    /// Targets count by their weights. Of a rated answer alone the score says little; the difference between two
    /// generations is what counts.
    pub score: f64,
    /// Targets of all its sequences.
    pub n_targets: usize,
    /// Weights and log-probabilities of the targets of each sequence; of a pair the preferred answer comes first.
    pub sequences: Vec<SequenceScores>,
}

impl SampleScore {
    /// Sum of the log-probabilities of all its targets, by their weights: of an answer, that of the whole answer.
    pub fn logp(&self) -> f64 {
        self.sequences.iter().map(|sequence| sequence.total().logp).sum()
    }

    fn of(sample: &Sample, sequences: Vec<SequenceScores>) -> Self {
        let mean = |sequence: &SequenceScores| {
            let total = sequence.total();
            total.logp / total.weight
        };
        let score = match (sample, sequences.as_slice()) {
            (Sample::Preference { .. }, [preferred, rejected]) => {
                preferred.total().logp - rejected.total().logp
            }
            (Sample::Rated { desirable: false, .. }, [answer]) => -mean(answer),
            (_, sequences) => sequences.first().map_or(f64::NAN, mean),
        };
        let n_targets = sequences.iter().map(|sequence| sequence.weights.len()).sum();
        Self { score, n_targets, sequences }
    }
}

/// Samples that are being scored.
#[derive(Debug)]
struct Scoring {
    samples: Vec<Sample>,
    sequences: Vec<Targeted>,
    /// The first sequence of each sample, and the end of the last.
    sample_indptr: Vec<usize>,
    scores: Vec<SequenceScores>,
    /// Sequences of each pass that is to be made; the first may have begun.
    passes: VecDeque<Range<usize>>,
    is_running: bool,
}

/// Scores samples, forward only: it has neither gradients nor moments, and memory for the activations of one layer.
///
/// ```text
/// begin ──> advance … Done ──> finish: a SampleScore of every sample
/// ```
/// As a [`crate::Learner`] does, it can stand aside after any unit, and what it comes to depends neither on where it stood
/// aside, nor on which samples were scored together, nor on threads: the scores have the same bits.
#[derive(Debug)]
pub struct Scorer {
    pass: TrainPass,
    rows_max: usize,
    adapter: Option<Arc<AdapterWeights>>,
    scoring: Option<Scoring>,
}

impl Scorer {
    /// Takes all memory that passes of at most `options.rows_max` rows will need. The adapter may have any sites and ranks,
    /// but must be of a kind that is trained; `None` is the base alone. `options.activation_bytes` is not used.
    ///
    /// # Errors
    /// Of the engine: adapters of other kinds or for other models are refused here, by name.
    pub fn new(
        base: &FrozenBase,
        adapter: Option<Arc<AdapterWeights>>,
        options: TrainOptions,
    ) -> Result<Self, TrainerError> {
        let shape = shape_of(adapter.as_deref());
        let options = TrainOptions { activation_bytes: 0, ..options };
        let mut pass = TrainPass::new(base, &shape, options)?;
        // A pass over nothing, as that is where the engine checks adapters.
        pass.begin(MicroBatch::default(), adapter.clone(), Purpose::Score)?;
        Ok(Self { pass, rows_max: options.rows_max, adapter, scoring: None })
    }

    /// What it takes.
    pub fn memory(&self) -> MemoryNeed {
        self.pass.memory()
    }

    /// Begins to score samples; what was under way is forgotten.
    ///
    /// # Errors
    /// [`TrainerError::Unscored`] for a sample of a kind that has no score, [`TrainerError::BadSample`] for one without
    /// targets or whose weights sum up to nothing, [`TrainerError::TooLong`]; each names the sample's place.
    pub fn begin(&mut self, samples: Vec<Sample>) -> Result<(), TrainerError> {
        self.scoring = None;
        let (mut sequences, mut sample_indptr) = (Vec::new(), vec![0]);
        let (mut scores, mut rows) = (Vec::new(), Vec::new());
        for (index, sample) in samples.iter().enumerate() {
            if !is_scored(sample) {
                return Err(TrainerError::Unscored { index, found: sample.kind() });
            }
            for sequence in sample.sequences().into_iter().map(Cow::into_owned) {
                let weights: Vec<f32> = sequence.target_weights().collect();
                let total: f64 = weights.iter().copied().map(f64::from).sum();
                if !(total.is_finite() && total > 0.0) {
                    let problem = "a sequence has no targets, or their weights sum up to nothing";
                    return Err(TrainerError::BadSample { index, problem });
                }
                let n_rows = MicroBatch::rows_of(&sequence.mask());
                if n_rows > self.rows_max {
                    let rows_max = self.rows_max;
                    return Err(TrainerError::TooLong { index, rows: n_rows, rows_max });
                }
                rows.push(n_rows);
                scores.push(SequenceScores { weights, ..SequenceScores::default() });
                sequences.push(sequence);
            }
            sample_indptr.push(sequences.len());
        }
        let passes = cut(&rows, self.rows_max).into();
        let is_running = false;
        self.scoring =
            Some(Scoring { samples, sequences, sample_indptr, scores, passes, is_running });
        Ok(())
    }

    /// Works unit by unit while `go_on`, asked before each with its cost, says so.
    ///
    /// # Errors
    /// Of the engine; what was begun is forgotten then. [`TrainerError::Order`] if nothing was.
    pub fn advance(
        &mut self,
        mut go_on: impl FnMut(UnitCost) -> bool,
    ) -> Result<Progress, TrainerError> {
        let order = TrainerError::Order { call: "advance", needs: "samples to score" };
        let mut scoring = self.scoring.take().ok_or(order)?;
        let mut progress = Progress::Done;
        while let Some(sequences) = scoring.passes.front().cloned() {
            if !scoring.is_running {
                let mut batch = MicroBatch::default();
                for sequence in &scoring.sequences[sequences.clone()] {
                    batch.push(&sequence.tokens, &sequence.mask(), 0);
                }
                self.pass.begin(batch, self.adapter.clone(), Purpose::Score)?;
                scoring.is_running = true;
            }
            if self.pass.advance(&mut go_on) == Progress::Paused {
                progress = Progress::Paused;
                break;
            }
            let (logps, hits) = (self.pass.logps()?, self.pass.hits()?);
            for (place, index) in sequences.enumerate() {
                let targets = self.pass.batch().targets_of(place);
                scoring.scores[index].logps = logps[targets.clone()].to_vec();
                scoring.scores[index].hits = hits[targets].to_vec();
            }
            scoring.is_running = false;
            scoring.passes.pop_front();
        }
        self.scoring = Some(scoring);
        Ok(progress)
    }

    /// Scores of the samples in their order, once [`Self::advance`] was done.
    ///
    /// # Errors
    /// [`TrainerError::Order`] before.
    pub fn finish(&mut self) -> Result<Vec<SampleScore>, TrainerError> {
        let Some(scoring) = self.scoring.take_if(|scoring| scoring.passes.is_empty()) else {
            return Err(TrainerError::Order { call: "finish", needs: "samples that were scored" });
        };
        let mut scores = scoring.scores.into_iter();
        let counts = scoring.sample_indptr.windows(2).map(|pair| pair[1] - pair[0]);
        let of_samples = scoring.samples.iter().zip(counts);
        let of_sample = |(sample, n)| SampleScore::of(sample, scores.by_ref().take(n).collect());
        Ok(of_samples.map(of_sample).collect())
    }

    /// All of it at once.
    ///
    /// # Errors
    /// Of the others.
    pub fn score(&mut self, samples: Vec<Sample>) -> Result<Vec<SampleScore>, TrainerError> {
        self.begin(samples)?;
        self.advance(|_| true)?;
        self.finish()
    }
}

fn shape_of(adapter: Option<&AdapterWeights>) -> AdapterShape {
    adapter.map_or(AdapterShape { sites: Vec::new() }, AdapterShape::of)
}

fn is_scored(sample: &Sample) -> bool {
    match sample {
        Sample::Supervised(_) | Sample::Preference { .. } | Sample::Rated { .. } => true,
        Sample::Rollout { .. } | Sample::Labelled { .. } | Sample::Scored { .. } => false,
    }
}

/// An estimate of the divergence KL(candidate ‖ base), in nats per token, from answers that the candidate sampled at
/// temperature 1: the mean over their tokens of `ln p(candidate) − ln p(base)`. Both are scores of the same answers, each a
/// supervised sample whose targets are the answer. NaN without tokens.
///
/// It is without bias, and so may be below zero where the two are near to each other.
pub fn divergence(candidate: &[SampleScore], base: &[SampleScore]) -> f64 {
    let sum = |scores: &[SampleScore]| scores.iter().map(SampleScore::logp).sum::<f64>();
    let n_tokens: usize = candidate.iter().map(|score| score.n_targets).sum();
    (sum(candidate) - sum(base)) / n_tokens as f64
}
