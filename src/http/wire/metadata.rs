//! Pairs of texts that clients attach to things, and names of episodes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fields, as_string};
use crate::http::error::ApiError;

/// Most pairs (`OpenAI`'s limit).
const PAIRS_MAX: usize = 16;
/// Longest name of a pair, characters (`OpenAI`'s limit).
const NAME_CHARS_MAX: usize = 64;
/// Longest value of a pair, characters (`OpenAI`'s limit).
const VALUE_CHARS_MAX: usize = 512;
/// Longest name of an episode.
const EPISODE_BYTES_MAX: usize = 64;

/// Reads an object of texts; empty when it is absent.
///
/// # Errors
/// The first pair that is too long or no text.
pub fn read_metadata(fields: &Fields, param: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(object) = fields.object(param)? else { return Ok(BTreeMap::new()) };
    if object.len() > PAIRS_MAX {
        let reason = format!("{} pairs, at most {PAIRS_MAX}", object.len());
        return Err(ApiError::invalid(param, reason));
    }
    object.iter().map(|(name, value)| read_pair(param, name, value)).collect()
}

fn read_pair(param: &str, name: &str, value: &Value) -> Result<(String, String), ApiError> {
    let place = format!("{param}.{name}");
    let value = as_string(value, &place)?;
    for (text, chars_max) in [(name, NAME_CHARS_MAX), (value, VALUE_CHARS_MAX)] {
        if text.chars().count() > chars_max {
            return Err(ApiError::invalid(place, format!("longer than {chars_max} characters")));
        }
        // No database keeps it.
        if text.contains('\0') {
            return Err(ApiError::invalid(place, "it has a NUL character"));
        }
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Checks the name of an episode.
///
/// # Errors
/// When it is empty, long, or of other characters than letters, digits, `-`, `_`, `.` and `:`.
pub fn read_episode(text: &str, param: &str) -> Result<String, ApiError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if text.is_empty() || text.len() > EPISODE_BYTES_MAX || !text.bytes().all(is_plain) {
        let reason =
            format!("it has to be 1 to {EPISODE_BYTES_MAX} letters, digits, `-`, `_`, `.` or `:`");
        return Err(ApiError::invalid(param, reason));
    }
    Ok(text.to_owned())
}
