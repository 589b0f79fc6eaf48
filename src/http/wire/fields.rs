//! Reading a request's fields one by one, so that every refusal names its parameter.

use std::ops::RangeInclusive;

use pleach_adapters::{Expect, GenerationDigest, NotADigest};
use serde_json::{Map, Value};

use crate::http::error::ApiError;

/// The top-level fields of a request. `null` counts as absent everywhere, as `OpenAI` does it.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// When it is not UTF-8, not JSON or no object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body)
            .map_err(|error| ApiError::InvalidUtf8 { offset: error.valid_up_to() })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(ApiError::NotAnObject { found: kind(&other) }),
            Err(error) => Err(ApiError::MalformedJson { detail: error.to_string() }),
        }
    }

    /// Refuses fields that are not among these, for requests in which a slip must not go unnoticed.
    ///
    /// # Errors
    /// The first other one.
    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) => Err(ApiError::invalid(unknown, "there is no such field")),
            None => Ok(()),
        }
    }

    /// All fields but one.
    pub fn without(&self, param: &str) -> Map<String, Value> {
        let others = self.0.iter().filter(|(name, _)| *name != param);
        others.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// A field's value, unless absent or `null`.
    pub fn get(&self, param: &str) -> Option<&Value> {
        self.0.get(param).filter(|value| !value.is_null())
    }

    /// A required field.
    ///
    /// # Errors
    /// When it is absent.
    pub fn require(&self, param: &str) -> Result<&Value, ApiError> {
        self.get(param).ok_or_else(|| ApiError::Missing { param: param.to_owned() })
    }

    /// A string.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn string(&self, param: &str) -> Result<Option<&str>, ApiError> {
        self.get(param).map(|value| as_string(value, param)).transpose()
    }

    /// The digest of a generation.
    ///
    /// # Errors
    /// When it is of another type or no digest.
    pub fn generation(&self, param: &str) -> Result<Option<GenerationDigest>, ApiError> {
        self.string(param)?.map(|text| as_generation(text, param)).transpose()
    }

    /// `expected_generation`; without it anything is expected.
    ///
    /// # Errors
    /// When it is of another type or no digest.
    pub fn expected_generation(&self) -> Result<Expect, ApiError> {
        let expected = self.generation("expected_generation")?;
        Ok(expected.map_or(Expect::Anything, Expect::Generation))
    }

    /// A boolean, `false` when absent.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn flag(&self, param: &str) -> Result<bool, ApiError> {
        Ok(self.boolean(param)?.unwrap_or(false))
    }

    /// A boolean.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn boolean(&self, param: &str) -> Result<Option<bool>, ApiError> {
        self.get(param)
            .map(|value| value.as_bool().ok_or_else(|| wrong_type(param, "a boolean", value)))
            .transpose()
    }

    /// An integer within bounds.
    ///
    /// # Errors
    /// When it is of another type or outside.
    pub fn integer(
        &self,
        param: &str,
        bounds: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.get(param).map(|value| as_integer(value, param, bounds)).transpose()
    }

    /// An integer within bounds that count something.
    ///
    /// # Errors
    /// When it is of another type or outside.
    pub fn count(&self, param: &str, bounds: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let bounds = i64::from(*bounds.start())..=i64::from(*bounds.end());
        // The bounds are those of a u32, so the conversion cannot fail.
        Ok(self.integer(param, bounds)?.and_then(|value| u32::try_from(value).ok()))
    }

    /// A number within bounds.
    ///
    /// # Errors
    /// When it is of another type or outside.
    pub fn number(
        &self,
        param: &str,
        bounds: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ApiError> {
        self.get(param).map(|value| as_number(value, param, bounds)).transpose()
    }

    /// An object.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn object(&self, param: &str) -> Result<Option<&Map<String, Value>>, ApiError> {
        self.get(param)
            .map(|value| value.as_object().ok_or_else(|| wrong_type(param, "an object", value)))
            .transpose()
    }

    /// A list.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn list(&self, param: &str) -> Result<Option<&[Value]>, ApiError> {
        self.get(param).map(|value| as_list(value, param)).transpose()
    }
}

/// A value that must be a string.
///
/// # Errors
/// When it is not.
pub fn as_string<'v>(value: &'v Value, param: &str) -> Result<&'v str, ApiError> {
    value.as_str().ok_or_else(|| wrong_type(param, "a string", value))
}

/// A text that must be the digest of a generation.
///
/// # Errors
/// When it is not.
pub fn as_generation(text: &str, param: &str) -> Result<GenerationDigest, ApiError> {
    text.parse().map_err(|error: NotADigest| ApiError::invalid(param, error.to_string()))
}

/// A value that must be a list.
///
/// # Errors
/// When it is not.
pub fn as_list<'v>(value: &'v Value, param: &str) -> Result<&'v [Value], ApiError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong_type(param, "a list", value))
}

/// A value that must be an integer within bounds.
///
/// # Errors
/// When it is not.
pub fn as_integer(
    value: &Value,
    param: &str,
    bounds: RangeInclusive<i64>,
) -> Result<i64, ApiError> {
    if !value.is_i64() && !value.is_u64() {
        return Err(wrong_type(param, "an integer", value));
    }
    value.as_i64().filter(|found| bounds.contains(found)).ok_or_else(|| ApiError::OutOfRange {
        param: param.to_owned(),
        bounds: format!("from {} to {}", bounds.start(), bounds.end()),
        found: value.to_string(),
    })
}

/// A value that must be a number within bounds.
///
/// # Errors
/// When it is not.
pub fn as_number(value: &Value, param: &str, bounds: RangeInclusive<f32>) -> Result<f32, ApiError> {
    let found = value.as_f64().ok_or_else(|| wrong_type(param, "a number", value))?;
    if found < f64::from(*bounds.start()) || found > f64::from(*bounds.end()) {
        return Err(ApiError::OutOfRange {
            param: param.to_owned(),
            bounds: format!("from {} to {}", bounds.start(), bounds.end()),
            found: value.to_string(),
        });
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is meant, and the range was checked"
    )]
    Ok(found as f32)
}

/// The error for a value of the wrong type.
pub fn wrong_type(param: &str, expected: &'static str, found: &Value) -> ApiError {
    ApiError::InvalidType { param: param.to_owned(), expected, found: kind(found) }
}

/// The JSON type in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
