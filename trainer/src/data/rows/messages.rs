//! Messages, which all formats of chats share.

use serde_json::{Map, Value, json};

use super::legacy;
use crate::data::{
    error::BadField,
    fields::Field,
    row::{Conversation, Message, Role},
};

/// Fields of a message that templates may read. `weight` is ours.
const FIELDS: &[&str] =
    &["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight"];
/// Fields of the API that no template has a place for; `null` is how clients write that they are not there.
const NULL_ONLY: &[&str] = &["refusal", "audio", "annotations"];

/// The messages and tools of an object that has `messages`.
pub(super) fn conversation(object: &Field<'_>) -> Result<Conversation, BadField> {
    let at = object.require("messages")?;
    let messages = at.items()?.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(at.bad("at least one message", "an empty list"));
    }
    if let Some(parallel) = object.get("parallel_tool_calls") {
        // It tells a server how to sample; the text of a chat is the same either way.
        parallel.bool()?;
    }
    Ok(Conversation { messages, tools: tools(object)? })
}

/// What was asked: `input` with messages, or `prompt`, which is a list of messages or what the user said.
pub(super) fn prompt(row: &Field<'_>) -> Result<Conversation, BadField> {
    let mut prompt = if let Some(prompt) = row.get("prompt") {
        let messages = match prompt.value() {
            Value::String(text) => vec![said(Role::User, text)],
            Value::Array(_) => prompt.items()?.iter().map(message).collect::<Result<_, _>>()?,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                return Err(prompt.wrong("a list of messages or a string"));
            }
        };
        Conversation { messages, tools: None }
    } else {
        conversation(&row.require("input")?)?
    };
    if prompt.messages.is_empty() {
        return Err(row.require("prompt")?.bad("at least one message", "an empty list"));
    }
    prompt.messages.iter_mut().for_each(|message| message.trained = false);
    Ok(prompt)
}

/// An answer: a list of one message of the assistant, or what it said.
pub(super) fn answer(at: &Field<'_>) -> Result<Message, BadField> {
    if let Value::String(text) = at.value() {
        return Ok(said(Role::Assistant, text));
    }
    let items = at.items()?;
    let [item] = items.as_slice() else {
        return Err(at.bad("one message of the assistant", format!("{} messages", items.len())));
    };
    let answer = message(item)?;
    if answer.role != Role::Assistant {
        return Err(item.require("role")?.bad("\"assistant\"", "another role"));
    }
    Ok(Message { trained: true, ..answer })
}

fn said(role: Role, text: &str) -> Message {
    let name = if role == Role::Assistant { "assistant" } else { "user" };
    let value = json!({"role": name, "content": text});
    Message { role, value, trained: role == Role::Assistant }
}

fn message(at: &Field<'_>) -> Result<Message, BadField> {
    let fields = at.object()?;
    let (role, name) = role(&at.require("role")?)?;
    if let Some(unknown) = fields.keys().find(|name| !is_known(name)) {
        let expected = format!("no field beside {}", FIELDS.join(", "));
        return Err(at.bad(expected, format!("{unknown:?}")));
    }
    if let Some(field) = NULL_ONLY.iter().find_map(|name| at.get(name)) {
        return Err(field.bad("null", "a value that chat templates have no place for"));
    }
    // The role first: equal messages are then written alike, whatever the order of their fields in the file.
    let mut value = Map::from_iter([("role".to_owned(), Value::from(name))]);
    for (name, field) in fields {
        if name != "role" && name != "weight" && !field.is_null() {
            value.insert(name.clone(), field.clone());
        }
    }
    legacy::call(at, &mut value)?;
    tool_calls(at, role)?;
    let calls_tools = value.get("tool_calls").is_some_and(|calls| !calls.is_null());
    content(at, role == Role::Assistant && calls_tools)?;
    Ok(Message { role, value: Value::Object(value), trained: weight(at, role)? })
}

fn is_known(name: &str) -> bool {
    FIELDS.contains(&name) || NULL_ONLY.contains(&name) || name == legacy::CALL
}

/// The role, and the name that templates know it by.
fn role(at: &Field<'_>) -> Result<(Role, &'static str), BadField> {
    Ok(match at.text()? {
        "system" | "developer" => (Role::System, "system"),
        "user" => (Role::User, "user"),
        "assistant" => (Role::Assistant, "assistant"),
        "tool" | legacy::ROLE => (Role::Tool, "tool"),
        other => {
            let expected = "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
            return Err(at.bad(expected, format!("{other:?}")));
        }
    })
}

fn content(at: &Field<'_>, may_be_absent: bool) -> Result<(), BadField> {
    let Some(content) = at.get("content") else {
        return if may_be_absent { Ok(()) } else { at.require("content").map(drop) };
    };
    match content.value() {
        Value::String(_) => Ok(()),
        Value::Array(_) => {
            for part in content.items()? {
                let kind = part.require("type")?;
                if kind.text()? != "text" {
                    return Err(kind.bad("\"text\"", format!("{:?}", kind.text()?)));
                }
                part.require("text")?.text()?;
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            Err(content.wrong("a string or a list of parts"))
        }
    }
}

fn tool_calls(at: &Field<'_>, role: Role) -> Result<(), BadField> {
    let Some(calls) = at.get("tool_calls") else { return Ok(()) };
    if role != Role::Assistant {
        return Err(calls.bad("none: only the assistant calls tools", "some"));
    }
    for call in calls.items()? {
        call.require("function")?.require("name")?.text()?;
    }
    if calls.items()?.is_empty() {
        return Err(calls.bad("a call", "an empty list"));
    }
    Ok(())
}

/// Whether the message is learned.
fn weight(at: &Field<'_>, role: Role) -> Result<bool, BadField> {
    let Some(weight) = at.get("weight") else { return Ok(role == Role::Assistant) };
    if role != Role::Assistant {
        return Err(weight.bad("none: only the assistant's messages have one", "one"));
    }
    match weight.number()? {
        0.0 => Ok(false),
        1.0 => Ok(true),
        other => Err(weight.bad("0 or 1", other.to_string())),
    }
}

fn tools(object: &Field<'_>) -> Result<Option<Value>, BadField> {
    let tools = match (object.get("tools"), object.get(legacy::TOOLS)) {
        (Some(_), Some(functions)) => {
            return Err(functions.bad("nothing beside tools", "both"));
        }
        (Some(tools), None) => {
            for tool in tools.items()? {
                tool.require("function")?.require("name")?.text()?;
            }
            tools.value().clone()
        }
        (None, Some(functions)) => legacy::tools(&functions)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(tools).filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty())))
}
