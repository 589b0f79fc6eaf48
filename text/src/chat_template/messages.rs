//! Messages of the `OpenAI` API as templates expect them.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::TemplateError;

/// Parts of one message are joined with this, as other servers do.
const PART_SEPARATOR: &str = "\n";

/// Checks each message and changes what templates don't know: lists of parts, and arguments as text.
pub(super) fn prepared(messages: &[Value]) -> Result<Vec<Cow<'_, Value>>, TemplateError> {
    messages.iter().enumerate().map(|(index, message)| prepared_one(index, message)).collect()
}

fn prepared_one(index: usize, message: &Value) -> Result<Cow<'_, Value>, TemplateError> {
    let bad = |reason: String| TemplateError::BadMessage { index, reason };
    let Value::Object(fields) = message else {
        return Err(bad(format!("must be an object, not {}", kind(message))));
    };
    match fields.get("role") {
        Some(Value::String(_)) => {}
        Some(other) => return Err(bad(format!("role must be a string, not {}", kind(other)))),
        None => return Err(bad("role is missing".to_owned())),
    }
    let calls_tools =
        fields.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    let content = match fields.get("content") {
        Some(Value::String(_)) if !calls_tools => return Ok(Cow::Borrowed(message)),
        Some(Value::String(text)) => Value::String(text.clone()),
        Some(Value::Array(parts)) => Value::String(joined(index, parts)?),
        // Templates tell a message that only calls tools by its content, which is none.
        None | Some(Value::Null) if calls_tools => Value::Null,
        None | Some(Value::Null) => Value::String(String::new()),
        Some(other) => {
            return Err(bad(format!(
                "content must be a string or a list of parts, not {}",
                kind(other)
            )));
        }
    };
    let mut fields = fields.clone();
    fields.insert("content".to_owned(), content);
    if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
        calls.iter_mut().for_each(parse_arguments);
    }
    Ok(Cow::Owned(Value::Object(fields)))
}

fn joined(index: usize, parts: &[Value]) -> Result<String, TemplateError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (part, value) in parts.iter().enumerate() {
        match (
            value.get("type").and_then(Value::as_str),
            value.get("text").and_then(Value::as_str),
            value,
        ) {
            (_, _, Value::String(text)) => texts.push(text.as_str()),
            (Some("text"), Some(text), _) => texts.push(text),
            (Some("text"), None, _) => {
                return Err(TemplateError::BadMessage {
                    index,
                    reason: format!("content[{part}].text is missing"),
                });
            }
            (Some(other), ..) => {
                return Err(TemplateError::UnsupportedPart { index, part, kind: other.to_owned() });
            }
            (None, ..) => {
                return Err(TemplateError::BadMessage {
                    index,
                    reason: format!("content[{part}].type is missing"),
                });
            }
        }
    }
    Ok(texts.join(PART_SEPARATOR))
}

/// The API has a call's arguments as JSON in a string, templates want the object. Text that isn't an object stays.
fn parse_arguments(call: &mut Value) {
    let Some(arguments) =
        call.get_mut("function").and_then(|function| function.get_mut("arguments"))
    else {
        return;
    };
    if let Some(text) = arguments.as_str() {
        let parsed =
            if text.trim().is_empty() { Ok(Map::new()) } else { serde_json::from_str(text) };
        if let Ok(object) = parsed {
            *arguments = Value::Object(object);
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
