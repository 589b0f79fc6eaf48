//! Norms of the rows of an adapted weight, `||W[n] + lora_scale (B A)[n]||`: what `DoRA` (arXiv 2402.09353) divides by.
//!
//! Computed once, when an adapter is packed, from the resident weight or that of the file, tile by tile: the adapted weight is never there
//! as a whole. One lane is one row, sixteen rows at a time, in four chains along K.
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use crate::{
    adapter_weights::{AdapterWeightsError, SiteWeights},
    backend::MatrixSource,
    breaks::may_break,
    site::Site,
};

use super::{
    isa::Isa,
    matmul_f32::dequantize_tile,
    memory::Arena,
    packed::{BLOCK, Dense, PackedMatrix, Storage},
    simd::{Kernel, LANES, Simd},
};

/// Values of K that are kept in registers.
const STEP: usize = 4;
/// Multiply-adds of a thread below which it is not worth starting one.
const THREAD_WORK: usize = 1 << 24;

/// Who packs: threads are started for large matrices only, and are not those of the step loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workers {
    pub(crate) isa: Isa,
    pub(crate) n_threads: usize,
}

/// The norm of every row of `W + lora_scale B A`.
pub(crate) fn row_norms(workers: Workers, w: &PackedMatrix, weights: &SiteWeights) -> Vec<f32> {
    norms_by_tile(workers, (w.n_out, w.n_in), weights, |tile, run| run(w, tile))
}

/// The same, bit for bit, of a weight that is packed a tile at a time, and not kept.
pub(crate) fn source_norms(
    workers: Workers,
    source: &MatrixSource<'_>,
    weights: &SiteWeights,
) -> Vec<f32> {
    let rows: Vec<&[u8]> = (0..source.n_out).map(source.row).collect();
    let (format, n_in) = (source.format, source.n_in);
    let shape = (source.n_out, n_in.next_multiple_of(BLOCK));
    norms_by_tile(workers, shape, weights, |tile, run| {
        let rows = &rows[tile * LANES..rows.len().min((tile + 1) * LANES)];
        let arena = &mut Arena::new(0);
        run(&PackedMatrix::pack(format, rows.len(), n_in, arena, |n| rows[n]), 0);
    })
}

/// `DoRA`'s `m[n] / norms[n]`: what row `n` of the adapted weight is scaled by.
///
/// # Errors
/// [`AdapterWeightsError::Norm`] with the first row that cannot be scaled.
pub(crate) fn gains(
    site: Site,
    magnitude: &[f32],
    norms: &[f32],
) -> Result<Vec<f32>, AdapterWeightsError> {
    let mut gains = Vec::with_capacity(magnitude.len());
    for (row, (&magnitude, &norm)) in magnitude.iter().zip(norms).enumerate() {
        let gain = magnitude / norm;
        if !gain.is_finite() || !norm.is_finite() {
            return Err(AdapterWeightsError::Norm { site, row, norm });
        }
        gains.push(gain);
    }
    Ok(gains)
}

/// Norms of `n_out` rows of so many columns, padded as packed weights are. `with_tile` lends a tile to its second
/// argument: a matrix, and which of its tiles it is.
fn norms_by_tile(
    workers: Workers,
    (n_out, n_in_padded): (usize, usize),
    weights: &SiteWeights,
    with_tile: impl Fn(usize, &mut dyn FnMut(&PackedMatrix, usize)) + Sync,
) -> Vec<f32> {
    let (rank, n_in) = (weights.rank, weights.a.len() / weights.rank);
    // Columns that the packed weight pads with zeros are zero here too.
    let mut a = vec![0.0; rank * n_in_padded];
    for (padded, row) in a.chunks_exact_mut(n_in_padded).zip(weights.a.chunks_exact(n_in)) {
        padded[..n_in].copy_from_slice(row);
    }
    let n_tiles = n_out.div_ceil(LANES);
    let mut norms = vec![0.0; n_tiles * LANES];
    let run = |first: usize, norms: &mut [f32]| {
        let mut weight = vec![0.0; n_in_padded * LANES];
        let mut b = vec![0.0; rank * LANES];
        for (tile, out) in (first..).zip(norms.chunks_exact_mut(LANES)) {
            may_break();
            b.fill(0.0);
            let rows = weights.b.chunks_exact(rank).skip(tile * LANES).take(LANES);
            for (lane, row) in rows.enumerate() {
                for (r, value) in row.iter().enumerate() {
                    b[r * LANES + lane] = weights.lora_scale * value;
                }
            }
            with_tile(tile, &mut |w, tile| {
                let weight = &mut weight;
                workers.isa.run(TileNorms { w, tile, a: &a, b: &b, weight, out: &mut *out });
            });
        }
    };
    let work = n_out * n_in_padded * (rank + 1);
    let n_threads = workers.n_threads.min(work / THREAD_WORK).clamp(1, n_tiles.max(1));
    let per_thread = n_tiles.div_ceil(n_threads).max(1);
    let mut parts = norms.chunks_mut(per_thread * LANES).enumerate();
    let own = parts.next();
    std::thread::scope(|scope| {
        for (index, norms) in parts {
            scope.spawn(move || run(index * per_thread, norms));
        }
        if let Some((_, norms)) = own {
            run(0, norms);
        }
    });
    norms.truncate(n_out);
    norms
}

/// Norms of one tile of sixteen rows.
struct TileNorms<'a> {
    w: &'a PackedMatrix,
    tile: usize,
    /// `[R, K]`.
    a: &'a [f32],
    /// `lora_scale * B`, `[R, 16]`.
    b: &'a [f32],
    /// Room for the tile's values, `[K, 16]`.
    weight: &'a mut [f32],
    /// `[16]`.
    out: &'a mut [f32],
}

impl Kernel for TileNorms<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n_in = self.w.n_in;
        let rank = self.b.len() / LANES;
        assert!(n_in.is_multiple_of(STEP) && self.a.len() == rank * n_in);
        assert!(self.weight.len() >= n_in * LANES && self.out.len() == LANES);
        let tile = self.w.tile(self.tile);
        // SAFETY: the instruction set is the caller's; a dense tile has `n_in * 16` values (checked when packed), the
        // dequantized one is written in full first, and the other lengths were checked above.
        unsafe {
            let squares = match self.w.storage {
                Storage::Codes(layout) => {
                    dequantize_tile::<S>(layout, n_in, tile, self.weight);
                    self.squares::<S, 0>(self.weight.as_ptr().cast(), n_in, rank)
                }
                Storage::Dense(Dense::F32) => self.squares::<S, 0>(tile.as_ptr(), n_in, rank),
                Storage::Dense(Dense::F16) => self.squares::<S, 1>(tile.as_ptr(), n_in, rank),
                Storage::Dense(Dense::Bf16) => self.squares::<S, 2>(tile.as_ptr(), n_in, rank),
            };
            S::store(self.out.as_mut_ptr(), squares);
        }
        for norm in self.out {
            *norm = norm.sqrt();
        }
    }
}

impl TileNorms<'_> {
    /// `TYPE` is 0 for f32, 1 for f16, 2 for bf16.
    #[inline(always)]
    unsafe fn squares<S: Simd, const TYPE: u8>(
        &self,
        weight: *const u8,
        n_in: usize,
        rank: usize,
    ) -> S::F {
        // SAFETY: as in `run`.
        unsafe {
            let mut sums = [S::splat(0.0); STEP];
            for k in (0..n_in).step_by(STEP) {
                let mut w: [S::F; STEP] = std::array::from_fn(|j| {
                    let at = (k + j) * LANES;
                    match TYPE {
                        0 => S::load(weight.cast::<f32>().add(at)),
                        1 => S::load_f16(weight.cast::<u16>().add(at)),
                        _ => S::load_bf16(weight.cast::<u16>().add(at)),
                    }
                });
                for r in 0..rank {
                    let b = S::load(self.b.as_ptr().add(r * LANES));
                    let a = self.a.as_ptr().add(r * n_in + k);
                    for (j, w) in w.iter_mut().enumerate() {
                        *w = S::fma(S::splat(*a.add(j)), b, *w);
                    }
                }
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = S::fma(w, w, *sum);
                }
            }
            let [a, b, c, d] = sums;
            S::add(S::add(a, b), S::add(c, d))
        }
    }
}
