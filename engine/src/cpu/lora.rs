//! Low-rank adapters of the rows of a step.
//!
//! Two halves: *shrink*, `v[t, r] = Σ_k A[r, k] x[t, k]`, once per projection; *expand*,
//! `y[t, n] += lora_scale * Σ_r B[n, r] v[t, r]`, in the epilogue of the base product. Rows without an adapter take
//! part in neither. Source: the segmented form of Punica (arXiv 2310.18547).
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use std::{ops::Range, sync::Arc};

use crate::adapter_weights::LORA_RANK_MAX;

use super::{
    matmul_f32::dot_rows,
    packed::{Dense, PackedMatrix, Storage},
    plan::SlotRows,
    resident::{MoreOfSite, ResidentAdapter, ResidentSite},
    simd::{Kernel, LANES, Simd, prefetch},
    threads::Parts,
};

/// Row without an adapter, in [`ExpandRows::slots`].
pub(crate) const NO_SLOT: u32 = u32::MAX;
/// Projections that share one input: q, k and v.
pub(crate) const PARTS_MAX: usize = 3;
/// Adapters of a step whose weights are asked for ahead of their use: more would push one another out of the cache.
const GROUPS_AHEAD: usize = 16;
/// Values of `v` in a row.
pub(crate) const V_STRIDE: usize = PARTS_MAX * LORA_RANK_MAX;

/// Shrinks the rows of one adapter at one site, sixteen ranks.
pub(crate) struct Shrink<'a> {
    pub(crate) site: &'a ResidentSite,
    pub(crate) rank_tile: usize,
    /// Rows of the step that have this adapter.
    pub(crate) rows: &'a [u32],
    /// `[T, x_stride]`.
    pub(crate) x: &'a [f32],
    pub(crate) x_stride: usize,
    /// `[T, V_STRIDE]`.
    pub(crate) v: &'a Parts<'a, f32>,
    /// Which of the projections that share the input.
    pub(crate) part: usize,
}

impl Kernel for Shrink<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let a = &self.site.a;
        assert!(a.n_in <= self.x_stride);
        let tile = a.tile(self.rank_tile).as_ptr();
        let column = self.part * LORA_RANK_MAX + self.rank_tile * LANES;
        let mut at = 0;
        macro_rules! rows {
            ($n:literal) => {
                while S::F32_ROWS >= $n && self.rows.len() - at >= $n {
                    let x: [*const f32; $n] =
                        std::array::from_fn(|i| self.x[self.rows[at + i] as usize * self.x_stride..][..a.n_in].as_ptr());
                    // SAFETY: a tile of A has `n_in * 16` values, the rows were checked by the slice above.
                    let sums = unsafe {
                        match a.storage {
                            Storage::Dense(Dense::F16) => dot_rows::<S, 1, $n>(tile, a.n_in, x),
                            _ => dot_rows::<S, 0, $n>(tile, a.n_in, x),
                        }
                    };
                    for (i, sum) in sums.into_iter().enumerate() {
                        let v = self.v.at(self.rows[at + i] as usize * V_STRIDE + column, LANES);
                        // SAFETY: 16 values, checked by `at`; this chunk alone has these rows and ranks.
                        unsafe { S::store(v, sum) };
                    }
                    at += $n;
                }
            };
        }
        rows!(4);
        rows!(2);
        rows!(1);
    }
}

/// The second half for all rows at one site, see [`super::epilogue::Epilogue`].
pub(crate) struct ExpandRows<'a> {
    pub(crate) adapters: &'a [Option<Arc<ResidentAdapter>>],
    /// Slot of each row, or [`NO_SLOT`].
    pub(crate) slots: &'a [u32],
    /// Rows by adapter.
    pub(crate) groups: &'a [SlotRows],
    /// Of the site, see [`super::resident::site_index`].
    pub(crate) site: usize,
    /// `[T, V_STRIDE]`.
    pub(crate) v: &'a [f32],
    pub(crate) part: usize,
    pub(crate) ahead: Ahead,
}

/// Whose first half is computed next, and which share of it each tile of this projection brings near.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    /// See [`super::resident::sites_after`].
    pub(crate) sites: Range<usize>,
    /// Tiles of the projection before this linear's.
    pub(crate) first_tile: usize,
    /// Of the projection.
    pub(crate) n_tiles: usize,
}

impl ExpandRows<'_> {
    /// Brings near what the rows' adapters have for this tile, and this tile's share of what they have for the next
    /// projection: the base product of several rows computes more than it loads, and the memory would idle.
    #[inline(always)]
    pub(crate) fn prefetch(&self, tile: usize) {
        for group in &self.groups[..self.groups.len().min(GROUPS_AHEAD)] {
            let Some(adapter) = &self.adapters[group.slot as usize] else { continue };
            if let Some(site) = adapter.site(self.site) {
                prefetch(site.b.tile(tile));
            }
            for index in self.ahead.sites.clone() {
                let Some(site) = adapter.site(index) else { continue };
                let bytes = site.a.bytes();
                let share = bytes.len().div_ceil(self.ahead.n_tiles).next_multiple_of(64);
                let from = (self.ahead.first_tile + tile) * share;
                prefetch(&bytes[from.min(bytes.len())..(from + share).min(bytes.len())]);
            }
        }
    }

    /// `y + lora_scale * (B v)` for sixteen features of a row; `y` is `sum`, the base product, with its bias.
    ///
    /// # Safety
    /// The instruction set must be there.
    #[inline(always)]
    pub(crate) unsafe fn add<S: Simd>(
        &self,
        row: usize,
        tile: usize,
        sum: S::F,
        bias: Option<&[f32]>,
        y: S::F,
    ) -> S::F {
        let slot = self.slots[row];
        if slot == NO_SLOT {
            return y;
        }
        let Some(site) =
            self.adapters[slot as usize].as_ref().and_then(|adapter| adapter.site(self.site))
        else {
            return y;
        };
        let v = &self.v[row * V_STRIDE + self.part * LORA_RANK_MAX..][..site.b.n_in];
        // SAFETY: the instruction set is the caller's.
        unsafe {
            let delta = dot_dense::<S>(&site.b, tile, v);
            match &site.more {
                None => S::fma(S::splat(site.lora_scale), delta, y),
                Some(more) => more.add::<S>(tile, site.lora_scale, delta, sum, bias, y),
            }
        }
    }
}

impl MoreOfSite {
    /// `y + lora_scale * (delta + lora_bias)`, or `DoRA`'s `gain * (sum + lora_scale * delta) + bias`.
    #[inline(always)]
    unsafe fn add<S: Simd>(
        &self,
        tile: usize,
        lora_scale: f32,
        mut delta: S::F,
        sum: S::F,
        bias: Option<&[f32]>,
        y: S::F,
    ) -> S::F {
        // SAFETY: the instruction set is the caller's; all vectors are padded to whole tiles (checked by the slices).
        unsafe {
            let load = |values: &[f32]| S::load(values[tile * LANES..][..LANES].as_ptr());
            if let Some(bias) = &self.bias {
                delta = S::add(delta, load(bias));
            }
            let Some(gain) = &self.gain else {
                return S::fma(S::splat(lora_scale), delta, y);
            };
            let adapted = S::mul(load(gain), S::fma(S::splat(lora_scale), delta, sum));
            match bias {
                Some(bias) => S::add(adapted, load(bias)),
                None => adapted,
            }
        }
    }
}

/// Sixteen rows of a dense matrix times `v`.
///
/// # Safety
/// The instruction set must be there.
#[inline(always)]
pub(crate) unsafe fn dot_dense<S: Simd>(b: &PackedMatrix, tile: usize, v: &[f32]) -> S::F {
    assert!(v.len() >= b.n_in);
    let tile = b.tile(tile).as_ptr();
    // SAFETY: a tile has `n_in * 16` values, `v` was checked above.
    let [sum] = unsafe {
        if b.storage == Storage::Dense(Dense::F16) {
            dot_rows::<S, 1, 1>(tile, b.n_in, [v.as_ptr()])
        } else {
            dot_rows::<S, 0, 1>(tile, b.n_in, [v.as_ptr()])
        }
    };
    sum
}
