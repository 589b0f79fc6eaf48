//! What is trained on: token ids and which of them are targets.

use std::sync::Arc;

/// A run of target tokens of one weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetSpan {
    /// Index of the first target, at least 1: a target is predicted from what precedes it.
    pub start: u32,
    /// Index after the last.
    pub end: u32,
    /// Factor of the loss of each; no unit.
    pub weight: f32,
}

/// A sequence and its targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Token ids, `[T]`.
    pub ids: Box<[u32]>,
    /// Sorted, not empty ones, without overlap.
    pub spans: Box<[TargetSpan]>,
}

impl Example {
    /// An example; spans are cut at the borders of the sequence, and empty ones are left out.
    pub fn new(ids: Vec<u32>, spans: impl IntoIterator<Item = TargetSpan>) -> Self {
        let n_ids = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let inside = |span: TargetSpan| TargetSpan {
            start: span.start.max(1),
            end: span.end.min(n_ids),
            ..span
        };
        let mut spans: Vec<TargetSpan> =
            spans.into_iter().map(inside).filter(|span| span.start < span.end).collect();
        spans.sort_unstable_by_key(|span| span.start);
        debug_assert!(spans.windows(2).all(|pair| pair[0].end <= pair[1].start));
        Self { ids: ids.into(), spans: spans.into() }
    }

    /// Number of targets.
    pub fn n_targets(&self) -> usize {
        self.spans.iter().map(|span| (span.end - span.start) as usize).sum()
    }

    /// Index of every target in `ids` and its weight, in order.
    pub fn targets(&self) -> impl Iterator<Item = (usize, f32)> {
        self.spans
            .iter()
            .flat_map(|span| (span.start..span.end).map(|index| (index as usize, span.weight)))
    }

    /// Whether each token is a target, `[T]`.
    pub fn mask(&self) -> Vec<bool> {
        let mut mask = vec![false; self.ids.len()];
        for (index, _) in self.targets() {
            mask[index] = true;
        }
        mask
    }

    /// The answer's targets after another prompt: the tokens of `prompt` before its first target, then those of
    /// `self` from its first target on. KTO estimates its KL divergence from such mismatched rows.
    #[must_use]
    pub fn after_prompt_of(&self, prompt: &Self) -> Self {
        let start =
            |example: &Self| example.spans.first().map_or(example.ids.len(), |s| s.start as usize);
        let (prompt_end, answer) = (start(prompt), start(self));
        let ids = [&prompt.ids[..prompt_end], &self.ids[answer..]].concat();
        let moved = |index: u32| index - index_of(answer) + index_of(prompt_end);
        let spans = self.spans.iter().map(|span| TargetSpan {
            start: moved(span.start),
            end: moved(span.end),
            weight: span.weight,
        });
        Self::new(ids, spans.collect::<Vec<_>>())
    }

    /// Without its first `n` tokens. What would be its first token cannot be a target.
    pub(super) fn without_first(&self, n: usize) -> Self {
        let n = n.min(self.ids.len());
        let moved = |index: u32| index.saturating_sub(index_of(n));
        let spans = self.spans.iter().map(|span| TargetSpan {
            start: moved(span.start),
            end: moved(span.end),
            weight: span.weight,
        });
        Self::new(self.ids[n..].to_vec(), spans.collect::<Vec<_>>())
    }
}

/// Sequences are far shorter than 2^32: a line has at most as many tokens as bytes.
fn index_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What a row became: what an objective takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// To be predicted: a chat's answers, or text.
    Supervised(Example),
    /// Two answers to one prompt; their targets are the answers.
    Preference {
        /// The better one.
        preferred: Example,
        /// The worse one.
        rejected: Example,
    },
    /// An answer and whether it was liked.
    Rated {
        /// Its targets are the answer.
        example: Example,
        /// Thumbs up.
        desirable: bool,
    },
    /// To be answered, and the answers judged.
    Prompt {
        /// Token ids up to where the answer begins.
        ids: Box<[u32]>,
        /// What the grader may read: a JSON object.
        fields: Box<str>,
    },
    /// To be classified, at the last token.
    Labelled {
        /// Token ids.
        ids: Box<[u32]>,
        /// The class.
        label: Arc<str>,
    },
    /// To be given a number, at the last token.
    Scored {
        /// Token ids.
        ids: Box<[u32]>,
        /// The number.
        score: f32,
    },
}

impl Record {
    /// Tokens that a pass over this record takes: those of both answers of a pair.
    pub fn n_tokens(&self) -> usize {
        match self {
            Self::Supervised(example) | Self::Rated { example, .. } => example.ids.len(),
            Self::Preference { preferred, rejected } => preferred.ids.len() + rejected.ids.len(),
            Self::Prompt { ids, .. } | Self::Labelled { ids, .. } | Self::Scored { ids, .. } => {
                ids.len()
            }
        }
    }

    /// Targets of all its examples; 0 for records without.
    pub fn n_targets(&self) -> usize {
        match self {
            Self::Supervised(example) | Self::Rated { example, .. } => example.n_targets(),
            Self::Preference { preferred, rejected } => {
                preferred.n_targets() + rejected.n_targets()
            }
            Self::Prompt { .. } | Self::Labelled { .. } | Self::Scored { .. } => 0,
        }
    }
}
