//! GGUF model files, versions 2 and 3, little-endian, memory-mapped and checked before anything is used.
//!
//! The whole format; every number is little-endian, `string` is `u64` bytes of length, then that many bytes of UTF-8:
//!
//! ```text
//!  1  magic         4 B   47 47 55 46, "GGUF"
//!  2  version       4 B   u32: 2 or 3 (1 had 32-bit lengths; 3 is 2 plus the right to be big-endian, which we refuse)
//!  3  n_tensors     8 B   u64
//!  4  n_keys        8 B   u64
//!  5  n_keys times:
//!     5.1  key      string, at most 65535 B
//!     5.2  type     4 B   u32, one of
//!                         0 u8   1 i8   2 u16   3 i16   4 u32   5 i32   6 f32   7 bool (1 B, 0 or 1)
//!                         8 string   9 array   10 u64   11 i64   12 f64
//!     5.3  value    that type; an array is
//!          5.3.1  type of its items   4 B   u32, the same numbers; arrays in arrays are refused
//!          5.3.2  n_items             8 B   u64
//!          5.3.3  items, one after the other
//!  6  n_tensors times:
//!     6.1  name     string, at most 64 B
//!     6.2  n_dims   4 B   u32, 1 to 4
//!     6.3  dims     8 B each, u64, fastest first: a linear is [in_features, out_features]
//!     6.4  type     4 B   u32, number of the block format
//!     6.5  offset   8 B   u64, from the start of the data, a multiple of the alignment
//!  7  padding       to a multiple of the alignment: the key `general.alignment`, or 32
//!  8  data          each tensor at its offset, padded to the alignment; rows are whole blocks
//! ```
//!
//! Source: `docs/gguf.md` and `include/gguf.h` of ggml.
//!
//! Keys and tensor names may come in any order. What [`GgufFile`] hands out has been checked: tensors lie inside the
//! file, aligned and apart from each other, their sizes follow from their dimensions, names are unique. Nothing is
//! allocated from a length that was not compared with the bytes that are left, and decoded metadata has a bound.
//! This module knows no architecture: which keys and tensors a model needs is said in `model/`.
//!
//! # If the file changes while it is mapped
//! The map is private and read-only, and nothing locks the file. If another process writes into it, later reads may
//! see the new bytes: weights may be garbage, but every byte is a valid block, so nothing worse follows. If it is
//! *shortened*, reading a page past its new end raises `SIGBUS`, which ends the process. Replace a model file by
//! renaming a new one over it: the old one then stays as it was for whoever has it mapped. The metadata was copied when
//! the file was opened and is not affected.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use crate::quant::BlockFormat;

mod builder;
mod error;
mod getters;
mod parse;
mod reader;
mod value;

pub use builder::GgufBuilder;
pub use error::GgufError;
pub use value::{MetaValue, StringArray};

/// Most keys of a file. Real ones have fewer than a hundred.
pub const GGUF_KEYS_MAX: u64 = 1 << 14;

/// Most tensors of a file. The largest published models have a few thousand.
pub const GGUF_TENSORS_MAX: u64 = 1 << 16;

/// Longest key, bytes: the limit of the format's specification.
pub const GGUF_KEY_BYTES_MAX: u64 = 65_535;

/// Longest tensor name, bytes: the limit of the format's specification.
pub const GGUF_TENSOR_NAME_BYTES_MAX: u64 = 64;

/// Longest string value, bytes. The longest in use are whole `tokenizer.json` files, below 20 MB.
pub const GGUF_STRING_BYTES_MAX: u64 = 64 << 20;

/// Most memory for all decoded metadata, bytes. A vocabulary of 256 Ki tokens with its merges takes about 20 MB.
pub const GGUF_METADATA_BYTES_MAX: u64 = 256 << 20;

/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
pub const GGUF_DIMS_MAX: u32 = 4;

/// Alignment of tensor data where `general.alignment` is absent, bytes.
pub const GGUF_ALIGNMENT_DEFAULT: u64 = 32;

/// Largest alignment, bytes. Writers use 32, or a page (at most 64 KiB) for direct reads.
pub const GGUF_ALIGNMENT_MAX: u64 = 1 << 20;

/// One tensor's place in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Dimensions in GGUF order, fastest first: `[in_features, out_features]` for a linear.
    pub dims: Vec<usize>,
    /// How its values are stored.
    pub format: BlockFormat,
    /// Bytes from the start of the data section.
    pub offset: usize,
    /// Bytes of data.
    pub n_bytes: usize,
}

impl TensorInfo {
    /// Values in the tensor.
    pub fn n_values(&self) -> usize {
        // The product was checked when the file was opened.
        self.dims.iter().product()
    }

    /// `(out_features, in_features)` of a matrix: rows, and values of a row.
    ///
    /// # Errors
    /// [`GgufError::TensorRank`] if it has not two dimensions (more are fine if they are 1).
    pub fn shape2(&self) -> Result<(usize, usize), GgufError> {
        match *self.dims.as_slice() {
            [columns, rows, ref rest @ ..] if rest.iter().all(|dim| *dim == 1) => {
                Ok((rows, columns))
            }
            _ => Err(self.rank_error(2)),
        }
    }

    /// Length of a vector.
    ///
    /// # Errors
    /// [`GgufError::TensorRank`] if it has not one dimension (more are fine if they are 1).
    pub fn shape1(&self) -> Result<usize, GgufError> {
        match *self.dims.as_slice() {
            [length, ref rest @ ..] if rest.iter().all(|dim| *dim == 1) => Ok(length),
            _ => Err(self.rank_error(1)),
        }
    }

    fn rank_error(&self, expected: usize) -> GgufError {
        GgufError::TensorRank { tensor: self.name.clone(), expected, dims: self.dims.clone() }
    }
}

/// An open, validated, memory-mapped file. Clones share the map.
#[derive(Clone, Debug)]
pub struct GgufFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    bytes: FileBytes,
    version: u32,
    meta: BTreeMap<String, MetaValue>,
    tensors: Vec<TensorInfo>,
    /// From names to indices of `tensors`.
    by_name: HashMap<String, usize>,
    /// Where the data section begins, bytes from the start of the file.
    data_start: usize,
}

enum FileBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.as_slice().len())
    }
}

impl GgufFile {
    /// Maps and validates a file.
    ///
    /// # Errors
    /// [`GgufError`], naming the key or tensor.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(GgufError::NotAFile { path: path.to_owned() });
        }
        if metadata.len() == 0 {
            // An empty file cannot be mapped; the parser says what is missing.
            return Self::new(path.to_owned(), FileBytes::Owned(Vec::new()));
        }
        // SAFETY: the map is private, read-only and only read as plain bytes, for which every bit pattern is valid. That no
        // one writes to or shortens the file meanwhile cannot be checked; the module's documentation says what follows.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::new(path.to_owned(), FileBytes::Mapped(map))
    }

    /// Validates a file that is already in memory, under the path `(memory)`; for tests and small models.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::new(PathBuf::from("(memory)"), FileBytes::Owned(bytes))
    }

    fn new(path: PathBuf, bytes: FileBytes) -> Result<Self, GgufError> {
        let parse::Parsed { version, meta, tensors, by_name, data_start } =
            parse::parse(bytes.as_slice())?;
        Ok(Self {
            inner: Arc::new(Inner { path, bytes, version, meta, tensors, by_name, data_start }),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &PathBuf {
        &self.inner.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.inner.version
    }

    /// A metadata value.
    pub fn meta(&self, key: &str) -> Option<&MetaValue> {
        self.inner.meta.get(key)
    }

    /// All metadata, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &MetaValue)> {
        self.inner.meta.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.inner.tensors
    }

    /// One tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.by_name.get(name).map(|index| &self.inner.tensors[*index])
    }

    /// One tensor by name.
    ///
    /// # Errors
    /// [`GgufError::TensorMissing`].
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.tensor(name).ok_or_else(|| GgufError::TensorMissing { tensor: name.to_owned() })
    }

    /// The bytes of a tensor of this file, aligned as the file says, rows in order without gaps.
    ///
    /// # Panics
    /// If the tensor is one of another file and lies outside this one.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.inner.data_start + tensor.offset;
        &self.inner.bytes.as_slice()[start..start + tensor.n_bytes]
    }

    /// Every byte of the file, for digests.
    pub fn file_bytes(&self) -> &[u8] {
        self.inner.bytes.as_slice()
    }
}
