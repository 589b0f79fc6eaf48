//! What a batch consists of.

use std::borrow::Cow;

use crate::data::{Example, Record};

/// A sequence of tokens and the weight of each as a target; 0 where it is none. The first token can be no target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targeted {
    /// Token ids, `[T]`.
    pub tokens: Box<[u32]>,
    /// `[T]`, finite, no unit.
    pub weights: Box<[f32]>,
}

impl Targeted {
    /// A sequence whose flagged tokens are targets of weight 1.
    ///
    /// # Panics
    /// When there are not as many flags as tokens.
    pub fn new(tokens: &[u32], is_target: impl IntoIterator<Item = bool>) -> Self {
        let weights: Box<[f32]> =
            is_target.into_iter().map(|flag| f32::from(u8::from(flag))).collect();
        assert_eq!(tokens.len(), weights.len(), "one flag per token");
        Self { tokens: tokens.into(), weights }
    }

    /// A text of which no token is a target.
    pub(crate) fn untargeted(tokens: &[u32]) -> Self {
        Self { tokens: tokens.into(), weights: vec![0.0; tokens.len()].into() }
    }

    /// Whether each token is a target.
    pub fn mask(&self) -> Vec<bool> {
        self.weights.iter().enumerate().map(|(i, weight)| i > 0 && *weight != 0.0).collect()
    }

    /// Weights of the targets, in order.
    pub(crate) fn target_weights(&self) -> impl Iterator<Item = f32> {
        self.weights.iter().skip(1).copied().filter(|weight| *weight != 0.0)
    }

    /// The answer of `self`, from its first target on, behind the prompt of `other`: what KTO estimates a KL divergence
    /// from.
    #[must_use]
    pub fn after_prompt_of(&self, other: &Self) -> Self {
        let prompt = |sequence: &Self| {
            sequence.mask().iter().position(|flag| *flag).unwrap_or(sequence.tokens.len())
        };
        let (prompt_end, answer) = (prompt(other), prompt(self));
        let tokens = [&other.tokens[..prompt_end], &self.tokens[answer..]].concat();
        let mut weights = vec![0.0; prompt_end];
        weights.extend_from_slice(&self.weights[answer..]);
        Self { tokens: tokens.into(), weights: weights.into() }
    }
}

impl From<&Example> for Targeted {
    fn from(example: &Example) -> Self {
        let mut weights = vec![0.0; example.ids.len()];
        for (index, weight) in example.targets() {
            weights[index] = weight;
        }
        Self { tokens: example.ids.clone(), weights: weights.into() }
    }
}

/// What a batch consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// Targets to be predicted.
    Supervised(Targeted),
    /// Two answers to one prompt; their targets are the answers.
    Preference {
        /// The better one.
        preferred: Targeted,
        /// The worse one.
        rejected: Targeted,
    },
    /// An answer and whether it was liked; its targets are the answer.
    Rated {
        /// Prompt and answer.
        answer: Targeted,
        /// Thumbs up.
        desirable: bool,
    },
    /// An answer that an earlier generation sampled, and how much better than usual it was; its targets are the answer.
    Rollout {
        /// Prompt and answer.
        answer: Targeted,
        /// Log-probability of every target when it was sampled, in their order.
        sampled_logps: Box<[f32]>,
        /// Of all its targets.
        advantage: f32,
    },
    /// A text and its class.
    Labelled {
        /// Token ids; the last one's hidden state is classified.
        tokens: Box<[u32]>,
        /// The class, from 0.
        label: usize,
        /// Factor of its loss: that of its class, for example.
        weight: f32,
    },
    /// A text and its number.
    Scored {
        /// Token ids, at the last of which the number is read.
        tokens: Box<[u32]>,
        /// The number.
        score: f32,
    },
}

impl Sample {
    /// The sample of a record. `class` gives a label its number and the weight of its class. `None` for a prompt without an
    /// answer and for a label without a number.
    pub fn of_record(
        record: &Record,
        class: impl Fn(&str) -> Option<(usize, f32)>,
    ) -> Option<Self> {
        Some(match record {
            Record::Supervised(example) => Self::Supervised(example.into()),
            Record::Preference { preferred, rejected } => {
                Self::Preference { preferred: preferred.into(), rejected: rejected.into() }
            }
            Record::Rated { example, desirable } => {
                Self::Rated { answer: example.into(), desirable: *desirable }
            }
            Record::Labelled { ids, label } => {
                let (label, weight) = class(label)?;
                Self::Labelled { tokens: ids.clone(), label, weight }
            }
            Record::Scored { ids, score } => Self::Scored { tokens: ids.clone(), score: *score },
            Record::Prompt { .. } => return None,
        })
    }

    /// In words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Supervised(_) => "a supervised sequence",
            Self::Preference { .. } => "a preference pair",
            Self::Rated { .. } => "a rated answer",
            Self::Rollout { .. } => "a rollout",
            Self::Labelled { .. } => "a labelled text",
            Self::Scored { .. } => "a scored text",
        }
    }

    /// The sequences that gradients flow through.
    pub(crate) fn sequences(&self) -> Vec<Cow<'_, Targeted>> {
        match self {
            Self::Supervised(sequence)
            | Self::Rated { answer: sequence, .. }
            | Self::Rollout { answer: sequence, .. } => vec![Cow::Borrowed(sequence)],
            Self::Preference { preferred, rejected } => {
                vec![Cow::Borrowed(preferred), Cow::Borrowed(rejected)]
            }
            Self::Labelled { tokens, .. } | Self::Scored { tokens, .. } => {
                vec![Cow::Owned(Targeted::untargeted(tokens))]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TargetSpan;

    #[test]
    fn an_answer_moves_behind_another_prompt() {
        let sequence = |tokens: &[u32], first: usize| {
            Targeted::new(tokens, (0..tokens.len()).map(|i| i >= first))
        };
        let moved = sequence(&[1, 2, 30, 31], 2).after_prompt_of(&sequence(&[5, 6, 7, 40], 3));
        assert_eq!(moved, sequence(&[5, 6, 7, 30, 31], 3));
    }

    #[test]
    fn examples_keep_their_weights() {
        let spans = [
            TargetSpan { start: 1, end: 2, weight: 1.0 },
            TargetSpan { start: 3, end: 4, weight: 0.5 },
        ];
        let found = Targeted::from(&Example::new(vec![7, 8, 9, 10], spans));
        assert_eq!(
            (&*found.tokens, &*found.weights),
            (&[7, 8, 9, 10][..], &[0.0, 1.0, 0.0, 0.5][..])
        );
        assert_eq!(found.mask(), [false, true, false, true]);
    }

    #[test]
    fn records_become_samples() {
        let class = |label: &str| (label == "spam").then_some((1, 2.5));
        let labelled = |label: &str| Record::Labelled { ids: [4, 5].into(), label: label.into() };
        let expected = Sample::Labelled { tokens: [4, 5].into(), label: 1, weight: 2.5 };
        assert_eq!(Sample::of_record(&labelled("spam"), class), Some(expected));
        assert_eq!(Sample::of_record(&labelled("other"), class), None);
        let span = TargetSpan { start: 1, end: 2, weight: 1.0 };
        let example = Example::new(vec![7, 8], [span]);
        let rated = Record::Rated { example: example.clone(), desirable: true };
        let expected = Sample::Rated { answer: (&example).into(), desirable: true };
        assert_eq!(Sample::of_record(&rated, class), Some(expected));
        let prompt = Record::Prompt { ids: [1].into(), fields: "{}".into() };
        assert_eq!(Sample::of_record(&prompt, class), None);
    }
}
