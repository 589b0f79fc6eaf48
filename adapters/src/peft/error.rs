//! Why a PEFT adapter is refused.

use std::io;

use pleach_engine::{adapter_weights::AdapterWeightsError, site::Site};

use super::{
    config::ENTRIES_MAX,
    files::{CONFIG_FILE, TENSOR_FILE},
    targets::ADAPTER_RANK_MAX,
    tensor_file::TensorFileError,
};

/// Why an adapter is refused. File names are relative to its folder, so that a message may be shown to users.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No such folder, or not a folder.
    #[error("not a readable folder: {0}")]
    Folder(#[source] io::Error),
    /// A file that must be there is not.
    #[error("{file} is missing")]
    MissingFile {
        /// Its name.
        file: &'static str,
    },
    /// Weights as a Python pickle, which can run code and is never opened.
    #[error("{file} is a pickle, only {TENSOR_FILE} is read: convert it")]
    Pickle {
        /// Its name.
        file: &'static str,
    },
    /// Weights in several files.
    #[error("{file}: weights in several files are not supported, only {TENSOR_FILE} is read")]
    Sharded {
        /// Index or first part.
        file: String,
    },
    /// A file larger than anything that fits the model.
    #[error("{file} has {bytes} bytes, at most {limit} can be an adapter of this model")]
    FileTooLarge {
        /// Its name.
        file: &'static str,
        /// Its size.
        bytes: u64,
        /// Most bytes.
        limit: u64,
    },
    /// A folder, device or pipe where a file should be.
    #[error("{file} is not a regular file")]
    NotAFile {
        /// Its name.
        file: &'static str,
    },
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// Its name.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The settings are refused.
    #[error("{CONFIG_FILE}: {0}")]
    Config(#[from] ConfigError),
    /// The tensor file is refused as a whole.
    #[error("{TENSOR_FILE}: {0}")]
    TensorFile(#[from] TensorFileError),
    /// A tensor of a feature that is not implemented.
    #[error("tensor `{tensor}` is not supported: {feature}")]
    UnsupportedTensor {
        /// Its name.
        tensor: String,
        /// What it is for.
        feature: &'static str,
    },
    /// A tensor of a kind that the settings have not switched on. PEFT would not use it.
    #[error("tensor `{tensor}`: {CONFIG_FILE} does not ask for it with `{setting}`")]
    SettingOff {
        /// Its name.
        tensor: String,
        /// `use_dora`, `lora_bias` or `modules_to_save`.
        setting: &'static str,
    },
    /// A tensor whose name belongs to no linear.
    #[error("tensor `{tensor}` belongs to no linear of this model")]
    UnknownTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor for a layer that the model lacks.
    #[error("tensor `{tensor}`: the model has {n_layers} layers")]
    NoSuchLayer {
        /// Its name.
        tensor: String,
        /// Layers of the model.
        n_layers: usize,
    },
    /// Tensors named in two ways: perhaps two adapters in one file.
    #[error("tensor `{tensor}` is named in another way than `{other}`")]
    MixedNames {
        /// The tensor.
        tensor: String,
        /// The first tensor.
        other: String,
    },
    /// A tensor for a linear that the settings do not target. PEFT would not use it.
    #[error("tensor `{tensor}`: {CONFIG_FILE} does not target this linear")]
    NotTargeted {
        /// Its name.
        tensor: String,
    },
    /// The settings target a linear whose tensor is not there.
    #[error("tensor `{tensor}` is missing, {CONFIG_FILE} targets its linear")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A vector, or a whole matrix, of another shape than the model asks for.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    OwnShape {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// `[N]` or `[vocab, hidden]`.
        expected: Vec<usize>,
    },
    /// A tensor of another shape than model and rank ask for.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?} for rank {rank}")]
    Shape {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// `[R, K]` or `[N, R]`.
        expected: [usize; 2],
        /// Rank that the settings give this linear.
        rank: usize,
    },
    /// NaN or infinity.
    #[error("tensor `{tensor}` holds {value} at index {index}")]
    NotFinite {
        /// Its name.
        tensor: String,
        /// Position in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Weights that the engine would refuse; what is left is a scale beyond f32.
    #[error(transparent)]
    Weights(#[from] AdapterWeightsError),
}

/// Why a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON (or JSON with NaN, which Python writes and JSON does not know).
    #[error("not valid JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// JSON of another kind.
    #[error("expected a JSON object, found: {found}")]
    NotAnObject {
        /// What it is.
        found: String,
    },
    /// A key without which nothing can be computed.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value of another type.
    #[error("`{key}` must be {expected}, found: {found}")]
    Type {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is, shortened.
        found: String,
    },
    /// A method other than `LoRA`.
    #[error("`peft_type` {found} is not supported, only LORA is")]
    PeftType {
        /// The method.
        found: String,
    },
    /// A setting that changes the result and is not implemented.
    #[error("`{key}` is not supported ({what}): {value}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What it asks for.
        what: &'static str,
        /// Its value, shortened.
        value: String,
    },
    /// A setting that this version does not know, and that is not off.
    #[error("`{key}` is not a known setting and may change the result: {value}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value, shortened.
        value: String,
    },
    /// Two settings that exclude each other, in PEFT too.
    #[error("`{key}` cannot be used {why}")]
    Conflict {
        /// The key.
        key: &'static str,
        /// With or without what.
        why: &'static str,
    },
    /// More entries than anything real has.
    #[error("`{key}` has {found} entries, at most {ENTRIES_MAX} are read")]
    TooManyEntries {
        /// The key.
        key: &'static str,
        /// Entries found.
        found: usize,
    },
    /// A pattern that cannot be compiled, or takes too long.
    #[error("`{key}`: pattern `{pattern}`: {reason}")]
    Pattern {
        /// The key.
        key: &'static str,
        /// The pattern, shortened.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// A rank that no adapter may have.
    #[error("{site}: rank {rank} is outside 1..={ADAPTER_RANK_MAX}")]
    Rank {
        /// Where it applies.
        site: Site,
        /// The rank, from `r` or `rank_pattern`.
        rank: usize,
    },
    /// A target that no linear of the model answers to.
    #[error("`target_modules` entry `{target}` matches no linear of this model")]
    TargetWithoutSite {
        /// The entry, shortened.
        target: String,
    },
    /// Nothing is left to act on.
    #[error(
        "`target_modules`, `layers_to_transform` and `exclude_modules` leave no linear of this model"
    )]
    NoSite,
    /// `layers_to_transform` names a layer that the model lacks.
    #[error("`layers_to_transform` names layer {layer}, the model has {n_layers} layers")]
    NoSuchLayer {
        /// The layer.
        layer: usize,
        /// Layers of the model.
        n_layers: usize,
    },
}
