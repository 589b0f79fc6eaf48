//! A safetensors file whose every claim is checked before anything is read.
//!
//! 1. u64, little-endian: bytes of the header, `h`;
//! 2. `h` bytes of JSON: `{"<tensor>": {"dtype": "F16", "shape": [n, m], "data_offsets": [begin, end]}, …,
//!    "__metadata__": {…}}`; offsets count from the end of the header;
//! 3. the data: tensors without holes or overlap, in any order of the header.
//!
//! Read here and not by the `safetensors` crate because every refusal must name its tensor, a name that is given twice
//! must be seen (that crate keeps the last), and sums of hostile offsets must not overflow.

use std::fmt;

use half::{bf16, f16};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

/// Longest header: ten times that of rank adapters on every linear of 500 layers.
pub const TENSOR_HEADER_BYTES_MAX: usize = 16 << 20;

const LENGTH_BYTES: usize = 8;
const METADATA_KEY: &str = "__metadata__";

/// How numbers are stored. Other types of the format (integers, F64, F8) are no adapter weights of PEFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an F32.
    Bf16,
}

impl StoredDtype {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of one value.
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Why a tensor file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// Shorter than its own header says.
    #[error("truncated: the header needs {needed} bytes, the file has {file_bytes}")]
    Truncated {
        /// Bytes of length and header.
        needed: u64,
        /// Bytes of the file.
        file_bytes: usize,
    },
    /// A header beyond every real one.
    #[error("header of {header_bytes} bytes, at most {TENSOR_HEADER_BYTES_MAX} are read")]
    HeaderTooLong {
        /// Bytes that the file claims.
        header_bytes: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("header: {0}")]
    Header(#[source] serde_json::Error),
    /// The description of one tensor is malformed.
    #[error("tensor `{tensor}`: {source}")]
    Entry {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// One name twice.
    #[error("tensor `{tensor}` is described twice")]
    Twice {
        /// The tensor.
        tensor: String,
    },
    /// A type that adapter weights cannot have.
    #[error("tensor `{tensor}` has dtype {dtype}, only F32, F16 and BF16 are read")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Shape, dtype and byte range disagree.
    #[error("tensor `{tensor}`: {dtype:?} of shape {shape:?} does not fill bytes {begin}..{end}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: StoredDtype,
        /// Its shape.
        shape: Vec<usize>,
        /// First byte.
        begin: usize,
        /// Byte after the last.
        end: usize,
    },
    /// Bytes beyond the file.
    #[error("tensor `{tensor}` ends at byte {end} of {data_bytes}")]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Byte after its last.
        end: usize,
        /// Bytes of data in the file.
        data_bytes: usize,
    },
    /// Bytes that two tensors claim.
    #[error("tensor `{tensor}` overlaps `{other}`")]
    Overlap {
        /// The tensor.
        tensor: String,
        /// The one before it.
        other: String,
    },
    /// Bytes that nobody claims.
    #[error("bytes {begin}..{end} of the data belong to no tensor")]
    Hole {
        /// First byte.
        begin: usize,
        /// Byte after the last.
        end: usize,
    },
}

/// One tensor in the file's bytes. `bytes` holds exactly the values of `shape`.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor<'a> {
    pub(super) name: String,
    pub(super) dtype: StoredDtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: &'a [u8],
}

impl StoredTensor<'_> {
    /// The values, widened; exact for all three types.
    pub(super) fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            StoredDtype::F32 => self.values(f32::from_le_bytes),
            StoredDtype::F16 => self.values(|bytes| f16::from_le_bytes(bytes).to_f32()),
            StoredDtype::Bf16 => self.values(|bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }

    fn values<const N: usize>(&self, read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let (values, rest) = self.bytes.as_chunks::<N>();
        assert!(rest.is_empty(), "the size was checked against shape and dtype");
        values.iter().map(|bytes| read(*bytes)).collect()
    }
}

/// Reads the header and cuts the data into tensors, in order of their bytes.
pub(super) fn parse(file: &[u8]) -> Result<Vec<StoredTensor<'_>>, TensorFileError> {
    let truncated = |needed| TensorFileError::Truncated { needed, file_bytes: file.len() };
    let (length, rest) =
        file.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| truncated(LENGTH_BYTES as u64))?;
    let header_bytes = u64::from_le_bytes(*length);
    let header_len =
        usize::try_from(header_bytes).ok().filter(|bytes| *bytes <= TENSOR_HEADER_BYTES_MAX);
    let header_len = header_len.ok_or(TensorFileError::HeaderTooLong { header_bytes })?;
    let (header, data) = rest
        .split_at_checked(header_len)
        .ok_or_else(|| truncated(LENGTH_BYTES as u64 + header_bytes))?;
    let Header(entries) = serde_json::from_slice(header).map_err(TensorFileError::Header)?;
    let mut spans = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name != METADATA_KEY {
            spans.push(Span::read(name, value)?);
        }
    }
    refuse_duplicates(&spans)?;
    spans.sort_by_key(|span| (span.begin, span.end));
    refuse_bad_tiling(&spans, data.len())?;
    Ok(spans.into_iter().map(|span| span.cut(data)).collect())
}

/// The header's entries in order, duplicates included.
struct Header(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// A described tensor whose size fits its type and shape.
struct Span {
    name: String,
    dtype: StoredDtype,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

impl Span {
    fn read(name: String, value: serde_json::Value) -> Result<Self, TensorFileError> {
        let Entry { dtype, shape, data_offsets: [begin, end] } = match serde_json::from_value(value)
        {
            Ok(entry) => entry,
            Err(source) => return Err(TensorFileError::Entry { tensor: name, source }),
        };
        let Some(dtype) = StoredDtype::from_name(&dtype) else {
            return Err(TensorFileError::Dtype {
                tensor: name,
                dtype: super::fields::shorten(&dtype),
            });
        };
        let bytes = shape.iter().try_fold(dtype.n_bytes(), |bytes, side| bytes.checked_mul(*side));
        if bytes.is_none() || bytes != end.checked_sub(begin) {
            return Err(TensorFileError::Size { tensor: name, dtype, shape, begin, end });
        }
        Ok(Self { name, dtype, shape, begin, end })
    }

    fn cut(self, data: &[u8]) -> StoredTensor<'_> {
        let Self { name, dtype, shape, begin, end } = self;
        StoredTensor { name, dtype, shape, bytes: &data[begin..end] }
    }
}

fn refuse_duplicates(spans: &[Span]) -> Result<(), TensorFileError> {
    let mut seen = std::collections::HashSet::with_capacity(spans.len());
    match spans.iter().find(|span| !seen.insert(span.name.as_str())) {
        Some(span) => Err(TensorFileError::Twice { tensor: span.name.clone() }),
        None => Ok(()),
    }
}

/// Spans sorted by begin must tile the data.
fn refuse_bad_tiling(spans: &[Span], data_bytes: usize) -> Result<(), TensorFileError> {
    let mut previous: Option<&Span> = None;
    for span in spans {
        let filled = previous.map_or(0, |previous| previous.end);
        if span.end > data_bytes {
            return Err(TensorFileError::OutOfFile {
                tensor: span.name.clone(),
                end: span.end,
                data_bytes,
            });
        }
        match previous {
            Some(other) if span.begin < filled => {
                return Err(TensorFileError::Overlap {
                    tensor: span.name.clone(),
                    other: other.name.clone(),
                });
            }
            _ if span.begin > filled => {
                return Err(TensorFileError::Hole { begin: filled, end: span.begin });
            }
            _ => previous = Some(span),
        }
    }
    let filled = previous.map_or(0, |previous| previous.end);
    if filled < data_bytes {
        return Err(TensorFileError::Hole { begin: filled, end: data_bytes });
    }
    Ok(())
}
