//! Low-rank adapters of the rows of a step.
//!
//! Two halves: *shrink*, `v[t, r] = Σ_k A[r, k] x[t, k]`, once per projection; *expand*,
//! `y[t, n] += lora_scale * Σ_r B[n, r] v[t, r]`, in the epilogue of the base product. Rows without an adapter take
//! part in neither. Source: the segmented form of Punica (arXiv 2310.18547).
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use std::sync::Arc;

use crate::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX},
    backend::RunError,
    packed_adapter::{AdapterPacker, PackedAdapter},
    site::{Site, TargetModule},
    spec::ModelSpec,
};

use super::{
    matmul_f32::dot_rows,
    packed::{Dense, PackedMatrix, Storage},
    simd::{Kernel, LANES, Simd},
    threads::Parts,
};

/// Row without an adapter, in [`ExpandRows::slots`].
pub(crate) const NO_SLOT: u32 = u32::MAX;
/// Projections that share one input: q, k and v.
pub(crate) const PARTS_MAX: usize = 3;
/// Values of `v` in a row.
pub(crate) const V_STRIDE: usize = PARTS_MAX * LORA_RANK_MAX;

/// One site's weights on the device.
#[derive(Debug)]
pub(crate) struct ResidentSite {
    lora_scale: f32,
    /// `[R, K]`.
    a: PackedMatrix,
    /// `[N, R]`, columns padded to a multiple of 4 with zeros.
    b: PackedMatrix,
}

/// One adapter on the device.
#[derive(Debug)]
pub(crate) struct ResidentAdapter {
    /// By `layer * 7 + module`.
    sites: Vec<Option<ResidentSite>>,
}

/// Packs adapters for the CPU: what it makes is what the kernels read.
pub(crate) struct CpuPacker {
    pub(crate) spec: ModelSpec,
    pub(crate) dense: Dense,
    pub(crate) capacity_bytes: usize,
}

impl AdapterPacker for CpuPacker {
    fn pack(&self, weights: &AdapterWeights) -> Result<PackedAdapter, RunError> {
        weights.check(&self.spec)?;
        if self.dense == Dense::F16 {
            weights.check_f16()?;
        }
        let adapter = ResidentAdapter::pack(weights, self.spec.n_layers, self.dense, |module| {
            self.spec.linear_shape(module)
        });
        let n_bytes = adapter.n_bytes();
        Ok(PackedAdapter::new(adapter, n_bytes))
    }

    fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }
}

impl ResidentAdapter {
    /// Packs checked weights. `shape` gives a module's output and input features.
    pub(crate) fn pack(
        weights: &AdapterWeights,
        n_layers: usize,
        dense: Dense,
        shape: impl Fn(TargetModule) -> (usize, usize),
    ) -> Self {
        let mut sites: Vec<Option<ResidentSite>> = Vec::new();
        sites.resize_with(n_layers * TargetModule::ALL.len(), || None);
        for site in &weights.sites {
            let (n_out, n_in) = shape(site.site.module);
            let a = PackedMatrix::from_f32(dense, site.rank, n_in, 4, &site.a);
            let b = PackedMatrix::from_f32(dense, n_out, site.rank, 4, &site.b);
            sites[index(site.site)] = Some(ResidentSite { lora_scale: site.lora_scale, a, b });
        }
        Self { sites }
    }

    fn n_bytes(&self) -> usize {
        let sites = self.sites.iter().flatten();
        sites.map(|site| site.a.n_bytes() + site.b.n_bytes()).sum()
    }

    pub(crate) fn site(&self, site: Site) -> Option<&ResidentSite> {
        self.sites[index(site)].as_ref()
    }
}

fn index(site: Site) -> usize {
    site.layer * TargetModule::ALL.len() + site.module.index()
}

impl ResidentSite {
    /// Tiles of sixteen ranks.
    pub(crate) fn rank_tiles(&self) -> usize {
        self.a.n_tiles()
    }
}

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
    pub(crate) site: Site,
    /// `[T, V_STRIDE]`.
    pub(crate) v: &'a [f32],
    pub(crate) part: usize,
}

impl ExpandRows<'_> {
    /// `y + lora_scale * (B v)` for sixteen features of a row.
    ///
    /// # Safety
    /// The instruction set must be there.
    #[inline(always)]
    pub(crate) unsafe fn add<S: Simd>(&self, row: usize, tile: usize, y: S::F) -> S::F {
        let slot = self.slots[row];
        if slot == NO_SLOT {
            return y;
        }
        let Some(site) =
            self.adapters[slot as usize].as_ref().and_then(|adapter| adapter.site(self.site))
        else {
            return y;
        };
        let b = &site.b;
        let v = self.v[row * V_STRIDE + self.part * LORA_RANK_MAX..][..b.n_in].as_ptr();
        // SAFETY: a tile of B has `n_in * 16` values; `v` was checked by the slice.
        unsafe {
            let tile = b.tile(tile).as_ptr();
            let [delta] = if b.storage == Storage::Dense(Dense::F16) {
                dot_rows::<S, 1, 1>(tile, b.n_in, [v])
            } else {
                dot_rows::<S, 0, 1>(tile, b.n_in, [v])
            };
            S::fma(S::splat(site.lora_scale), delta, y)
        }
    }
}
