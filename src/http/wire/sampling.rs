//! The fields that chat and plain completions share: how to choose tokens, when to stop, what to report.

use pleach_adapters::GenerationDigest;
use serde_json::Value;

use super::{
    fields::{Fields, as_integer, as_list, as_number, as_string, wrong_type},
    parts::read_parts,
};
use crate::{adapter_service::WantedPart, http::error::ApiError};

/// Most choices for one prompt (`OpenAI`'s limit).
pub const N_MAX: u32 = 128;
/// Most likeliest tokens reported at a place (`OpenAI`'s limit for chats).
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Most stop strings. `OpenAI` takes 4; agents send more.
pub const STOP_STRINGS_MAX: usize = 64;
/// Longest stop string: that much text may be held back.
pub const STOP_STRING_BYTES_MAX: usize = 4096;
/// Most entries of `logit_bias` (`OpenAI`'s limit).
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Most entries of `stop_token_ids`.
pub const STOP_TOKENS_MAX: usize = 256;
/// Smallest `repetition_penalty`: it divides logits, and by a much smaller one they overflow.
pub const REPETITION_PENALTY_MIN: f32 = 0.01;
/// Longest `cache_salt`.
pub const CACHE_SALT_BYTES_MAX: usize = 1024;

/// The shared fields, within their ranges; token ids are not yet compared with a vocabulary.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are fields of the request, each on its own"
)]
pub struct Sampling {
    /// Choices for each prompt.
    pub n: usize,
    /// `[0, 2]`, 0 is greedy.
    pub temperature: f32,
    /// `(0, 1]`.
    pub top_p: f32,
    /// 0 is all.
    pub top_k: u32,
    /// `[0, 1]`.
    pub min_p: f32,
    /// `[0.01, 10]`.
    pub repetition_penalty: f32,
    /// `[-2, 2]`.
    pub frequency_penalty: f32,
    /// `[-2, 2]`.
    pub presence_penalty: f32,
    /// Token and what to add to its logit, `[-100, 100]`.
    pub logit_bias: Vec<(u32, f32)>,
    /// Absent: a random one.
    pub seed: Option<u64>,
    /// Absent: the endpoint's default.
    pub max_tokens: Option<u32>,
    /// No end before this many tokens.
    pub min_tokens: u32,
    /// Go on after the model's end tokens.
    pub ignore_eos: bool,
    /// Strings that end a choice.
    pub stop: Vec<String>,
    /// Tokens that end a choice.
    pub stop_token_ids: Vec<u32>,
    /// Leave what ended a choice in its text.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Report token ids.
    pub return_token_ids: bool,
    /// Score the prompt with this many likeliest tokens.
    pub prompt_logprobs: Option<u32>,
    /// Separates cached prefixes.
    pub cache_salt: String,
    /// The generation of the adapter that the request insists on.
    pub adapter_generation: Option<GenerationDigest>,
    /// The adapters that the request wants summed; empty: those that `model` says.
    pub adapters: Vec<WantedPart>,
    /// Send events.
    pub stream: bool,
    /// End the events with the usage.
    pub include_usage: bool,
}

impl Sampling {
    /// Reads the fields.
    ///
    /// # Errors
    /// The first one of wrong type or range.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?;
        let sampling = Self {
            n: fields.count("n", 1..=N_MAX)?.unwrap_or(1) as usize,
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            // 0 is in OpenAI's range; the engine's begins above it, and both leave the likeliest token alone.
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE),
            top_k: read_top_k(fields)?,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            repetition_penalty: fields
                .number("repetition_penalty", REPETITION_PENALTY_MIN..=10.0)?
                .unwrap_or(1.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            logit_bias: read_logit_bias(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
            max_tokens: None,
            min_tokens: fields.count("min_tokens", 0..=u32::MAX)?.unwrap_or(0),
            ignore_eos: fields.flag("ignore_eos")?,
            stop: read_stop(fields)?,
            stop_token_ids: read_stop_tokens(fields)?,
            include_stop: fields.flag("include_stop_str_in_output")?,
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            return_token_ids: fields.flag("return_token_ids")?,
            prompt_logprobs: fields.count("prompt_logprobs", 0..=TOP_LOGPROBS_MAX)?,
            cache_salt: read_cache_salt(fields)?,
            adapter_generation: fields.generation("adapter_generation")?,
            adapters: read_parts(fields)?,
            stream,
            include_usage: read_include_usage(fields, stream)?,
        };
        if stream && sampling.prompt_logprobs.is_some() {
            return Err(ApiError::invalid(
                "prompt_logprobs",
                "not available when 'stream' is true",
            ));
        }
        if !sampling.adapters.is_empty() && sampling.adapter_generation.is_some() {
            let reason = "with 'adapters' each of them has a 'generation' of its own";
            return Err(ApiError::invalid("adapter_generation", reason));
        }
        Ok(sampling)
    }

    /// Sets the most tokens, which the endpoints name differently.
    ///
    /// # Errors
    /// When `min_tokens` is larger.
    pub fn with_max_tokens(mut self, max_tokens: Option<u32>) -> Result<Self, ApiError> {
        if let Some(max_tokens) = max_tokens.filter(|&max_tokens| self.min_tokens > max_tokens) {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("{} is more than the {max_tokens} of 'max_tokens'", self.min_tokens),
            ));
        }
        self.max_tokens = max_tokens;
        Ok(self)
    }
}

fn read_top_k(fields: &Fields) -> Result<u32, ApiError> {
    // -1 is vLLM's old spelling of "all".
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
    Ok(u32::try_from(top_k).unwrap_or(0))
}

fn read_include_usage(fields: &Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "only allowed when 'stream' is true"));
    }
    // vLLM's.
    if options.get("continuous_usage_stats").is_some_and(|value| *value == Value::Bool(true)) {
        let param = "stream_options.continuous_usage_stats".to_owned();
        return Err(ApiError::Unsupported { param, hint: "" });
    }
    match options.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(include)) => Ok(*include),
        Some(other) => Err(wrong_type("stream_options.include_usage", "a boolean", other)),
    }
}

fn read_cache_salt(fields: &Fields) -> Result<String, ApiError> {
    match fields.string("cache_salt")? {
        None => Ok(String::new()),
        Some(salt) if salt.is_empty() || salt.len() > CACHE_SALT_BYTES_MAX => {
            Err(ApiError::invalid(
                "cache_salt",
                format!("it must have 1 to {CACHE_SALT_BYTES_MAX} bytes"),
            ))
        }
        Some(salt) => Ok(salt.to_owned()),
    }
}

fn read_logit_bias(fields: &Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    const PARAM: &str = "logit_bias";
    let Some(map) = fields.object(PARAM)? else { return Ok(Vec::new()) };
    if map.len() > LOGIT_BIAS_MAX {
        return Err(ApiError::invalid(
            PARAM,
            format!("{} entries, at most {LOGIT_BIAS_MAX}", map.len()),
        ));
    }
    map.iter()
        .map(|(key, value)| {
            let token = key.parse::<u32>().map_err(|_| {
                ApiError::invalid(PARAM, format!("the key {key:?} is not a token id"))
            })?;
            Ok((token, as_number(value, PARAM, -100.0..=100.0)?))
        })
        .collect()
}

fn read_stop(fields: &Fields) -> Result<Vec<String>, ApiError> {
    const PARAM: &str = "stop";
    let stops = match fields.get(PARAM) {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(list)) if list.len() > STOP_STRINGS_MAX => {
            return Err(ApiError::invalid(
                PARAM,
                format!("{} strings, at most {STOP_STRINGS_MAX}", list.len()),
            ));
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| as_string(item, PARAM).map(str::to_owned))
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type(PARAM, "a string or a list of strings", other)),
    };
    for stop in &stops {
        if stop.is_empty() {
            return Err(ApiError::invalid(PARAM, "an empty string would stop at once"));
        }
        if stop.len() > STOP_STRING_BYTES_MAX {
            return Err(ApiError::invalid(
                PARAM,
                format!("a string of {} bytes, at most {STOP_STRING_BYTES_MAX}", stop.len()),
            ));
        }
    }
    Ok(stops)
}

fn read_stop_tokens(fields: &Fields) -> Result<Vec<u32>, ApiError> {
    const PARAM: &str = "stop_token_ids";
    let Some(list) = fields.list(PARAM)? else { return Ok(Vec::new()) };
    if list.len() > STOP_TOKENS_MAX {
        return Err(ApiError::invalid(
            PARAM,
            format!("{} tokens, at most {STOP_TOKENS_MAX}", list.len()),
        ));
    }
    list.iter().map(|item| as_token(item, PARAM)).collect()
}

/// A value that must be a token id.
///
/// # Errors
/// When it is no integer that could be one.
pub fn as_token(value: &Value, param: &str) -> Result<u32, ApiError> {
    let token = as_integer(value, param, 0..=i64::from(u32::MAX))?;
    // In range: checked just above.
    Ok(u32::try_from(token).unwrap_or(u32::MAX))
}

/// A list that must hold token ids.
///
/// # Errors
/// When it is no list, or an entry is none.
pub fn as_tokens(value: &Value, param: &str) -> Result<Vec<u32>, ApiError> {
    as_list(value, param)?.iter().map(|item| as_token(item, param)).collect()
}
