//! Texts with a class, `{"text": "…", "label": "sports"}`, or a number, `{"text": "…", "score": 0.5}`.

use serde_json::Value;

use super::text::not_empty;
use crate::data::{error::BadField, fields::Field, row::RowBody};

/// The label is a string; whole numbers and booleans are taken as their text.
pub(in crate::data) fn classification(row: &Field<'_>) -> Result<RowBody, BadField> {
    let at = row.require("label")?;
    let label = match at.value() {
        Value::String(_) => not_empty(&at)?,
        Value::Bool(label) => label.to_string(),
        Value::Number(label) if label.is_i64() || label.is_u64() => label.to_string(),
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err(at.wrong("a string, a whole number or a boolean"));
        }
    };
    Ok(RowBody::Labelled { text: not_empty(&row.require("text")?)?, label })
}

pub(in crate::data) fn regression(row: &Field<'_>) -> Result<RowBody, BadField> {
    let at = row.require("score")?;
    #[expect(clippy::cast_possible_truncation, reason = "what doesn't fit becomes infinite")]
    let score = at.number()? as f32;
    if !score.is_finite() {
        return Err(at.bad("a number of 32 bits", "a larger one"));
    }
    Ok(RowBody::Scored { text: not_empty(&row.require("text")?)?, score })
}
