//! From a model file to a resident model.

mod decoder;
mod file_matrices;
mod load;
mod random;
mod random_kinds;
mod read_spec;

use std::{fmt, str::FromStr};

use crate::{
    backend::RunError,
    cpu::{CpuBackend, CpuError, Isa},
    cuda::{CudaBackend, CudaOptions, Device},
    gguf::{GgufError, GgufFile},
    spec::ModelSpec,
};

pub use decoder::{Decoder, DecoderWeights, Layer};
pub use file_matrices::{FileMatrices, NormKind};
pub use random::{random_adapter, random_weights};
pub use random_kinds::random_kinds;

/// How products with quantized weights treat the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Quantized to int8 per 32 values: serving.
    Int8,
    /// Kept in f32, exact products with the dequantized weights: training, export checks, reference tests.
    F32,
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::F32 => "f32",
        })
    }
}

/// Neither `int8` nor `f32`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown activations {0:?}: one of int8, f32")]
pub struct UnknownActivations(String);

impl FromStr for Activations {
    type Err = UnknownActivations;

    fn from_str(name: &str) -> Result<Self, UnknownActivations> {
        match name {
            "int8" => Ok(Self::Int8),
            "f32" => Ok(Self::F32),
            _ => Err(UnknownActivations(name.to_owned())),
        }
    }
}

/// How to load a model onto the CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Kernels.
    pub isa: Isa,
    /// Threads that compute; at least one.
    pub threads: usize,
    /// Products.
    pub activations: Activations,
    /// Bytes for keys and values.
    pub kv_bytes: usize,
    /// Most bytes of resident adapters.
    pub adapter_bytes: usize,
    /// Most rows in a step.
    pub max_rows: usize,
}

/// Why a model file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file, or a key in it, is broken or missing.
    #[error(transparent)]
    File(#[from] GgufError),
    /// `general.architecture` is none that is supported.
    #[error("architecture {0:?} is not supported: one of llama, qwen2, qwen3")]
    Architecture(String),
    /// A metadata key has a value that cannot be used.
    #[error("{key} {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that the model needs is not there.
    #[error("tensor {0} is missing")]
    MissingTensor(String),
    /// A tensor that no part of the model takes.
    #[error("tensor {0} belongs to no part of this architecture")]
    UnknownTensor(String),
    /// A tensor has another shape than the metadata says, or bad values.
    #[error("tensor {tensor} {problem}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The device refused.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The CPU backend refused.
    #[error(transparent)]
    Cpu(#[from] CpuError),
}

/// The hyper-parameters of a model file.
///
/// # Errors
/// What the file lacks or what is not supported, by name.
pub fn read_spec(file: &GgufFile) -> Result<ModelSpec, LoadError> {
    read_spec::read_spec(file)
}

/// Loads a model onto the CPU: every weight is repacked once from the mapped file.
///
/// # Errors
/// What the file lacks or what is not supported, by name.
pub fn load_cpu(file: &GgufFile, options: CpuOptions) -> Result<Decoder<CpuBackend>, LoadError> {
    let spec = read_spec(file)?;
    let mut backend = CpuBackend::new(&spec, options)?;
    let weights = load::load_weights(file, &spec, &mut backend)?;
    Ok(Decoder::new(spec, backend, weights)?)
}

/// Loads a model onto a GPU whose arena is reserved.
///
/// # Errors
/// What the file lacks or what is not supported, by name; [`RunError::OutOfMemory`] by what did not fit.
pub fn load_cuda(
    file: &GgufFile,
    device: Device,
    options: CudaOptions,
) -> Result<Decoder<CudaBackend>, LoadError> {
    let spec = read_spec(file)?;
    let mut backend = CudaBackend::new(device, &spec, options)?;
    let weights = load::load_weights(file, &spec, &mut backend)?;
    backend.set_base(FileMatrices::new(file, &spec));
    Ok(Decoder::new(spec, backend, weights)?)
}
