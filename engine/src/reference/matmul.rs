//! Products with frozen weights: `y[t, n] = Σ_k w[n, k] x[t, k]`.

use crate::quant::{BlockFormat, CodeRow, Scales, dequantize_row, unpack_row};

/// Values that share one scale when activations are quantized to int8.
pub const INT8_BLOCK: usize = 32;

/// Largest magnitude of an int8 code of an activation.
const INT8_MAX: f32 = 127.0;

/// `y[t, n] = Σ_k w[n, k] x[t, k]`.
///
/// | buffer | shape | type |
/// |---|---|---|
/// | `w` | `[N, K]`, row-major | f64 |
/// | `x` | `[T, K]`, row-major | f64 |
/// | result | `[T, N]`, row-major | f64 |
///
/// # Panics
/// When a buffer is no whole number of rows of `n_in` values.
pub fn matmul(w: &[f64], x: &[f64], n_in: usize) -> Vec<f64> {
    assert!(w.len().is_multiple_of(n_in) && x.len().is_multiple_of(n_in), "rows of {n_in} values");
    let mut y = Vec::with_capacity(x.len() / n_in * (w.len() / n_in));
    for x in x.chunks_exact(n_in) {
        for w in w.chunks_exact(n_in) {
            y.push(w.iter().zip(x).map(|(w, x)| w * x).sum());
        }
    }
    y
}

/// `Σ_k |w[n, k] x[t, k]|`, `[T, N]`: what the rounding error of a product in floating point is proportional to.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_magnitude(w: &[f64], x: &[f64], n_in: usize) -> Vec<f64> {
    let absolute = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    matmul(&absolute(w), &absolute(x), n_in)
}

/// Terms that a product of tiles of bf16 takes at a time.
pub const TILE_TERMS: usize = 32;

/// `start + Σ_k a[k] b[k]` in the order of `tdpbf16ps` (Intel's manual, volume 2): of each 32 terms, those at even places
/// are one chain of multiply-adds from zero, those at odd places another; the two are added up, and that to the sum.
///
/// `a` and `b` are `[K]`, values of bf16: products are exact, so multiplying and adding is a multiply-add. The
/// instruction takes subnormals for zero, this does not.
pub fn tile_sum(start: f32, a: &[f32], b: &[f32]) -> f32 {
    let steps = a.chunks(TILE_TERMS).zip(b.chunks(TILE_TERMS));
    steps.fold(start, |sum, (a, b)| {
        let chain = |first: usize| {
            let terms = a.iter().zip(b).skip(first).step_by(2);
            terms.fold(0.0, |chain, (a, b)| chain + a * b)
        };
        sum + (chain(0) + chain(1))
    })
}

/// The values of one row as [`dequantize_row`] defines them (each rounded to f32): the weights of exact products.
///
/// `bytes` is one row of `n_in` values in `format`; the result is `[K]`.
///
/// # Panics
/// When `bytes` is not exactly that row.
pub fn dequantized_weights(format: BlockFormat, bytes: &[u8], n_in: usize) -> Vec<f64> {
    let mut values = vec![0.0; n_in];
    dequantize_row(format, bytes, &mut values);
    values.into_iter().map(f64::from).collect()
}

/// The values of one row without any rounding, which is what a product over integer codes sums up:
/// `w[k] = (code[k] − offset) d[g] sc[g] + min[g]`, with `g` the group of `k`.
///
/// `bytes` is one row of `n_in` values in `format`; the result is `[K]`. Formats without codes are exact already.
///
/// # Panics
/// When `bytes` is not exactly that row.
pub fn exact_weights(format: BlockFormat, bytes: &[u8], n_in: usize) -> Vec<f64> {
    let Some(layout) = format.code_layout() else {
        return dequantized_weights(format, bytes, n_in);
    };
    let mut row = CodeRow::default();
    unpack_row(format, bytes, n_in, &mut row);
    let half = |bits: u16| half::f16::from_bits(bits).to_f64();
    let value = |(k, &code): (usize, &u8)| {
        let (group, super_block) = (k / layout.group, k / 256);
        let (scale, min) = match &row.scales {
            Scales::Half { d, m } => (half(d[group]), m.as_ref().map_or(0.0, |m| half(m[group]))),
            Scales::Super { d, sc, dmin, mn } => {
                let min = match (dmin, mn) {
                    (Some(dmin), Some(mn)) => -half(dmin[super_block]) * f64::from(mn[group]),
                    (Some(_) | None, Some(_) | None) => 0.0,
                };
                (half(d[super_block]) * f64::from(sc[group]), min)
            }
        };
        f64::from(i32::from(code) - layout.offset) * scale + min
    };
    row.codes.iter().enumerate().map(value).collect()
}

/// One row of activations quantized to int8 in blocks of [`INT8_BLOCK`].
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Row {
    /// `q[k] = round(x[k] · (127 / max_b))`, ties to even, `[K]`; `max_b` is the largest magnitude of the block.
    pub q: Vec<i8>,
    /// `d[b] = max_b / 127`, `[K / 32]`.
    pub d: Vec<f32>,
}

impl Int8Row {
    /// Quantizes `x`, `[K]`. The two f32 divisions and the product are rounded as written: kernels equal this bit for bit.
    /// A block whose 127 / max leaves the range of f32 (all its values are below 4e-37) becomes zeros.
    ///
    /// # Panics
    /// When `x` is no whole number of blocks.
    #[expect(clippy::cast_possible_truncation, reason = "rounded and within −127..=127")]
    pub fn quantize(x: &[f32]) -> Self {
        let (blocks, rest) = x.as_chunks::<INT8_BLOCK>();
        assert!(rest.is_empty(), "{} values are no whole number of blocks", x.len());
        let (mut q, mut d) = (Vec::with_capacity(x.len()), Vec::with_capacity(blocks.len()));
        for block in blocks {
            let largest = block.iter().fold(0f32, |largest, v| largest.max(v.abs()));
            let inverse = INT8_MAX / largest;
            let inverse = if inverse.is_finite() { inverse } else { 0.0 };
            d.push(largest / INT8_MAX);
            q.extend(block.iter().map(|v| (v * inverse).round_ties_even() as i8));
        }
        Self { q, d }
    }

    /// The values it stands for, `q[k] d[k / 32]`, `[K]`.
    pub fn values(&self) -> Vec<f64> {
        let scales = self.d.iter().flat_map(|&d| std::iter::repeat_n(f64::from(d), INT8_BLOCK));
        self.q.iter().zip(scales).map(|(&q, d)| f64::from(q) * d).collect()
    }
}
