//! The memory of a pass for products of bf16: what they read, in pairs.

use crate::cpu::{memory::Lines, simd::LANES};

use super::{
    memory::{PARTS, Widths},
    product_bf16::PairRows,
};

/// Rows of pairs, `[rows, stride]`.
#[derive(Debug, Default)]
pub(crate) struct PairBuffer {
    pub(crate) pairs: Lines<u32>,
    pub(crate) stride: usize,
}

impl PairBuffer {
    fn new([n_rows, stride]: [usize; 2]) -> Self {
        Self { pairs: Lines::zeroed(n_rows * stride), stride }
    }

    pub(crate) fn rows(&self) -> PairRows<'_> {
        PairRows { pairs: &self.pairs, stride: self.stride }
    }
}

/// Empty with f32.
#[derive(Debug, Default)]
pub(crate) struct PairMemory {
    /// Inputs of linears that share them, or gradients of their outputs, in the columns that those have.
    pub(crate) rounded: PairBuffer,
    /// `s A x`, backward `s Bᵀ dy`, of each part.
    pub(crate) v: [PairBuffer; PARTS],
    /// One of them by twos (see [`super::lora_bf16::ByTwos`]), for the gradient that comes next.
    pub(crate) by_twos: Lines<u32>,
    /// Each part's factors in the order that products read.
    pub(crate) packed: [[Lines<u32>; 2]; PARTS],
}

/// Rows and pairs of each buffer.
struct Shapes {
    rounded: [usize; 2],
    v: [usize; 2],
    by_twos: [usize; 2],
    packed: [usize; 2],
}

impl Shapes {
    fn new(n_rows: usize, widths: &Widths, head_columns: usize) -> Self {
        let widest = widths.widest.max(widths.qkv()).max(2 * widths.ffn).max(head_columns);
        // An odd number of cache lines apart: at a power of two, the rows of a block would share one set of the cache.
        let lines = widest.div_ceil(2 * LANES).next_multiple_of(2) + 1;
        Self {
            rounded: [n_rows, lines * LANES],
            v: [n_rows, widths.rank / 2],
            by_twos: [n_rows, widths.rank],
            packed: [widths.widest / 2, widths.rank],
        }
    }
}

impl PairMemory {
    /// Bytes that [`Self::new`] takes.
    pub(crate) fn bytes(n_rows: usize, widths: &Widths, head_columns: usize) -> usize {
        let Shapes { rounded, v, by_twos, packed } = Shapes::new(n_rows, widths, head_columns);
        let parts = [v, packed, packed].into_iter().cycle().take(3 * PARTS);
        let all = [rounded, by_twos].into_iter().chain(parts);
        all.map(|[rows, stride]| rows * stride).sum::<usize>() * size_of::<u32>()
    }

    /// For so many rows and the columns of so many logits.
    pub(crate) fn new(n_rows: usize, widths: &Widths, head_columns: usize) -> Self {
        let Shapes { rounded, v, by_twos, packed } = Shapes::new(n_rows, widths, head_columns);
        let lines = |[rows, stride]: [usize; 2]| Lines::zeroed(rows * stride);
        Self {
            rounded: PairBuffer::new(rounded),
            v: std::array::from_fn(|_| PairBuffer::new(v)),
            by_twos: lines(by_twos),
            packed: std::array::from_fn(|_| [lines(packed), lines(packed)]),
        }
    }
}
