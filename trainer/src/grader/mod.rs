//! What an answer is worth: `OpenAI`'s graders, as far as they can be run here. A grader is read once, with all that can be
//! wrong about it, and then is a function of a row of the data and an answer.
//!
//! | type | reward |
//! |---|---|
//! | `string_check` | 1 where the input is (`eq`), is not (`ne`) or contains (`like`; `ilike`: whatever the case) the reference, else 0 |
//! | `text_similarity` | 0 to 1, see [`Metric`] |
//! | `multi` | what a formula makes of the others' rewards |
//!
//! Others are refused by name: `python` would run foreign code in the serving process, and models that judge are asked by
//! nobody here.

mod formula;
mod formula_reader;
mod read;
mod similarity;
mod template;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub use formula::Formula;
pub use similarity::Metric;
pub use template::Template;

/// Why a grader cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraderError {
    /// Something is wrong with it.
    #[error("{place}: {reason}")]
    Invalid {
        /// Which field.
        place: String,
        /// Why.
        reason: String,
    },
    /// It is of a kind that is not offered here.
    #[error("{place} is not supported{hint}")]
    Unsupported {
        /// Which field.
        place: String,
        /// What to do instead, with a leading separator.
        hint: &'static str,
    },
}

/// How a string is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Equal,
    NotEqual,
    Contains,
    ContainsAnyCase,
}

/// A grader, see the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Grader {
    name: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    StringCheck {
        operation: Operation,
        input: Template,
        reference: Template,
    },
    TextSimilarity {
        metric: Metric,
        input: Template,
        reference: Template,
    },
    /// Graders by the names that the formula has for them.
    Multi {
        graders: Vec<(String, Grader)>,
        formula: Formula,
    },
}

/// What came of grading. The reward is finite; where something went wrong it is 0 for that part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graded {
    /// What the answer is worth.
    pub reward: f64,
    /// Of a `multi`, what each of its graders said.
    pub sub_rewards: Vec<(String, f64)>,
    /// A variable that the row has not, such as `item.reference`.
    pub missing: Option<String>,
    /// A part of `sample.output_json` was asked for, and the answer is not JSON, or has no such part.
    pub is_unparsed: bool,
    /// A text was cut before it was compared.
    pub is_truncated: bool,
    /// The formula came to no finite number.
    pub is_not_finite: bool,
}

/// An answer, as templates see it.
#[derive(Debug)]
struct Answer<'a> {
    text: &'a str,
    /// Its text as JSON, if it is that.
    json: Option<Value>,
}

impl Grader {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As its `type` is written.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::StringCheck { .. } => "string_check",
            Kind::TextSimilarity { .. } => "text_similarity",
            Kind::Multi { .. } => "multi",
        }
    }

    /// The first variable of a row, such as `item.reference`, that it reads and `item` has not.
    pub fn missing_from(&self, item: &Map<String, Value>) -> Option<String> {
        match &self.kind {
            Kind::StringCheck { input, reference, .. }
            | Kind::TextSimilarity { input, reference, .. } => {
                input.missing_from(item).or_else(|| reference.missing_from(item))
            }
            Kind::Multi { graders, .. } => {
                graders.iter().find_map(|(_, grader)| grader.missing_from(item))
            }
        }
    }

    /// Grades the answer `text` to the row `item`.
    pub fn grade(&self, item: &Map<String, Value>, text: &str) -> Graded {
        let json = if self.reads_json() { serde_json::from_str(text).ok() } else { None };
        self.grade_answer(item, &Answer { text, json })
    }

    fn reads_json(&self) -> bool {
        match &self.kind {
            Kind::StringCheck { input, reference, .. }
            | Kind::TextSimilarity { input, reference, .. } => {
                input.reads_json() || reference.reads_json()
            }
            Kind::Multi { graders, .. } => graders.iter().any(|(_, grader)| grader.reads_json()),
        }
    }

    fn grade_answer(&self, item: &Map<String, Value>, answer: &Answer<'_>) -> Graded {
        let mut graded = Graded::default();
        match &self.kind {
            Kind::StringCheck { operation, input, reference } => {
                let texts = (input.fill(item, answer), reference.fill(item, answer));
                if let Some((input, reference)) = graded.take(texts) {
                    graded.reward = f64::from(u8::from(operation.holds(&input, &reference)));
                }
            }
            Kind::TextSimilarity { metric, input, reference } => {
                let texts = (input.fill(item, answer), reference.fill(item, answer));
                if let Some((input, reference)) = graded.take(texts) {
                    (graded.reward, graded.is_truncated) = metric.of(&input, &reference);
                }
            }
            Kind::Multi { graders, formula } => {
                for (name, grader) in graders {
                    let part = grader.grade_answer(item, answer);
                    graded.missing = graded.missing.or(part.missing);
                    graded.is_unparsed |= part.is_unparsed;
                    graded.is_truncated |= part.is_truncated;
                    graded.sub_rewards.push((name.clone(), part.reward));
                }
                let rewards: Vec<f64> =
                    graded.sub_rewards.iter().map(|(_, reward)| *reward).collect();
                let reward = formula.value(&rewards);
                graded.is_not_finite = !reward.is_finite();
                graded.reward = if graded.is_not_finite { 0.0 } else { reward };
            }
        }
        graded
    }
}

impl Graded {
    /// Both texts, or what is wrong with one.
    fn take(
        &mut self,
        (input, reference): (Result<String, Unfilled>, Result<String, Unfilled>),
    ) -> Option<(String, String)> {
        match (input, reference) {
            (Ok(input), Ok(reference)) => Some((input, reference)),
            (Err(unfilled), _) | (_, Err(unfilled)) => {
                match unfilled {
                    Unfilled::Missing(name) => self.missing = Some(name),
                    Unfilled::Unparsed => self.is_unparsed = true,
                }
                None
            }
        }
    }
}

/// Why a template has no text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unfilled {
    /// The row has no such variable.
    Missing(String),
    /// The answer has no such part.
    Unparsed,
}

impl Operation {
    fn holds(self, input: &str, reference: &str) -> bool {
        match self {
            Self::Equal => input == reference,
            Self::NotEqual => input != reference,
            Self::Contains => input.contains(reference),
            Self::ContainsAnyCase => input.to_lowercase().contains(&reference.to_lowercase()),
        }
    }
}
