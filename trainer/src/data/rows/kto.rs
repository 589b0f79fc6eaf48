//! Answers with a thumb up or down, no pairs:
//!
//! ```json
//! {"input": {"messages": [{"role": "user", "content": "…"}]}, "output": [{"role": "assistant", "content": "…"}],
//!  "label": true}
//! ```
//!
//! and TRL's `{"prompt": …, "completion": …, "label": true}`, each a list of messages or a string.

use super::messages;
use crate::data::{error::BadField, fields::Field, row::RowBody};

pub(in crate::data) const FIELDS: &[&str] = &["input", "prompt", "output", "completion", "label"];

pub(in crate::data) fn read(row: &Field<'_>) -> Result<RowBody, BadField> {
    let answer = row.get("output").or_else(|| row.get("completion"));
    Ok(RowBody::Rated {
        prompt: messages::prompt(row)?,
        completion: messages::answer(&answer.map_or_else(|| row.require("output"), Ok)?)?,
        desirable: row.require("label")?.bool()?,
    })
}
