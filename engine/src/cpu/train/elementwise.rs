//! Derivatives of the row-wise operations.
#![expect(unsafe_code, reason = "vector kernels")]

use crate::cpu::{
    elementwise::sum_of_squares,
    simd::{Kernel, LANES, Simd},
};

/// Backward of an RMS norm `y = w x / r`, `r = sqrt(mean(x²) + eps)`:
/// `dx[i] = w[i] dy[i] / r − x[i] / (n r³) Σ_j w[j] x[j] dy[j]`.
pub(crate) struct RmsNormBack<'a> {
    /// The norm's input, at least `weight.len()` values.
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    /// Gradient of the norm's output.
    pub(crate) dy: &'a [f32],
    /// The gradient of its input is added here.
    pub(crate) dx: &'a mut [f32],
}

impl Kernel for RmsNormBack<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        let (x, dy) = (&self.x[..n], &self.dy[..n]);
        // SAFETY: the instruction set is the caller's.
        let (inverse, share) = unsafe { norm_factors::<S>(x, self.weight, dy, self.eps) };
        for (((dx, x), w), dy) in self.dx[..n].iter_mut().zip(x).zip(self.weight).zip(dy) {
            *dx += w * dy * inverse - x * share;
        }
    }
}

/// The same for every head of a row, the gradient in place (Qwen3's norms of q and k).
pub(crate) struct HeadNormBack<'a> {
    /// The norm's input, `[heads, weight.len()]`.
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    /// Gradient of the output, then of the input.
    pub(crate) d: &'a mut [f32],
}

impl Kernel for HeadNormBack<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        for (x, d) in self.x.chunks_exact(n).zip(self.d.chunks_exact_mut(n)) {
            // SAFETY: the instruction set is the caller's.
            let (inverse, share) = unsafe { norm_factors::<S>(x, self.weight, d, self.eps) };
            for ((d, x), w) in d.iter_mut().zip(x).zip(self.weight) {
                *d = w * *d * inverse - x * share;
            }
        }
    }
}

/// `1 / r`, and `Σ_j w[j] x[j] dy[j] / (n r³)`.
#[inline(always)]
unsafe fn norm_factors<S: Simd>(x: &[f32], weight: &[f32], dy: &[f32], eps: f32) -> (f32, f32) {
    let n = weight.len();
    let (x_chunks, tail) = x.as_chunks::<LANES>();
    let at = n - tail.len();
    // SAFETY: every chunk has sixteen values, and weight and gradient are as long as x.
    let (squares, mut dot) = unsafe {
        let mut acc = S::splat(0.0);
        let weights = weight.as_chunks::<LANES>().0.iter().zip(dy.as_chunks::<LANES>().0);
        for (x, (w, dy)) in x_chunks.iter().zip(weights) {
            let product = S::mul(S::load(x.as_ptr()), S::load(w.as_ptr()));
            acc = S::fma(product, S::load(dy.as_ptr()), acc);
        }
        (sum_of_squares::<S>(x), S::sum(acc))
    };
    for ((x, w), dy) in tail.iter().zip(&weight[at..]).zip(&dy[at..]) {
        dot += x * w * dy;
    }
    let inverse = 1.0 / (squares / n as f32 + eps).sqrt();
    (inverse, dot * inverse * inverse * inverse / n as f32)
}

/// Backward of `y = silu(gate) * up`, in place: `d_up = dy silu(g)`, `d_gate = dy up σ(g) (1 + g (1 − σ(g)))`.
pub(crate) struct SwiGluBack<'a> {
    /// The gate, then its gradient.
    pub(crate) gate: &'a mut [f32],
    /// The other factor, then its gradient.
    pub(crate) up: &'a mut [f32],
    pub(crate) dy: &'a [f32],
}

impl Kernel for SwiGluBack<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.gate.len();
        assert!(n.is_multiple_of(LANES) && self.up.len() == n && self.dy.len() == n);
        for at in (0..n).step_by(LANES) {
            // SAFETY: 16 values from `at` on in all three, by the assertion.
            unsafe {
                let gate = S::load(self.gate.as_ptr().add(at));
                let up = S::load(self.up.as_ptr().add(at));
                let dy = S::load(self.dy.as_ptr().add(at));
                let one = S::splat(1.0);
                let sigmoid = S::div(one, S::add(one, S::exp(S::sub(S::splat(0.0), gate))));
                let silu = S::mul(gate, sigmoid);
                // σ + silu (1 − σ)
                let slope = S::fma(silu, S::sub(one, sigmoid), sigmoid);
                S::store(self.gate.as_mut_ptr().add(at), S::mul(S::mul(dy, up), slope));
                S::store(self.up.as_mut_ptr().add(at), S::mul(dy, silu));
            }
        }
    }
}

/// `columns[c, r] = rows[r, c]`: rows of values, each `columns` long, turned round.
pub(crate) struct Transpose<'a> {
    /// `n_rows` rows, `stride` apart.
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) n_rows: usize,
    /// A multiple of 16.
    pub(crate) n_columns: usize,
    /// Column `c` begins at `c * out_stride + out_start`.
    pub(crate) out: &'a crate::cpu::threads::Parts<'a, f32>,
    pub(crate) out_start: usize,
    pub(crate) out_stride: usize,
}

impl Kernel for Transpose<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        assert!(self.n_columns.is_multiple_of(LANES));
        if self.n_rows == 0 || self.n_columns == 0 {
            return;
        }
        assert!(self.rows.len() >= (self.n_rows - 1) * self.stride + self.n_columns);
        let end = (self.n_columns - 1) * self.out_stride + self.n_rows;
        let out = self.out.at(self.out_start, end);
        let whole = self.n_rows / LANES * LANES;
        for column in (0..self.n_columns).step_by(LANES) {
            for row in (0..whole).step_by(LANES) {
                // SAFETY: the square lies within both, by the assertions.
                unsafe {
                    let from = self.rows.as_ptr().add(row * self.stride + column);
                    let mut square = [S::splat(0.0); LANES];
                    for (i, vector) in square.iter_mut().enumerate() {
                        *vector = S::load(from.add(i * self.stride));
                    }
                    for (i, vector) in S::transpose(square).into_iter().enumerate() {
                        S::store(out.add((column + i) * self.out_stride + row), vector);
                    }
                }
            }
            for row in whole..self.n_rows {
                for i in column..column + LANES {
                    // SAFETY: within both, by the assertions.
                    unsafe {
                        *out.add(i * self.out_stride + row) = self.rows[row * self.stride + i]
                    };
                }
            }
        }
    }
}
