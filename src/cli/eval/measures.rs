//! What scores of rows say of a generation, and how sure that is.

use std::fmt;

use pleach_trainer::{
    Sample, SampleScore, SequenceScores,
    gate::{GroupMean, mean_of_groups},
};
use serde::Serialize;

/// Outside an interval on either side: of 95 %.
const TAIL: f64 = 0.025;

/// Rows and which of them hang together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub(super) samples: &'a [Sample],
    pub(super) groups: &'a [u32],
}

/// Of one generation. Of pairs, all but `pairs_right` and `score` are about the preferred answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Measures {
    /// Mean negative log-probability of a target, nats.
    pub(super) loss: f64,
    /// `e` to the loss.
    pub(super) perplexity: f64,
    /// Share of targets that were the likeliest token.
    pub(super) accuracy: f64,
    /// Share of pairs whose preferred answer is the likelier one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pairs_right: Option<f64>,
    /// Mean score of a group, nats: per token, of pairs their margin.
    pub(super) score: Interval,
}

/// A mean and its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Interval {
    mean: f64,
    low: f64,
    high: f64,
}

/// Of two generations, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    /// Of scores, nats; above zero is better.
    score: Interval,
    /// Of the share of right tokens.
    accuracy: Interval,
    /// How likely so large a mean of scores is, in either direction, where there is no difference.
    p_value: f64,
}

impl From<GroupMean> for Interval {
    fn from(mean: GroupMean) -> Self {
        Self { mean: mean.mean, low: mean.lower_bound(TAIL), high: mean.upper_bound(TAIL) }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Interval { mean, low, high } = self.score;
        write!(f, "score {mean:+.4} [{low:+.4}, {high:+.4}]")?;
        match self.p_value {
            p if p < 0.001 => f.write_str(", p < 0.001")?,
            p => write!(f, ", p = {p:.3}")?,
        }
        let Interval { mean, low, high } = self.accuracy;
        let [mean, low, high] = [mean, low, high].map(|share| 100.0 * share);
        write!(f, "; accuracy {mean:+.1} [{low:+.1}, {high:+.1}] points")
    }
}

/// Targets of the answer that counts: how many, and how many of them were the likeliest token.
fn hits(score: &SampleScore) -> (f64, f64) {
    let answer = score.sequences.first();
    let hits = answer.map_or(0, |answer| answer.hits.iter().filter(|hit| **hit).count());
    (answer.map_or(0, |answer| answer.hits.len()) as f64, hits as f64)
}

impl Rows<'_> {
    pub(super) fn measures(&self, scores: &[SampleScore]) -> Measures {
        let (mut logp, mut weight, mut targets, mut right) = (0.0, 0.0, 0.0, 0.0);
        for score in scores {
            let total = score.sequences.first().map(SequenceScores::total).unwrap_or_default();
            logp += total.logp;
            weight += total.weight;
            let (of_row, hits) = hits(score);
            targets += of_row;
            right += hits;
        }
        let is_pair = |sample: &&Sample| matches!(sample, Sample::Preference { .. });
        let n_pairs = self.samples.iter().filter(is_pair).count();
        let in_order = scores.iter().filter(|score| score.score > 0.0).count();
        let loss = -logp / weight;
        Measures {
            loss,
            perplexity: loss.exp(),
            accuracy: right / targets,
            pairs_right: (n_pairs > 0).then(|| in_order as f64 / n_pairs as f64),
            score: self.mean(scores.iter().map(|score| score.score)).into(),
        }
    }

    /// Of `scores` less `baseline`.
    pub(super) fn difference(
        &self,
        scores: &[SampleScore],
        baseline: &[SampleScore],
    ) -> Difference {
        let pairs = || scores.iter().zip(baseline);
        let share = |score: &SampleScore| {
            let (targets, right) = hits(score);
            right / targets
        };
        let score = self.mean(pairs().map(|(a, b)| a.score - b.score));
        let one_sided = score.p_value(0.0);
        Difference {
            p_value: (2.0 * one_sided.min(1.0 - one_sided)).min(1.0),
            score: score.into(),
            accuracy: self.mean(pairs().map(|(a, b)| share(a) - share(b))).into(),
        }
    }

    fn mean(&self, values: impl Iterator<Item = f64>) -> GroupMean {
        mean_of_groups(self.groups.iter().copied().zip(values))
    }
}

#[cfg(test)]
mod tests {
    use pleach_trainer::Targeted;

    use super::*;

    fn scored(logps: &[f32], hits: &[bool]) -> SampleScore {
        let scores = SequenceScores {
            weights: vec![1.0; logps.len()],
            logps: logps.to_vec(),
            hits: hits.to_vec(),
            ..SequenceScores::default()
        };
        let mean = logps.iter().map(|logp| f64::from(*logp)).sum::<f64>() / logps.len() as f64;
        SampleScore { score: mean, n_targets: logps.len(), sequences: vec![scores] }
    }

    #[test]
    fn tokens_count_once_and_groups_once() {
        let sample = |n: usize| Sample::Supervised(Targeted::new(&vec![1; n], vec![true; n]));
        let samples = [sample(2), sample(3), sample(2)];
        let rows = Rows { samples: &samples, groups: &[1, 2, 2] };
        let worse = [
            scored(&[-2.0], &[false]),
            scored(&[-1.0, -3.0], &[true, false]),
            scored(&[-4.0], &[false]),
        ];
        let better = [
            scored(&[-1.0], &[true]),
            scored(&[-1.0, -1.0], &[true, true]),
            scored(&[-2.0], &[false]),
        ];
        let measures = rows.measures(&worse);
        assert!((measures.loss - 2.5).abs() < 1e-9 && (measures.accuracy - 0.25).abs() < 1e-9);
        assert!((measures.perplexity - 2.5f64.exp()).abs() < 1e-9);
        assert_eq!(measures.pairs_right, None);
        let difference = rows.difference(&better, &worse);
        // Groups: 1, and the mean of 1 and 2.
        assert!((difference.score.mean - 1.25).abs() < 1e-9);
        assert!((difference.accuracy.mean - 0.625).abs() < 1e-9);
        assert!(difference.score.low < 1.25 && difference.score.high > 1.25);
        let back = rows.difference(&worse, &better);
        assert!((back.p_value - difference.p_value).abs() < 1e-9);
        let text = difference.to_string();
        assert!(text.starts_with("score +1.2500 [") && text.contains("accuracy +62.5 ["), "{text}");
    }
}
