//! ONNX Runtime's file of an adapter, `.onnx_adapter`: a flatbuffer, written forwards.
//!
//! ```text
//! table Adapter   { format_version: int; adapter_version: int; model_version: int; parameters: [Parameter]; }
//! table Parameter { name: string; dims: [int64]; data_type: int (ONNX's); raw_data: [ubyte]; }
//!
//!  0  u32   offset of the root table           8  vtable (12 B): bytes of it, bytes of a table, offsets of 4 fields
//!  4  4 B   "TORT"                            20  root table: i32 back to its vtable, 3 x i32, u32 to the parameters
//! 40  u32   number of parameters, for each a u32 to its table; the vtable that they share; their tables; then for each
//!           name (u32 length, bytes, 0), dims (u32 length, i64 each), data (u32 length, bytes)
//! ```
//!
//! Offsets count from where they are. Numbers of eight bytes, and the data, lie at multiples of eight.
//! Source: `adapter_schema.fbs` of ONNX Runtime; checked against what `onnxruntime.AdapterFormat` reads.

use std::path::Path;

use pleach_engine::{adapter_weights::AdapterWeights, spec::ModelSpec};

use crate::{
    error::ExportError,
    onnx::{DataFile, proto::DataType},
};

use super::factors::{Factor, factors};

const IDENTIFIER: &[u8] = b"TORT";
const FORMAT_VERSION: u32 = 1;
/// Ours: the contents are named by a digest, in the manifest.
const ADAPTER_VERSION: u32 = 1;
const MODEL_VERSION: u32 = 1;
/// Offsets are 32 bits, and readers treat them as signed.
const FILE_BYTES_MAX: u64 = i32::MAX as u64;

const TABLE_BYTES: u64 = 20;
const VTABLE_BYTES: u64 = 12;
const VTABLE_AT: u64 = 8;
const ROOT_AT: u64 = VTABLE_AT + VTABLE_BYTES;
const PARAMETERS_AT: u64 = ROOT_AT + TABLE_BYTES;

/// Where the parts of a parameter lie.
#[derive(Clone, Copy)]
struct Place {
    name: u64,
    dims: u64,
    data: u64,
    end: u64,
}

/// Writes the [`factors`]. Bytes and digest of the file.
pub(crate) fn write_adapter(
    path: &Path,
    weights: &AdapterWeights,
    spec: &ModelSpec,
) -> Result<(u64, String), ExportError> {
    let parameters = factors(weights, spec);
    let (n, places) = (parameters.len() as u64, places(&parameters));
    let bytes = places.last().map_or(PARAMETERS_AT, |place| place.end);
    if bytes > FILE_BYTES_MAX {
        let format = "an .onnx_adapter file";
        return Err(ExportError::TooLarge { path: path.to_owned(), bytes, format });
    }
    let mut out = Forward { file: DataFile::create(path)?, position: 0 };
    out.u32(narrow(ROOT_AT))?;
    out.bytes(IDENTIFIER)?;
    out.vtable()?;
    out.u32(narrow(ROOT_AT - VTABLE_AT))?;
    for version in [FORMAT_VERSION, ADAPTER_VERSION, MODEL_VERSION] {
        out.u32(version)?;
    }
    out.offset(PARAMETERS_AT)?;
    out.u32(narrow(n))?;
    let (vtable, tables) = tables_at(n);
    for index in 0..n {
        out.offset(tables + index * TABLE_BYTES)?;
    }
    out.vtable()?;
    for (index, place) in places.iter().enumerate() {
        let table = tables + index as u64 * TABLE_BYTES;
        out.u32(narrow(table - vtable))?;
        out.offset(place.name)?;
        out.offset(place.dims)?;
        out.u32(i32::from(DataType::Float).unsigned_abs())?;
        out.offset(place.data)?;
    }
    for (parameter, place) in parameters.iter().zip(&places) {
        out.parameter(parameter, *place)?;
    }
    out.file.finish()
}

/// The vtable of the parameters' tables, and the first table.
fn tables_at(n: u64) -> (u64, u64) {
    let vtable = PARAMETERS_AT + 4 + 4 * n;
    (vtable, vtable + VTABLE_BYTES)
}

fn places(parameters: &[Factor<'_>]) -> Vec<Place> {
    let (_, tables) = tables_at(parameters.len() as u64);
    let mut at = tables + parameters.len() as u64 * TABLE_BYTES;
    // The length before what is aligned to eight bytes.
    let before_eight = |at: u64| (at + 4).next_multiple_of(8) - 4;
    let place = |parameter: &Factor<'_>| {
        let name = at;
        let dims = before_eight(name + 4 + parameter.name.len() as u64 + 1);
        let data = before_eight(dims + 4 + 8 * parameter.dims.len() as u64);
        let end = data + 4 + parameter.n_bytes();
        at = end.next_multiple_of(4);
        Place { name, dims, data, end }
    };
    parameters.iter().map(place).collect()
}

/// The file and how far it is.
struct Forward {
    file: DataFile,
    position: u64,
}

impl Forward {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.position += bytes.len() as u64;
        self.file.bytes(bytes)
    }

    fn u32(&mut self, value: u32) -> Result<(), ExportError> {
        self.bytes(&value.to_le_bytes())
    }

    /// The distance to `target`, which lies ahead.
    fn offset(&mut self, target: u64) -> Result<(), ExportError> {
        self.u32(narrow(target - self.position))
    }

    fn vtable(&mut self) -> Result<(), ExportError> {
        let sizes = [VTABLE_BYTES, TABLE_BYTES, 4, 8, 12, 16];
        sizes.into_iter().try_for_each(|value| self.bytes(&value.to_le_bytes()[..2]))
    }

    fn fill(&mut self, to: u64) -> Result<(), ExportError> {
        while self.position < to {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    fn parameter(&mut self, parameter: &Factor<'_>, place: Place) -> Result<(), ExportError> {
        self.fill(place.name)?;
        self.u32(narrow(parameter.name.len() as u64))?;
        self.bytes(parameter.name.as_bytes())?;
        self.bytes(&[0])?;
        self.fill(place.dims)?;
        self.u32(narrow(parameter.dims.len() as u64))?;
        for dim in parameter.dims {
            self.bytes(&(dim as u64).to_le_bytes())?;
        }
        self.fill(place.data)?;
        self.u32(narrow(parameter.n_bytes()))?;
        self.position += parameter.n_bytes();
        self.file.floats(&parameter.values())
    }
}

/// The size of the whole file was compared with the limit.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
