//! Why a file, a key or a tensor was refused.

use std::{io, path::PathBuf};

use super::{
    GGUF_ALIGNMENT_MAX, GGUF_DIMS_MAX, GGUF_KEYS_MAX, GGUF_METADATA_BYTES_MAX, GGUF_TENSORS_MAX,
};
use crate::quant::{BlockFormat, ggml_type_name};

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error("cannot open model file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("model path is not a regular file: {}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it begins with \"{}\" instead of \"GGUF\"", found.escape_ascii())]
    Magic {
        /// What the file begins with.
        found: [u8; 4],
    },
    /// The file was written for a big-endian machine.
    #[error(
        "big-endian GGUF file (version {version}) is not supported: convert it to little-endian"
    )]
    BigEndian {
        /// Version, in the right byte order.
        version: u32,
    },
    /// A version that is neither 2 nor 3.
    #[error("GGUF version {version} is not supported: only 2 and 3 are")]
    Version {
        /// The file's version.
        version: u32,
    },
    /// The file ends too early, or a length in it is too large.
    #[error("file ends inside {what}: {needed} bytes needed at byte {at}, {left} left")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where, bytes from the start of the file.
        at: usize,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes to the end of the file.
        left: usize,
    },
    /// More keys than [`GGUF_KEYS_MAX`].
    #[error("too many metadata keys: {count}, at most {GGUF_KEYS_MAX}")]
    TooManyKeys {
        /// As the file says.
        count: u64,
    },
    /// More tensors than [`GGUF_TENSORS_MAX`].
    #[error("too many tensors: {count}, at most {GGUF_TENSORS_MAX}")]
    TooManyTensors {
        /// As the file says.
        count: u64,
    },
    /// A key, name or string value is too long.
    #[error("string too long in {what}: {length} bytes, at most {length_max}")]
    StringTooLong {
        /// What was being read.
        what: String,
        /// As the file says.
        length: u64,
        /// The limit of such strings.
        length_max: u64,
    },
    /// A string is not UTF-8.
    #[error("invalid UTF-8 in {what} at byte {at}")]
    Utf8 {
        /// What was being read.
        what: String,
        /// First wrong byte, from the start of the file.
        at: usize,
    },
    /// All metadata decoded would pass [`GGUF_METADATA_BYTES_MAX`].
    #[error("metadata too large at key {key:?}: more than {GGUF_METADATA_BYTES_MAX} bytes in all")]
    MetadataTooLarge {
        /// The key that passed the limit.
        key: String,
    },
    /// Two values for one key.
    #[error("metadata key appears twice: {key:?}")]
    KeyTwice {
        /// The key.
        key: String,
    },
    /// A type number that the format does not have.
    #[error("metadata key {key:?} has unknown value type {type_number}")]
    ValueType {
        /// The key.
        key: String,
        /// As the file says.
        type_number: u32,
    },
    /// An array of arrays.
    #[error("metadata key {key:?} is an array of arrays, which is not supported")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A bool that is neither 0 nor 1.
    #[error("metadata key {key:?} has a bool of value {byte}: only 0 and 1 are")]
    BoolValue {
        /// The key.
        key: String,
        /// As the file says.
        byte: u8,
    },
    /// `general.alignment` is not a power of two, or too large.
    #[error(
        "general.alignment is {alignment}: it must be a power of two, at most {GGUF_ALIGNMENT_MAX}"
    )]
    Alignment {
        /// As the file says.
        alignment: u64,
    },
    /// One part of a model that was split into several files.
    #[error(
        "split GGUF files are not supported: this is one of {count} parts (split.count); merge them first"
    )]
    Split {
        /// Number of parts.
        count: u64,
    },
    /// Two tensors of one name.
    #[error("tensor appears twice: {tensor:?}")]
    TensorTwice {
        /// The name.
        tensor: String,
    },
    /// No dimension, or more than [`GGUF_DIMS_MAX`].
    #[error("tensor {tensor:?} has {n_dims} dimensions: 1 to {GGUF_DIMS_MAX} are supported")]
    DimsCount {
        /// The tensor.
        tensor: String,
        /// As the file says.
        n_dims: u32,
    },
    /// A dimension is zero.
    #[error("tensor {tensor:?} is empty: its dimensions are {dims:?}")]
    DimZero {
        /// The tensor.
        tensor: String,
        /// As the file says.
        dims: Vec<u64>,
    },
    /// The product of the dimensions, or the bytes, do not fit a machine word.
    #[error("tensor {tensor:?} is impossibly large: its dimensions are {dims:?}")]
    TensorTooLarge {
        /// The tensor.
        tensor: String,
        /// As the file says.
        dims: Vec<u64>,
    },
    /// A block format that is not supported, or unknown.
    #[error("tensor {tensor:?} has block format {} ({type_number}), which is not supported", ggml_type_name(*type_number).unwrap_or("unknown"))]
    TensorType {
        /// The tensor.
        tensor: String,
        /// As the file says.
        type_number: u32,
    },
    /// A row is not a whole number of blocks.
    #[error("tensor {tensor:?} has rows of {row} values: {format} needs a multiple of {}", format.block_values())]
    RowBlocks {
        /// The tensor.
        tensor: String,
        /// Values of a row.
        row: usize,
        /// Its block format.
        format: BlockFormat,
    },
    /// An offset is not a multiple of the alignment.
    #[error(
        "tensor {tensor:?} is misaligned: its offset {offset} is not a multiple of {alignment}"
    )]
    TensorMisaligned {
        /// The tensor.
        tensor: String,
        /// Bytes from the start of the data.
        offset: u64,
        /// Alignment of the file, bytes.
        alignment: u64,
    },
    /// A tensor lies outside the file.
    #[error(
        "tensor {tensor:?} lies outside the file: {n_bytes} bytes at offset {offset} of {data_bytes} bytes of data"
    )]
    TensorOutside {
        /// The tensor.
        tensor: String,
        /// Bytes from the start of the data.
        offset: u64,
        /// Bytes of the tensor.
        n_bytes: usize,
        /// Bytes of data in the file.
        data_bytes: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    TensorsOverlap {
        /// The one that begins first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A key that is needed is not there.
    #[error("metadata key is missing: {key}")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A key holds another type than the one that is needed.
    #[error("metadata key {key} is {found}: expected {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// What is needed.
        expected: &'static str,
        /// What the file has.
        found: &'static str,
    },
    /// A number does not fit the type that is needed.
    #[error("metadata key {key} is {value}, which does not fit {expected}")]
    KeyRange {
        /// The key.
        key: String,
        /// What the file has.
        value: i128,
        /// What is needed.
        expected: &'static str,
    },
    /// A tensor that is needed is not there.
    #[error("tensor is missing: {tensor}")]
    TensorMissing {
        /// The name.
        tensor: String,
    },
    /// A tensor has another number of dimensions than is needed.
    #[error("tensor {tensor} has dimensions {dims:?}: expected {expected} of them")]
    TensorRank {
        /// The tensor.
        tensor: String,
        /// Dimensions that are needed.
        expected: usize,
        /// Its dimensions.
        dims: Vec<usize>,
    },
}
