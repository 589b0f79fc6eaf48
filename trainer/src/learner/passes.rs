//! What a step puts into passes of the engine, and what it takes out of them.

use std::{ops::Range, sync::Arc};

use pleach_engine::train::{MicroBatch, Purpose, Slopes};

use crate::{
    error::TrainerError,
    objective::{Asked, Kto, Outcome, SequenceScores, Targeted},
};

use super::{
    Learner,
    step::{Model, Step, Task},
};

/// Every target of a sequence, and after it the tokens of the teacher there.
fn candidates(sequence: &Targeted, scores: &SequenceScores) -> Vec<(usize, u32)> {
    let n_targets = scores.weights.len().max(1);
    let mut likely = scores.teacher.chunks_exact((scores.teacher.len() / n_targets).max(1));
    let mut candidates = Vec::with_capacity(n_targets + scores.teacher.len());
    for (index, _) in sequence.mask().iter().enumerate().filter(|(_, is_target)| **is_target) {
        candidates.push((index - 1, sequence.tokens[index]));
        let tokens = likely.next().unwrap_or(&[]).iter();
        candidates.extend(tokens.map(|likely| (index - 1, likely.token)));
    }
    candidates
}

impl Step {
    /// Begins the pass of a task; a backward half was begun when its forward half was done.
    pub(super) fn begin_pass(
        &self,
        learner: &mut Learner,
        task: &Task,
    ) -> Result<(), TrainerError> {
        let (sequences, model, learns) = match task {
            Task::Score { sequences, model } => (sequences.clone(), *model, false),
            Task::Learn { samples } => (self.sequences_of(samples), Model::Policy, true),
            Task::Backward
            | Task::Tally
            | Task::Norm { .. }
            | Task::Judge
            | Task::Update { .. }
            | Task::UpdateHead => return Ok(()),
        };
        let adapter = match model {
            Model::Policy => Some(Arc::clone(&learner.adapter)),
            Model::Reference => learner.reference.clone(),
        };
        let asks = self.objective.asks();
        let purpose = match (asks, model) {
            _ if learns => Purpose::Learn { dropout: learner.dropout() },
            (Asked::Candidates { top_k }, Model::Reference) => Purpose::Rank { top_k },
            _ => Purpose::Score,
        };
        let mut batch = MicroBatch::default();
        for index in sequences {
            let (sequence, scores) = (&self.sequences[index], &self.scores[index]);
            let stream = if learns { learner.next_stream() } else { 0 };
            match (asks, model) {
                (Asked::Outputs, _) => batch.push_feature(&sequence.tokens, stream),
                (Asked::Candidates { .. }, Model::Policy) => {
                    batch.push_candidates(&sequence.tokens, candidates(sequence, scores), stream);
                }
                _ => batch.push(&sequence.tokens, &sequence.mask(), stream),
            }
        }
        learner.pass.begin(batch, adapter, purpose)?;
        Ok(())
    }

    pub(super) fn sequences_of(&self, samples: &Range<usize>) -> Range<usize> {
        self.sample_indptr[samples.start]..self.sample_indptr[samples.end]
    }

    /// Scores of the pass that was just done.
    pub(super) fn take_scores(
        &mut self,
        learner: &Learner,
        sequences: Range<usize>,
        model: Model,
    ) -> Result<(), TrainerError> {
        let (pass, n_own) = (&learner.pass, self.n_own());
        let (logps, hits, likeliest) = (pass.logps()?, pass.hits()?, pass.likeliest()?);
        self.report.rows += pass.batch().n_rows();
        let top_k = likeliest.len() / pass.batch().head_rows().len().max(1);
        for (place, index) in sequences.enumerate() {
            let scores = &mut self.scores[index];
            if let (Asked::Outputs, Some(head)) = (self.objective.asks(), &learner.head) {
                scores.outputs = head.outputs(pass.feature(place)?);
                continue;
            }
            let targets = pass.batch().targets_of(place);
            let of_sequence = logps[targets.clone()].to_vec();
            match model {
                Model::Policy => {
                    let per_target = of_sequence.len() / scores.weights.len().max(1);
                    scores.logps = of_sequence;
                    scores.hits =
                        hits[targets].iter().copied().step_by(per_target.max(1)).collect();
                    if index < n_own {
                        self.hits += scores.hits.iter().filter(|hit| **hit).count();
                    }
                }
                Model::Reference => {
                    scores.reference = of_sequence;
                    // Targets and rows that go through the head are the same there.
                    scores.teacher = likeliest[targets.start * top_k..targets.end * top_k].to_vec();
                }
            }
        }
        Ok(())
    }

    /// KTO's estimate, from the mismatched sequences.
    pub(super) fn divergence(&self) -> f64 {
        let totals = self.scores[self.n_own()..].iter().map(SequenceScores::total);
        Kto::divergence(&totals.map(|total| total.logp - total.reference).collect::<Vec<_>>())
    }

    pub(super) fn outcome(&self, sample: usize) -> Outcome {
        let scores = &self.scores[self.sequences_of(&(sample..sample + 1))];
        self.objective.outcome(&self.batch[sample], scores, self.facts)
    }

    /// Begins the backward half of the pass over some samples that was just scored.
    pub(super) fn begin_backward(
        &self,
        learner: &mut Learner,
        samples: Range<usize>,
    ) -> Result<(), TrainerError> {
        let slopes: Vec<Vec<f32>> =
            samples.flat_map(|sample| self.outcome(sample).slopes).collect();
        let gradients = std::mem::take(&mut learner.gradients);
        let Some(head) = &learner.head else {
            let logps = slopes.concat();
            learner.pass.begin_backward(Slopes { logps: &logps, features: &[] }, gradients)?;
            return Ok(());
        };
        let mut features = Vec::new();
        for (place, slopes) in slopes.iter().enumerate() {
            let feature = learner.pass.feature(place)?;
            features.extend(head.backward(feature, slopes, &mut learner.head_gradient));
        }
        learner.pass.begin_backward(Slopes { logps: &[], features: &features }, gradients)?;
        Ok(())
    }
}
