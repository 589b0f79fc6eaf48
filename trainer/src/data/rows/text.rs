//! Documents: `{"text": "…"}`.

use crate::data::{error::BadField, fields::Field, row::RowBody};

pub(in crate::data) fn read(row: &Field<'_>) -> Result<RowBody, BadField> {
    Ok(RowBody::Text(not_empty(&row.require("text")?)?))
}

/// A string with something in it.
pub(super) fn not_empty(field: &Field<'_>) -> Result<String, BadField> {
    let text = field.text()?;
    if text.trim().is_empty() {
        return Err(field.bad("a text", "an empty one"));
    }
    Ok(text.to_owned())
}
