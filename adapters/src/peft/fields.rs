//! Typed reading of one JSON object, key by key; every complaint names the key.

use serde_json::{Map, Value};

use super::error::ConfigError;

/// Characters of a value that an error message repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// The keys of an object that nobody has asked for yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject { found: show(&value) });
        };
        Ok(Self(map))
    }

    /// Takes a key out. `null` counts as absent, as in PEFT's dataclass.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    /// Takes a key out and reads it; `expected` says what `read` accepts.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(ConfigError::Type { key, expected, found: show(&value) }),
        }
    }

    pub(super) fn bool(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// An object whose values all read alike, in the order of the file.
    pub(super) fn map<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>, ConfigError> {
        let entries = self.read(key, expected, |value| {
            value
                .as_object()?
                .iter()
                .map(|(name, value)| Some((name.clone(), read(value)?)))
                .collect()
        })?;
        Ok(entries.unwrap_or_default())
    }

    /// What nobody took.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.0
    }
}

/// `[…]` of strings.
pub(super) fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// An index: a JSON integer that is not negative.
pub(super) fn index(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

/// A finite number, integer or not.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

/// `null`, `false`, `""`, `[]` or `{}`: how a setting says that it is off.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The value as JSON, shortened: a message stays readable whatever the file holds.
pub(super) fn show(value: &Value) -> String {
    shorten(&value.to_string())
}

pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
