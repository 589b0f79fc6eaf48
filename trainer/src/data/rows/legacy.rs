//! The names that tools had before they were called so, in the words of today.

use serde_json::{Map, Value, json};

use crate::data::{error::BadField, fields::Field};

/// Field of a message: the one call, now an item of `tool_calls`.
pub(super) const CALL: &str = "function_call";
/// Role of the answer, now `tool`.
pub(super) const ROLE: &str = "function";
/// Field of a row: descriptions of functions, now items of `tools`.
pub(super) const TOOLS: &str = "functions";

/// Replaces `function_call` of a message by `tool_calls`.
pub(super) fn call(at: &Field<'_>, message: &mut Map<String, Value>) -> Result<(), BadField> {
    let Some(call) = at.get(CALL) else { return Ok(()) };
    call.require("name")?.text()?;
    if at.get("tool_calls").is_some() {
        return Err(call.bad("nothing beside tool_calls", "both"));
    }
    if at.require("role")?.text()? != "assistant" {
        return Err(call.bad("none: only the assistant calls tools", "one"));
    }
    message.shift_remove(CALL);
    let calls = json!([{"type": "function", "function": call.value()}]);
    message.insert("tool_calls".to_owned(), calls);
    Ok(())
}

/// `tools` for `functions`.
pub(super) fn tools(functions: &Field<'_>) -> Result<Value, BadField> {
    let mut tools = Vec::new();
    for function in functions.items()? {
        function.require("name")?.text()?;
        tools.push(json!({"type": "function", "function": function.value()}));
    }
    Ok(Value::Array(tools))
}
