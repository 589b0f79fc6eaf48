//! The body of `POST /v1/chat/completions`.

use pleach_store::Metadata;
use serde_json::{Map, Value};

use super::{
    fields::{Fields, as_list, as_string, wrong_type},
    metadata::{read_episode, read_metadata},
    sampling::{Sampling, TOP_LOGPROBS_MAX},
    unsupported,
};
use crate::http::error::ApiError;

/// Most messages of one chat.
pub const MESSAGES_MAX: usize = 4096;

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A chat to continue, checked.
#[derive(Debug)]
pub struct ChatRequest {
    /// A base's or adapter's name.
    pub model: String,
    /// At least one; each an object with a known role and text content.
    pub messages: Vec<Value>,
    /// End the prompt with the header of an assistant's message.
    pub add_generation_prompt: bool,
    /// Variables for the template.
    pub template_variables: Map<String, Value>,
    /// Report log-probabilities, with this many likeliest tokens.
    pub logprobs: Option<u32>,
    /// What is to be kept of it.
    pub keep: Keep,
    /// The rest.
    pub sampling: Sampling,
}

/// What a request says of being kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// `store`; absent: what the tenant wants.
    pub store: Option<bool>,
    /// Pairs to find it by.
    pub metadata: Metadata,
    /// The end user: `safety_identifier`, or `user`, its older name.
    pub user: Option<String>,
    /// Completions that belong together have one.
    pub episode: Option<String>,
}

impl Keep {
    fn read(fields: &Fields) -> Result<Self, ApiError> {
        let user = match fields.string("safety_identifier")? {
            Some(user) => Some(user),
            None => fields.string("user")?,
        };
        let episode = match fields.string("episode_id")? {
            Some(episode) => Some(episode),
            None => fields.string("tensorzero::episode_id")?,
        };
        Ok(Self {
            store: fields.boolean("store")?,
            metadata: read_metadata(fields, "metadata")?,
            user: user.map(str::to_owned),
            episode: episode.map(|episode| read_episode(episode, "episode_id")).transpose()?,
        })
    }
}

impl ChatRequest {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// The first field that is missing, of wrong type, out of range or not supported.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        let model = as_string(fields.require("model")?, "model")?.to_owned();
        unsupported::refuse_chat(fields)?;
        Ok(Self {
            model,
            messages: read_messages(fields)?,
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            template_variables: fields.object("chat_template_kwargs")?.cloned().unwrap_or_default(),
            logprobs: read_logprobs(fields)?,
            keep: Keep::read(fields)?,
            sampling: Sampling::read(fields)?.with_max_tokens(read_max_tokens(fields)?)?,
        })
    }
}

fn read_max_tokens(fields: &Fields) -> Result<Option<u32>, ApiError> {
    let old = fields.count("max_tokens", 1..=u32::MAX)?;
    let new = fields.count("max_completion_tokens", 1..=u32::MAX)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::invalid(
            "max_tokens",
            format!("{old} contradicts the {new} of 'max_completion_tokens'; send one of them"),
        )),
        (old, new) => Ok(new.or(old)),
    }
}

fn read_logprobs(fields: &Fields) -> Result<Option<u32>, ApiError> {
    let logprobs = fields.flag("logprobs")?;
    let top = fields.count("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    match (logprobs, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::invalid("top_logprobs", "only allowed when 'logprobs' is true"))
        }
    }
}

fn read_messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let list = as_list(fields.require("messages")?, "messages")?;
    if list.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "the list is empty; at least one message is needed",
        ));
    }
    if list.len() > MESSAGES_MAX {
        return Err(ApiError::invalid(
            "messages",
            format!("{} messages, at most {MESSAGES_MAX}", list.len()),
        ));
    }
    list.iter().enumerate().map(|(index, message)| read_message(index, message)).collect()
}

fn read_message(index: usize, value: &Value) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let Value::Object(message) = value else {
        return Err(wrong_type(&format!("messages[{index}]"), "an object", value));
    };
    let role_param = at("role");
    let role =
        message.get("role").ok_or_else(|| ApiError::Missing { param: role_param.clone() })?;
    let role = as_string(role, &role_param)?;
    if !ROLES.contains(&role) {
        return Err(ApiError::invalid(
            role_param,
            format!("{role:?} is none of {}", ROLES.join(", ")),
        ));
    }
    match message.get("content") {
        None | Some(Value::Null) if role == "assistant" && calls_tools(message) => {}
        None | Some(Value::Null) => return Err(ApiError::Missing { param: at("content") }),
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => check_parts(parts, &at("content"))?,
        Some(other) => {
            return Err(wrong_type(&at("content"), "a string or a list of parts", other));
        }
    }
    let mut message = message.clone();
    if role == "developer" {
        // The newer name of the same thing; templates know the old one.
        message.insert("role".to_owned(), Value::from("system"));
    }
    Ok(Value::Object(message))
}

fn calls_tools(message: &Map<String, Value>) -> bool {
    ["tool_calls", "function_call"]
        .iter()
        .any(|field| message.get(*field).is_some_and(|value| !value.is_null()))
}

fn check_parts(parts: &[Value], param: &str) -> Result<(), ApiError> {
    for (index, part) in parts.iter().enumerate() {
        let at = |field: &str| format!("{param}[{index}].{field}");
        let Value::Object(fields) = part else {
            return Err(wrong_type(&format!("{param}[{index}]"), "an object", part));
        };
        let kind = fields.get("type").ok_or_else(|| ApiError::Missing { param: at("type") })?;
        let kind = as_string(kind, &at("type"))?;
        if kind != "text" {
            return Err(ApiError::invalid(
                at("type"),
                format!("parts of type {kind:?} are not supported, only text"),
            ));
        }
        let text = fields.get("text").ok_or_else(|| ApiError::Missing { param: at("text") })?;
        as_string(text, &at("text"))?;
    }
    Ok(())
}
