//! The two files of a PEFT folder, read with limits.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use pleach_engine::{breaks::may_break, spec::ModelSpec};

use super::{
    config::AdapterConfig,
    error::AdapterError,
    fields::shorten,
    load::{LoadedAdapter, assemble},
};

/// The settings, in every PEFT folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// Longest settings file; real ones have some 1,000 bytes, with full module lists some 100,000.
pub const ADAPTER_CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Bytes read at once.
const READ_BYTES: u64 = 1 << 20;
const PICKLE_FILE: &str = "adapter_model.bin";
const SHARD_INDEX_FILE: &str = "adapter_model.safetensors.index.json";

/// Settings and weights in memory; of the weights nothing is checked yet.
#[derive(Debug)]
pub struct PeftFiles {
    pub(super) config: AdapterConfig,
    /// Contents of [`TENSOR_FILE`].
    pub(super) tensors: Vec<u8>,
}

impl PeftFiles {
    /// Reads a folder, of whose tensors there may be `tensor_bytes_max` bytes. Blocks on the disk.
    ///
    /// # Errors
    /// [`AdapterError`] with the file or the key of the settings.
    pub fn read(dir: &Path, tensor_bytes_max: u64) -> Result<Self, AdapterError> {
        let names = file_names(dir).map_err(AdapterError::Folder)?;
        let config = read_config(&dir.join(CONFIG_FILE))?;
        // After the settings: a refusal by key says more than a file that is missing or looks odd because of that key.
        refuse_other_weight_files(&names)?;
        let tensors = read_file(&dir.join(TENSOR_FILE), TENSOR_FILE, tensor_bytes_max)?;
        Ok(Self { config, tensors })
    }

    /// [`Self::read`] from the two files, wherever each is and whatever it is called there.
    ///
    /// # Errors
    /// As [`Self::read`]; files are called by the names that they have in a folder.
    pub fn read_apart(
        config: &Path,
        tensors: &Path,
        tensor_bytes_max: u64,
    ) -> Result<Self, AdapterError> {
        let config = read_config(config)?;
        Ok(Self { config, tensors: read_file(tensors, TENSOR_FILE, tensor_bytes_max)? })
    }

    /// Checks all of it against a model.
    ///
    /// # Errors
    /// As [`super::load_peft`].
    pub fn load(&self, spec: &ModelSpec) -> Result<LoadedAdapter, AdapterError> {
        assemble(&self.config, &self.tensors, spec)
    }
}

fn read_config(path: &Path) -> Result<AdapterConfig, AdapterError> {
    let json = read_file(path, CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)?;
    Ok(AdapterConfig::from_json(&json)?)
}

/// Names of the adapter's weight files, of whatever kind.
fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with("adapter_model")
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn refuse_other_weight_files(names: &[String]) -> Result<(), AdapterError> {
    let has = |file: &str| names.iter().any(|name| name == file);
    if has(TENSOR_FILE) {
        return Ok(());
    }
    let part = names
        .iter()
        .find(|name| name.starts_with("adapter_model-") && name.ends_with(".safetensors"));
    if has(SHARD_INDEX_FILE) {
        return Err(AdapterError::Sharded { file: SHARD_INDEX_FILE.to_owned() });
    }
    if let Some(part) = part {
        return Err(AdapterError::Sharded { file: shorten(part) });
    }
    if has(PICKLE_FILE) {
        return Err(AdapterError::Pickle { file: PICKLE_FILE });
    }
    Err(AdapterError::MissingFile { file: TENSOR_FILE })
}

/// The whole file, if it is a regular one and not longer than `limit`, also while somebody is appending to it.
fn read_file(path: &Path, file: &'static str, limit: u64) -> Result<Vec<u8>, AdapterError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return AdapterError::MissingFile { file };
        }
        AdapterError::Read { file, source }
    };
    // Asked before opening: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(AdapterError::NotAFile { file });
    }
    let too_large = |bytes| AdapterError::FileTooLarge { file, bytes, limit };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes =
        Vec::with_capacity(usize::try_from(metadata.len()).map_err(|_| too_large(metadata.len()))?);
    let mut opened = File::open(path).map_err(failed)?.take(limit.saturating_add(1));
    // In pieces, each far below a step.
    while opened.by_ref().take(READ_BYTES).read_to_end(&mut bytes).map_err(failed)? > 0 {
        may_break();
    }
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}
