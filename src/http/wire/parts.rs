//! Several adapters on one request: what is asked for, and what the answer says of them.

use pleach_adapters::compose::COMPOSED_SCALE_MAX;
use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, as_generation, as_number, as_string, wrong_type};
use crate::{
    adapter_service::{PinnedPart, WantedPart},
    http::error::ApiError,
};

/// The field of a request.
pub const ADAPTERS: &str = "adapters";

/// A part, as responses show it.
#[derive(Clone, Debug, Serialize)]
pub struct PartCard {
    /// The adapter's name.
    pub name: String,
    /// Digest of the generation that was used.
    pub generation: String,
    /// What its own scale was multiplied by.
    pub scale: f32,
}

impl From<&PinnedPart> for PartCard {
    fn from(PinnedPart { alias, scale }: &PinnedPart) -> Self {
        let (name, generation) = (alias.name.to_string(), alias.generation.digest.to_string());
        Self { name, generation, scale: *scale }
    }
}

/// Reads `adapters`; empty when it is absent or empty.
///
/// # Errors
/// The first entry that is none, by its place.
pub fn read_parts(fields: &Fields) -> Result<Vec<WantedPart>, ApiError> {
    let Some(list) = fields.list(ADAPTERS)? else { return Ok(Vec::new()) };
    list.iter().enumerate().map(|(index, part)| read_part(index, part)).collect()
}

fn read_part(index: usize, value: &Value) -> Result<WantedPart, ApiError> {
    let place = format!("{ADAPTERS}[{index}]");
    let Some(part) = value.as_object() else {
        return Err(wrong_type(&place, "an object", value));
    };
    let (mut name, mut scale, mut generation) = (None, 1.0, None);
    for (key, value) in part {
        let param = format!("{place}.{key}");
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("name", _) => name = Some(as_string(value, &param)?.to_owned()),
            ("scale", _) => {
                scale = as_number(value, &param, -COMPOSED_SCALE_MAX..=COMPOSED_SCALE_MAX)?;
            }
            ("generation", _) => {
                generation = Some(as_generation(as_string(value, &param)?, &param)?);
            }
            // A misspelt scale would change the answer in silence.
            _ => {
                return Err(ApiError::invalid(
                    param,
                    "a part has 'name', 'scale' and 'generation'",
                ));
            }
        }
    }
    let name = name.ok_or_else(|| ApiError::Missing { param: format!("{place}.name") })?;
    Ok(WantedPart { name, scale, generation })
}
