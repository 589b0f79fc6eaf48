//! A precision as its name, for serde: `#[serde(with = "precision_name")]`.

use pleach_engine::train::ProductPrecision;
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// `f32` or `bf16`.
///
/// # Errors
/// Of the serializer.
pub fn serialize<S: Serializer>(precision: &ProductPrecision, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(precision.name())
}

/// The precision of that name.
///
/// # Errors
/// A name that is none.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ProductPrecision, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}
