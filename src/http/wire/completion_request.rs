//! The body of `POST /v1/completions`.

use serde_json::Value;

use super::{
    fields::{Fields, as_string, wrong_type},
    sampling::{Sampling, TOP_LOGPROBS_MAX, as_token, as_tokens},
    unsupported,
};
use crate::http::error::ApiError;

/// `OpenAI`'s default.
pub const MAX_TOKENS_DEFAULT: u32 = 16;
/// Most prompts of one request.
pub const PROMPTS_MAX: usize = 512;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// To be tokenized.
    Text(String),
    /// Tokens already.
    Tokens(Vec<u32>),
}

/// Prompts to complete, checked.
#[derive(Debug)]
pub struct CompletionRequest {
    /// A base's or adapter's name.
    pub model: String,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Put the prompt before the completion.
    pub echo: bool,
    /// Put the model's begin token before a text, if it has one.
    pub add_special_tokens: bool,
    /// Report log-probabilities, with this many likeliest tokens.
    pub logprobs: Option<u32>,
    /// The rest. `max_tokens` may be 0: score an echoed prompt and choose nothing.
    pub sampling: Sampling,
}

impl CompletionRequest {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// The first field that is missing, of wrong type, out of range or not supported.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        let model = as_string(fields.require("model")?, "model")?.to_owned();
        unsupported::refuse_completions(fields)?;
        let max_tokens = fields.count("max_tokens", 0..=u32::MAX)?.unwrap_or(MAX_TOKENS_DEFAULT);
        let sampling = Sampling::read(fields)?;
        let best_of = fields.count("best_of", 1..=u32::MAX)?;
        if best_of.is_some_and(|best_of| best_of as usize != sampling.n) {
            return Err(ApiError::Unsupported {
                param: "best_of".to_owned(),
                hint: ": only a value equal to 'n' is",
            });
        }
        // The default must not turn a larger min_tokens into an error about a field that was not sent.
        let max_tokens = if fields.get("max_tokens").is_none() {
            max_tokens.max(sampling.min_tokens)
        } else {
            max_tokens
        };
        Ok(Self {
            model,
            prompts: read_prompts(fields.require("prompt")?)?,
            echo: fields.flag("echo")?,
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true),
            logprobs: fields.count("logprobs", 0..=TOP_LOGPROBS_MAX)?,
            sampling: sampling.with_max_tokens(Some(max_tokens))?,
        })
    }
}

fn read_prompts(value: &Value) -> Result<Vec<Prompt>, ApiError> {
    const PARAM: &str = "prompt";
    const EXPECTED: &str =
        "a string, a list of strings, a list of token ids or a list of such lists";
    let prompts = match value {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(list) => match list.first() {
            None => return Err(ApiError::invalid(PARAM, "the list is empty")),
            Some(Value::String(_)) => {
                check_count(list)?;
                list.iter()
                    .map(|item| as_string(item, PARAM).map(|text| Prompt::Text(text.to_owned())))
                    .collect::<Result<_, _>>()?
            }
            Some(Value::Number(_)) => {
                vec![Prompt::Tokens(
                    list.iter().map(|item| as_token(item, PARAM)).collect::<Result<_, _>>()?,
                )]
            }
            Some(Value::Array(_)) => {
                check_count(list)?;
                list.iter()
                    .map(|item| as_tokens(item, PARAM).map(Prompt::Tokens))
                    .collect::<Result<_, _>>()?
            }
            Some(_) => return Err(wrong_type(PARAM, EXPECTED, value)),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(wrong_type(PARAM, EXPECTED, value));
        }
    };
    Ok(prompts)
}

fn check_count(list: &[Value]) -> Result<(), ApiError> {
    if list.len() > PROMPTS_MAX {
        return Err(ApiError::invalid(
            "prompt",
            format!("{} prompts, at most {PROMPTS_MAX}", list.len()),
        ));
    }
    Ok(())
}
