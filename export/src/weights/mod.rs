//! Weights on their way from the model file into the graph: read by rows, changed by an adapter that is merged, and
//! written as floats or as blocks of integer codes. No matrix is in memory as a whole.

mod blocks;
mod matrix;
mod tally;
mod write;

pub(crate) use blocks::Blocks;
pub(crate) use matrix::{Matrix, MatrixRows};
pub use tally::WeightsWritten;
pub(crate) use tally::{Loss, Tally};
pub(crate) use write::{
    write_blocks, write_blocks_transposed, write_floats, write_floats_transposed,
};

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Floats: the dequantized values.
    F32,
    /// Blocks of 4-bit codes where the file has codes of at most 4 bits, of 8-bit codes where it has more: both are
    /// exact. Floats of layers are quantized to 4 bits.
    Int4,
    /// Blocks of 8-bit codes: exact for every block format of the file. Floats are quantized.
    Int8,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int4 => "int4",
            Self::Int8 => "int8",
        })
    }
}

/// What a matrix becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Floats,
    Blocks(Blocks),
}

impl Encoding {
    /// `is_end`: of the embedding and the head, which suffer most from few bits.
    pub(crate) fn of(matrix: &Matrix<'_, '_>, precision: Precision, is_end: bool) -> Self {
        let bits = match precision {
            Precision::F32 => return Self::Floats,
            Precision::Int4 => 4,
            Precision::Int8 => 8,
        };
        if let Some(layout) = matrix.unchanged_codes() {
            return Self::Blocks(Blocks::exact(layout, bits));
        }
        if !matrix.n_in.is_multiple_of(blocks::LOSSY_BLOCK) {
            return Self::Floats;
        }
        // Four bits would lose most of an adapter, whose changes are smaller than their steps.
        let bits = if is_end || matrix.is_changed() { 8 } else { bits };
        Self::Blocks(Blocks::lossy(bits))
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Floats => f.write_str("f32"),
            Self::Blocks(blocks) => write!(f, "int{} by {}", blocks.bits, blocks.size),
        }
    }
}
