//! A small writer of GGUF files: tiny models and hostile files for tests.
//!
//! It checks nothing: what it is told is what it writes, so that the reader's checks can be tested.

use super::{GGUF_ALIGNMENT_DEFAULT, MetaValue, StringArray, parse::ALIGNMENT_KEY, parse::MAGIC};
use crate::quant::BlockFormat;

/// Collects metadata and tensors and writes them as a file. Everything is written in the order in which it was added.
///
/// ```
/// use pleach_engine::{gguf::{GgufBuilder, GgufFile}, quant::BlockFormat};
///
/// let bytes = GgufBuilder::new()
///     .meta("general.architecture", "llama")
///     .meta("llama.block_count", 2_u32)
///     .meta("tokenizer.ggml.tokens", vec!["a", "b"])
///     .tensor_f32("output_norm.weight", &[2], &[1.0, 1.0])
///     .tensor("output.weight", &[32, 1], BlockFormat::Q8_0, vec![0; 34])
///     .to_bytes();
/// let file = GgufFile::from_bytes(bytes)?;
/// assert_eq!(file.require_str("general.architecture")?, "llama");
/// assert_eq!(file.require_tensor("output.weight")?.shape2()?, (1, 32));
/// # Ok::<(), pleach_engine::gguf::GgufError>(())
/// ```
#[derive(Clone, Debug)]
pub struct GgufBuilder {
    version: u32,
    alignment: u64,
    entries: Vec<Entry>,
    tensors: Vec<Tensor>,
}

/// A key and its value, as in the file.
#[derive(Clone, Debug)]
struct Entry {
    key: String,
    type_number: u32,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    type_number: u32,
    /// `None`: after the tensors before it.
    offset: Option<u64>,
    bytes: Vec<u8>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufBuilder {
    /// An empty file of version 3.
    pub fn new() -> Self {
        Self {
            version: 3,
            alignment: GGUF_ALIGNMENT_DEFAULT,
            entries: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Writes another version number; the layout of 2 is the same.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// Writes `general.alignment` and places tensors by it; zero is written, and places them by 1.
    pub fn alignment(&mut self, alignment: u32) -> &mut Self {
        self.alignment = u64::from(alignment).max(1);
        self.meta(ALIGNMENT_KEY, alignment)
    }

    /// Adds a key. Numbers are written in 32 bits where all of them fit exactly, else in 64.
    pub fn meta(&mut self, key: impl Into<String>, value: impl Into<MetaValue>) -> &mut Self {
        let (type_number, payload) = encode(&value.into());
        self.meta_raw(key, type_number, payload)
    }

    /// Adds a key with a type number and bytes of the caller's choice.
    pub fn meta_raw(
        &mut self,
        key: impl Into<String>,
        type_number: u32,
        payload: impl Into<Vec<u8>>,
    ) -> &mut Self {
        self.entries.push(Entry { key: key.into(), type_number, payload: payload.into() });
        self
    }

    /// Adds a tensor after those before it. `dims` are in GGUF order, fastest first: `[in_features, out_features]`.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[usize],
        format: BlockFormat,
        bytes: impl Into<Vec<u8>>,
    ) -> &mut Self {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: dims.iter().map(|dim| *dim as u64).collect(),
            type_number: format.ggml_type(),
            offset: None,
            bytes: bytes.into(),
        });
        self
    }

    /// Adds a tensor of plain floats.
    pub fn tensor_f32(
        &mut self,
        name: impl Into<String>,
        dims: &[usize],
        values: &[f32],
    ) -> &mut Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dims, BlockFormat::F32, bytes)
    }

    /// Describes a tensor as the caller likes, without data of its own.
    pub fn tensor_raw(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        type_number: u32,
        offset: u64,
    ) -> &mut Self {
        let (name, dims) = (name.into(), dims.to_vec());
        self.tensors.push(Tensor {
            name,
            dims,
            type_number,
            offset: Some(offset),
            bytes: Vec::new(),
        });
        self
    }

    /// The file.
    ///
    /// # Panics
    /// If a tensor has more than 2³² dimensions.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for Entry { key, type_number, payload } in &self.entries {
            put_string(&mut out, key);
            out.extend_from_slice(&type_number.to_le_bytes());
            out.extend_from_slice(payload);
        }
        let mut data_end = 0_u64;
        for Tensor { name, dims, type_number, offset, bytes } in &self.tensors {
            put_string(&mut out, name);
            let n_dims = u32::try_from(dims.len()).expect("fewer than 2^32 dimensions");
            out.extend_from_slice(&n_dims.to_le_bytes());
            for dim in dims {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&type_number.to_le_bytes());
            out.extend_from_slice(&offset.unwrap_or(data_end).to_le_bytes());
            data_end = (data_end + bytes.len() as u64).next_multiple_of(self.alignment);
        }
        for Tensor { bytes, .. } in &self.tensors {
            self.pad(&mut out);
            out.extend_from_slice(bytes);
        }
        self.pad(&mut out);
        out
    }

    fn pad(&self, out: &mut Vec<u8>) {
        let alignment = usize::try_from(self.alignment).expect("alignment is a u32");
        out.resize(out.len().next_multiple_of(alignment), 0);
    }
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend_from_slice(&(string.len() as u64).to_le_bytes());
    out.extend_from_slice(string.as_bytes());
}

/// Type number and bytes of a value.
fn encode(value: &MetaValue) -> (u32, Vec<u8>) {
    match value {
        MetaValue::Uint(value) => encode_uints(&[*value]),
        MetaValue::Int(value) => encode_ints(&[*value]),
        MetaValue::Float(value) => encode_floats(&[*value]),
        MetaValue::Bool(value) => (7, vec![u8::from(*value)]),
        MetaValue::String(value) => {
            let mut out = Vec::new();
            put_string(&mut out, value);
            (8, out)
        }
        MetaValue::Uints(values) => array(values.len(), encode_uints(values)),
        MetaValue::Ints(values) => array(values.len(), encode_ints(values)),
        MetaValue::Floats(values) => array(values.len(), encode_floats(values)),
        MetaValue::Bools(values) => {
            array(values.len(), (7, values.iter().copied().map(u8::from).collect()))
        }
        MetaValue::Strings(values) => array(values.len(), (8, encode_strings(values))),
    }
}

fn array(n_items: usize, (item_type, items): (u32, Vec<u8>)) -> (u32, Vec<u8>) {
    let mut out = Vec::with_capacity(12 + items.len());
    out.extend_from_slice(&item_type.to_le_bytes());
    out.extend_from_slice(&(n_items as u64).to_le_bytes());
    out.extend_from_slice(&items);
    (9, out)
}

fn encode_strings(values: &StringArray) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values.iter() {
        put_string(&mut out, value);
    }
    out
}

fn encode_uints(values: &[u64]) -> (u32, Vec<u8>) {
    match values.iter().map(|value| u32::try_from(*value)).collect::<Result<Vec<_>, _>>() {
        Ok(narrow) => (4, narrow.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Err(_) => (10, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}

fn encode_ints(values: &[i64]) -> (u32, Vec<u8>) {
    match values.iter().map(|value| i32::try_from(*value)).collect::<Result<Vec<_>, _>>() {
        Ok(narrow) => (5, narrow.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Err(_) => (11, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "compared with the wide value before it is used"
)]
fn encode_floats(values: &[f64]) -> (u32, Vec<u8>) {
    if values.iter().all(|value| f64::from(*value as f32).to_bits() == value.to_bits()) {
        (6, values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect())
    } else {
        (12, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}
