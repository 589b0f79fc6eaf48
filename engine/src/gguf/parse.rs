//! From bytes to checked metadata and tensor places. The format is drawn in the module above; numbers in comments are its.

use std::collections::{BTreeMap, HashMap, btree_map::Entry};

use super::{
    GGUF_ALIGNMENT_DEFAULT, GGUF_ALIGNMENT_MAX, GGUF_DIMS_MAX, GGUF_KEY_BYTES_MAX, GGUF_KEYS_MAX,
    GGUF_METADATA_BYTES_MAX, GGUF_STRING_BYTES_MAX, GGUF_TENSOR_NAME_BYTES_MAX, GGUF_TENSORS_MAX,
    GgufError, MetaValue, StringArray, TensorInfo, getters,
    reader::{Place, Reader},
};
use crate::quant::BlockFormat;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
const SPLIT_COUNT_KEY: &str = "split.count";

/// Memory of an entry of the map beside its key and value, roughly: it makes many tiny keys count too.
const KEY_OVERHEAD_BYTES: u64 = 96;

/// Everything but the data.
pub(super) struct Parsed {
    pub(super) version: u32,
    pub(super) meta: BTreeMap<String, MetaValue>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) by_name: HashMap<String, usize>,
    pub(super) data_start: usize,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, GgufError> {
    let mut reader = Reader::new(bytes);
    let version = read_version(&mut reader)?;
    let n_tensors = reader.u64(Place::Header)?;
    let n_keys = reader.u64(Place::Header)?;
    if n_keys > GGUF_KEYS_MAX {
        return Err(GgufError::TooManyKeys { count: n_keys });
    }
    if n_tensors > GGUF_TENSORS_MAX {
        return Err(GgufError::TooManyTensors { count: n_tensors });
    }
    let meta = read_metadata(&mut reader, n_keys)?;
    // A part of a split model lists only its own tensors: everything after this would complain of the wrong thing.
    match getters::u64_of(&meta, SPLIT_COUNT_KEY)? {
        Some(count) if count > 1 => return Err(GgufError::Split { count }),
        Some(_) | None => {}
    }
    let alignment = getters::u64_of(&meta, ALIGNMENT_KEY)?.unwrap_or(GGUF_ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment > GGUF_ALIGNMENT_MAX {
        return Err(GgufError::Alignment { alignment });
    }

    let mut raw_tensors = Vec::new();
    for index in 0..n_tensors {
        raw_tensors.push(RawTensor::read(&mut reader, index)?);
    }
    // At most 2^20 is added to a place inside the file: no overflow.
    let data_start = reader
        .at()
        .next_multiple_of(usize::try_from(alignment).expect("alignment is at most 2^20"));
    let data_bytes = bytes.len().saturating_sub(data_start);

    let mut tensors = Vec::with_capacity(raw_tensors.len());
    let mut by_name = HashMap::with_capacity(raw_tensors.len());
    for raw in raw_tensors {
        let tensor = raw.check(alignment, data_bytes)?;
        if by_name.insert(tensor.name.clone(), tensors.len()).is_some() {
            return Err(GgufError::TensorTwice { tensor: tensor.name });
        }
        tensors.push(tensor);
    }
    check_apart(&tensors)?;
    Ok(Parsed { version, meta, tensors, by_name, data_start })
}

/// Parts 1 and 2.
fn read_version(reader: &mut Reader<'_>) -> Result<u32, GgufError> {
    let magic = reader.bytes4(Place::Header)?;
    if magic != MAGIC {
        return Err(GgufError::Magic { found: magic });
    }
    match reader.u32(Place::Header)? {
        version @ (2 | 3) => Ok(version),
        // Small versions read in the wrong byte order have their low half empty (the check of ggml's reader).
        version if version != 0 && version.trailing_zeros() >= 16 => {
            Err(GgufError::BigEndian { version: version.swap_bytes() })
        }
        version => Err(GgufError::Version { version }),
    }
}

/// Part 5.
fn read_metadata(
    reader: &mut Reader<'_>,
    n_keys: u64,
) -> Result<BTreeMap<String, MetaValue>, GgufError> {
    let mut meta = BTreeMap::new();
    let mut budget = Budget { left: GGUF_METADATA_BYTES_MAX };
    for index in 0..n_keys {
        let key = reader.string(GGUF_KEY_BYTES_MAX, Place::KeyName(index))?;
        budget.take(key, key.len() as u64 + KEY_OVERHEAD_BYTES)?;
        let type_number = reader.u32(Place::Key(key))?;
        let value = read_value(reader, key, type_number, &mut budget)?;
        match meta.entry(key.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => return Err(GgufError::KeyTwice { key: key.to_owned() }),
        };
    }
    Ok(meta)
}

/// What decoded metadata may still take, bytes.
struct Budget {
    left: u64,
}

impl Budget {
    fn take(&mut self, key: &str, n_bytes: u64) -> Result<(), GgufError> {
        self.left = self
            .left
            .checked_sub(n_bytes)
            .ok_or_else(|| GgufError::MetadataTooLarge { key: key.to_owned() })?;
        Ok(())
    }
}

/// Kinds of fixed width, by type number: see part 5.2.
#[derive(Clone, Copy)]
enum Plain {
    Uint(u8),
    Int(u8),
    F32,
    F64,
    Bool,
}

impl Plain {
    const fn of(type_number: u32) -> Option<Self> {
        Some(match type_number {
            0 => Self::Uint(1),
            1 => Self::Int(1),
            2 => Self::Uint(2),
            3 => Self::Int(2),
            4 => Self::Uint(4),
            5 => Self::Int(4),
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::Uint(8),
            11 => Self::Int(8),
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes in the file.
    const fn width(self) -> u8 {
        match self {
            Self::Uint(width) | Self::Int(width) => width,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Bool => 1,
        }
    }

    /// Decodes whole values, which lie one after the other.
    fn decode(self, bytes: &[u8], key: &str) -> Result<MetaValue, GgufError> {
        let values = bytes.chunks_exact(usize::from(self.width()));
        Ok(match self {
            Self::Uint(_) => MetaValue::Uints(values.map(uint).collect()),
            Self::Int(width) => {
                // The sign bit is moved to the top and back, which copies it into all bits above.
                let shift = 64 - 8 * u32::from(width);
                MetaValue::Ints(
                    values.map(|value| (uint(value) << shift).cast_signed() >> shift).collect(),
                )
            }
            Self::F32 => MetaValue::Floats(
                values.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
            ),
            Self::F64 => {
                MetaValue::Floats(values.map(|value| f64::from_bits(uint(value))).collect())
            }
            Self::Bool => MetaValue::Bools(
                bytes
                    .iter()
                    .map(|&byte| match byte {
                        0 => Ok(false),
                        1 => Ok(true),
                        _ => Err(GgufError::BoolValue { key: key.to_owned(), byte }),
                    })
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}

/// Up to eight bytes, little-endian.
fn uint(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Part 5.3.
fn read_value(
    reader: &mut Reader<'_>,
    key: &str,
    type_number: u32,
    budget: &mut Budget,
) -> Result<MetaValue, GgufError> {
    let place = Place::Key(key);
    match type_number {
        8 => {
            let string = reader.string(GGUF_STRING_BYTES_MAX, place)?;
            budget.take(key, string.len() as u64)?;
            Ok(MetaValue::String(string.to_owned()))
        }
        9 => {
            let item_type = reader.u32(place)?;
            let n_items = reader.u64(place)?;
            read_array(reader, key, item_type, n_items, budget)
        }
        _ => {
            let plain = Plain::of(type_number)
                .ok_or_else(|| GgufError::ValueType { key: key.to_owned(), type_number })?;
            let bytes = reader.take(plain.width().into(), place)?;
            Ok(match plain.decode(bytes, key)? {
                MetaValue::Uints(values) => MetaValue::Uint(values[0]),
                MetaValue::Ints(values) => MetaValue::Int(values[0]),
                MetaValue::Floats(values) => MetaValue::Float(values[0]),
                MetaValue::Bools(values) => MetaValue::Bool(values[0]),
                other @ (MetaValue::Uint(_)
                | MetaValue::Int(_)
                | MetaValue::Float(_)
                | MetaValue::Bool(_)
                | MetaValue::String(_)
                | MetaValue::Strings(_)) => other,
            })
        }
    }
}

/// Part 5.3.3.
fn read_array(
    reader: &mut Reader<'_>,
    key: &str,
    item_type: u32,
    n_items: u64,
    budget: &mut Budget,
) -> Result<MetaValue, GgufError> {
    let place = Place::Key(key);
    match item_type {
        8 => {
            // Each string has at least its length of 8 bytes in the file, and one end of 8 bytes in memory.
            let n_strings = reader.check(n_items.saturating_mul(8), place)? / 8;
            budget.take(key, n_items * 8)?;
            let mut strings = StringArray::with_capacity(n_strings);
            for index in 0..n_items {
                let string = reader.string(GGUF_STRING_BYTES_MAX, Place::Item(key, index))?;
                budget.take(key, string.len() as u64)?;
                strings.push(string);
            }
            Ok(MetaValue::Strings(strings))
        }
        9 => Err(GgufError::NestedArray { key: key.to_owned() }),
        _ => {
            let plain = Plain::of(item_type).ok_or_else(|| GgufError::ValueType {
                key: key.to_owned(),
                type_number: item_type,
            })?;
            let bytes = reader.take(n_items.saturating_mul(plain.width().into()), place)?;
            // Decoded numbers have 8 bytes whatever their width was; so there are no more than 2^61 of them.
            budget.take(key, n_items.saturating_mul(8))?;
            plain.decode(bytes, key)
        }
    }
}

/// Part 6, as it is in the file.
struct RawTensor<'a> {
    name: &'a str,
    dims: Vec<u64>,
    type_number: u32,
    offset: u64,
}

impl<'a> RawTensor<'a> {
    fn read(reader: &mut Reader<'a>, index: u64) -> Result<Self, GgufError> {
        let name = reader.string(GGUF_TENSOR_NAME_BYTES_MAX, Place::TensorName(index))?;
        let place = Place::Tensor(name);
        let n_dims = reader.u32(place)?;
        if n_dims == 0 || n_dims > GGUF_DIMS_MAX {
            return Err(GgufError::DimsCount { tensor: name.to_owned(), n_dims });
        }
        let dims = (0..n_dims).map(|_| reader.u64(place)).collect::<Result<_, _>>()?;
        Ok(Self { name, dims, type_number: reader.u32(place)?, offset: reader.u64(place)? })
    }

    fn check(self, alignment: u64, data_bytes: usize) -> Result<TensorInfo, GgufError> {
        let Self { name, dims: raw_dims, type_number, offset } = self;
        let tensor = || name.to_owned();
        let format = BlockFormat::from_ggml_type(type_number)
            .ok_or_else(|| GgufError::TensorType { tensor: tensor(), type_number })?;
        if raw_dims.contains(&0) {
            return Err(GgufError::DimZero { tensor: tensor(), dims: raw_dims });
        }
        let Some((dims, n_values)) = checked_dims(&raw_dims) else {
            return Err(GgufError::TensorTooLarge { tensor: tensor(), dims: raw_dims });
        };
        if !dims[0].is_multiple_of(format.block_values()) {
            return Err(GgufError::RowBlocks { tensor: tensor(), row: dims[0], format });
        }
        // Rows are whole blocks, and so are all of them.
        let Some(n_bytes) = format.row_bytes(n_values) else {
            return Err(GgufError::TensorTooLarge { tensor: tensor(), dims: raw_dims });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(GgufError::TensorMisaligned { tensor: tensor(), offset, alignment });
        }
        match usize::try_from(offset) {
            Ok(start) if start.checked_add(n_bytes).is_some_and(|end| end <= data_bytes) => {
                Ok(TensorInfo { name: tensor(), dims, format, offset: start, n_bytes })
            }
            Ok(_) | Err(_) => {
                Err(GgufError::TensorOutside { tensor: tensor(), offset, n_bytes, data_bytes })
            }
        }
    }
}

/// Dimensions and their product, if they fit this machine's word.
fn checked_dims(raw_dims: &[u64]) -> Option<(Vec<usize>, usize)> {
    let dims = raw_dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Vec<_>>>()?;
    let n_values = dims.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))?;
    Some((dims, n_values))
}

fn check_apart(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.offset + first.n_bytes > second.offset {
            return Err(GgufError::TensorsOverlap {
                first: first.name.clone(),
                second: second.name.clone(),
            });
        }
    }
    Ok(())
}
