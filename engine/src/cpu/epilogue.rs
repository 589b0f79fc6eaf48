//! What happens to sixteen output features of one row when their sum is done.
#![expect(unsafe_code, reason = "vector kernel")]

use super::{
    lora::ExpandRows,
    simd::{LANES, Simd},
    threads::Parts,
};

/// `out[t, column + n] (+)= sum + bias[n] + lora_scale * (B v)[n]`, in this order; other kinds of adapters as
/// [`ExpandRows::add`] says.
pub(crate) struct Epilogue<'a> {
    /// `[T, stride]`.
    pub(crate) out: &'a Parts<'a, f32>,
    pub(crate) stride: usize,
    /// Where this matrix's features begin in a row; a multiple of 16.
    pub(crate) column: usize,
    /// Add to `out` (a residual) instead of overwriting it.
    pub(crate) accumulate: bool,
    /// Padded to whole tiles.
    pub(crate) bias: Option<&'a [f32]>,
    /// Adapters of the rows; `None` when no row of the step has one.
    pub(crate) lora: Option<ExpandRows<'a>>,
}

impl Epilogue<'_> {
    /// To be called before the base product of a tile.
    #[inline(always)]
    pub(crate) fn prefetch(&self, tile: usize) {
        if let Some(lora) = &self.lora {
            lora.prefetch(tile);
        }
    }

    /// # Safety
    /// The instruction set must be there, and no other thread may write this row's tile.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Simd>(&self, row: usize, tile: usize, sum: S::F) {
        let out = self.out.at(row * self.stride + self.column + tile * LANES, LANES);
        // SAFETY: `out` was checked for 16 values; the bias is padded to whole tiles (checked by the slice index).
        unsafe {
            let mut y = sum;
            if let Some(bias) = self.bias {
                y = S::add(y, S::load(bias[tile * LANES..][..LANES].as_ptr()));
            }
            if let Some(lora) = &self.lora {
                y = lora.add::<S>(row, tile, sum, self.bias, y);
            }
            if self.accumulate {
                y = S::add(S::load(out), y);
            }
            S::store(out, y);
        }
    }
}
