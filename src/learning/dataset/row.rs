//! One row, and whether it can be trained on.

use std::{collections::BTreeSet, io::Cursor};

use pleach_trainer::data::{ReadLimits, RowReader};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::training::Method;

use super::Answered;

/// A row to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct DataRow {
    /// Which method learns from it.
    pub method: Method,
    /// As the file has it.
    pub value: Value,
    /// Rows of a group are never on both sides of a fold: the user's who judged (of several the first: all rows of those who
    /// judge together would be one), else the episode's, else the completion's. See [`super::groups`].
    pub group: String,
    /// Completions that it is made of.
    pub completions: BTreeSet<String>,
    /// Feedback that it is made of.
    pub feedback: BTreeSet<String>,
}

impl DataRow {
    /// Where it stands among others: a hash of what it is made of, so that nobody chooses the place.
    pub(super) fn order(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for id in self.completions.iter().chain(&self.feedback) {
            hash.update(id);
            hash.update([0]);
        }
        hash.update(self.value.to_string());
        hash.finalize().into()
    }
}

/// What is learned from, by method.
pub(super) enum Lesson<'a> {
    /// The answer that should have been given.
    Demonstrated(&'a str),
    /// A better and a worse answer.
    Pair { better: &'a str, worse: &'a str },
    /// An answer, and whether it was liked.
    Rated { answer: &'a str, good: bool },
}

impl Lesson<'_> {
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Demonstrated(_) => Method::Supervised,
            Self::Pair { .. } => Method::Dpo,
            Self::Rated { .. } => Method::Kto,
        }
    }

    /// The row, as the trainer's reader wants it; `None` if it cannot be trained on.
    pub(super) fn row(&self, asked: &Answered) -> Option<Value> {
        let answer = |text: &str| json!({"role": "assistant", "content": text});
        let is_empty = |text: &str| text.trim().is_empty();
        let value = match *self {
            Self::Demonstrated(text) => {
                if is_empty(text) {
                    return None;
                }
                let mut messages: Vec<Value> = asked.messages.iter().map(untrained).collect();
                messages.push(answer(text));
                let mut row = Map::new();
                row.insert("messages".to_owned(), Value::Array(messages));
                if let Some(tools) = &asked.tools {
                    row.insert("tools".to_owned(), tools.clone());
                }
                Value::Object(row)
            }
            Self::Pair { better, worse } => {
                if is_empty(better) || is_empty(worse) || better == worse {
                    return None;
                }
                json!({
                    "input": input(asked),
                    "preferred_output": [answer(better)],
                    "non_preferred_output": [answer(worse)],
                })
            }
            Self::Rated { answer: text, good } => {
                if is_empty(text) {
                    return None;
                }
                json!({"input": input(asked), "output": [answer(text)], "label": good})
            }
        };
        is_readable(&value).then_some(value)
    }
}

fn input(asked: &Answered) -> Value {
    let mut input = Map::new();
    input.insert("messages".to_owned(), Value::Array(asked.messages.clone()));
    if let Some(tools) = &asked.tools {
        input.insert("tools".to_owned(), tools.clone());
    }
    Value::Object(input)
}

/// A message that was there before: what the assistant said then is not what is learned.
fn untrained(message: &Value) -> Value {
    let mut message = message.clone();
    if message["role"] == "assistant"
        && let Value::Object(fields) = &mut message
    {
        fields.insert("weight".to_owned(), json!(0));
    }
    message
}

/// Whether the trainer's reader takes it.
pub(super) fn is_readable(row: &Value) -> bool {
    let mut rows = RowReader::new(Cursor::new(row.to_string()), None, ReadLimits::default());
    matches!(rows.next(), Some(Ok(_)))
}
