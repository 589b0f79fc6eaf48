//! The fields that say where a row came from.

use serde_json::Value;

use crate::data::{error::BadField, fields::Field, row::Origin};

/// In every format.
pub(in crate::data) const FIELDS: &[&str] = &["user", "conversation", "group", "rater", "trusted"];

pub(in crate::data) fn read(row: &Field<'_>) -> Result<Origin, BadField> {
    let name = |field: &str| row.get(field).map(|at| id(&at)).transpose();
    Ok(Origin {
        user: name("user")?,
        conversation: name("conversation")?,
        group: name("group")?,
        rater: name("rater")?,
        trusted: row.get("trusted").map(|at| at.bool()).transpose()?.unwrap_or(false),
    })
}

fn id(at: &Field<'_>) -> Result<String, BadField> {
    match at.value() {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(at.wrong("a string or a number"))
        }
    }
}
