//! The formats of rows, and how a file's is told from its first row.

use serde_json::Value;

use super::{
    error::{BadField, DataError},
    fields::Field,
    row::RowBody,
    rows,
};

/// What the lines of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `OpenAI` supervised fine-tuning: `messages`, of which the assistant's are learned.
    Supervised,
    /// Pairs: `OpenAI` DPO, `input`, `preferred_output`, `non_preferred_output`; or TRL's `prompt`, `chosen`,
    /// `rejected`.
    Preference,
    /// Thumbs: `input`, `output`, `label`; or TRL's `prompt`, `completion`, `label`.
    Kto,
    /// `OpenAI` reinforcement fine-tuning: `messages` that end with a question, and fields for the grader.
    Reinforcement,
    /// Documents: `text`.
    Text,
    /// `text` and `label`.
    Classification,
    /// `text` and `score`.
    Regression,
}

/// What [`Format::detect`] looks for.
const KNOWN: &str = "messages; input, preferred_output, non_preferred_output; input, output, label; prompt, completion, \
                     label; prompt, chosen, rejected; text; text, label; or text, score";

impl Format {
    /// The format of a row, told by the fields it has. Rows with `messages` are [`Format::Supervised`] if the last
    /// one is the assistant's or says nothing else, [`Format::Reinforcement`] if it asks.
    ///
    /// # Errors
    /// [`DataError::UnknownFormat`].
    pub fn detect(line: u64, row: &Value) -> Result<Self, DataError> {
        let has = |name: &str| row.get(name).is_some();
        if has("messages") {
            let last = row["messages"].as_array().and_then(|messages| messages.last());
            let asks = last.is_some_and(|last| last["role"] == "user");
            return Ok(if asks { Self::Reinforcement } else { Self::Supervised });
        }
        let pair = ["preferred_output", "preferred_completion", "chosen"].into_iter().any(has);
        let asked = has("input") || has("prompt");
        let answered = has("output") || has("completion");
        Ok(match () {
            () if asked && pair => Self::Preference,
            () if asked && answered && has("label") => Self::Kto,
            () if has("text") && has("label") => Self::Classification,
            () if has("text") && has("score") => Self::Regression,
            () if has("text") => Self::Text,
            () => {
                let names = row.as_object().map(|row| row.keys().cloned().collect::<Vec<_>>());
                let fields = match names {
                    Some(names) if !names.is_empty() => names.join(", "),
                    Some(_) => "of an empty object".to_owned(),
                    None => "of something that is no object".to_owned(),
                };
                return Err(DataError::UnknownFormat { line, fields, expected: KNOWN });
            }
        })
    }

    /// Fields that rows of this format have besides those of [`Origin`](super::Origin); `None` if any is allowed.
    pub(super) fn fields(self) -> Option<&'static [&'static str]> {
        Some(match self {
            Self::Supervised => rows::chat::FIELDS,
            Self::Preference => rows::preference::FIELDS,
            Self::Kto => rows::kto::FIELDS,
            Self::Reinforcement => return None,
            Self::Text => &["text"],
            Self::Classification => &["text", "label"],
            Self::Regression => &["text", "score"],
        })
    }

    /// Reads a row.
    pub(super) fn read(self, row: &Field<'_>) -> Result<RowBody, BadField> {
        match self {
            Self::Supervised => rows::chat::read(row),
            Self::Preference => rows::preference::read(row),
            Self::Kto => rows::kto::read(row),
            Self::Reinforcement => rows::reinforcement::read(row),
            Self::Text => rows::text::read(row),
            Self::Classification => rows::labels::classification(row),
            Self::Regression => rows::labels::regression(row),
        }
    }
}
