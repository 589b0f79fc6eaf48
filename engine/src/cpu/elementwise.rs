//! Small kernels over one row. Plain loops are vectorized by the compiler for each instruction set.
#![expect(unsafe_code, reason = "vector kernels")]

use super::simd::{Kernel, LANES, Simd};

/// `out = x / sqrt(mean(x²) + eps) * weight` over `weight.len()` values (arXiv 1910.07467).
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

/// Sum of squares in sixteen chains, then the lanes, then the tail.
#[inline(always)]
pub(super) unsafe fn sum_of_squares<S: Simd>(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    // SAFETY: each chunk has 16 values; the instruction set is the caller's.
    let mut sum = unsafe {
        let mut acc = S::splat(0.0);
        for chunk in chunks {
            let v = S::load(chunk.as_ptr());
            acc = S::fma(v, v, acc);
        }
        S::sum(acc)
    };
    for v in tail {
        sum += v * v;
    }
    sum
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        let x = &self.x[..n];
        // SAFETY: the instruction set is the caller's.
        let squares = unsafe { sum_of_squares::<S>(x) };
        let inverse = 1.0 / (squares / n as f32 + self.eps).sqrt();
        for ((out, x), w) in self.out[..n].iter_mut().zip(x).zip(self.weight) {
            *out = w * (x * inverse);
        }
    }
}

/// The same over every head of a row, in place (Qwen3's norms of q and k).
pub(crate) struct HeadNorm<'a> {
    /// `[heads, weight.len()]`.
    pub(crate) x: &'a mut [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

impl Kernel for HeadNorm<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        for head in self.x.chunks_exact_mut(n) {
            // SAFETY: the instruction set is the caller's.
            let squares = unsafe { sum_of_squares::<S>(head) };
            let inverse = 1.0 / (squares / n as f32 + self.eps).sqrt();
            for (x, w) in head.iter_mut().zip(self.weight) {
                *x = w * (*x * inverse);
            }
        }
    }
}

/// Rotates every head of a row in place, half-split layout: `(x[i], x[i + D/2])` by the angle of frequency i
/// (arXiv 2104.09864).
pub(crate) struct Rope<'a> {
    /// `[heads, D]`.
    pub(crate) x: &'a mut [f32],
    /// `[D / 2]`.
    pub(crate) cos: &'a [f32],
    /// `[D / 2]`.
    pub(crate) sin: &'a [f32],
    /// Multiplies the result (the attention's softmax scale for q, 1 for k).
    pub(crate) factor: f32,
}

impl Kernel for Rope<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let half = self.cos.len();
        for head in self.x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(self.cos).zip(self.sin) {
                let (x, y) = (*a, *b);
                *a = (x * c - y * s) * self.factor;
                *b = (y * c + x * s) * self.factor;
            }
        }
    }
}

/// `out = silu(gate) * up` (arXiv 2002.05202); all slices have one length, a multiple of 16.
pub(crate) struct SwiGlu<'a> {
    pub(crate) gate: &'a [f32],
    pub(crate) up: &'a [f32],
    pub(crate) out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.out.len();
        assert!(n.is_multiple_of(LANES) && self.gate.len() == n && self.up.len() == n);
        for at in (0..n).step_by(LANES) {
            // SAFETY: 16 values from `at` on in all three, by the assertion.
            unsafe {
                let gate = S::load(self.gate.as_ptr().add(at));
                let up = S::load(self.up.as_ptr().add(at));
                let one = S::splat(1.0);
                let exp = S::exp(S::sub(S::splat(0.0), gate));
                let silu = S::div(gate, S::add(one, exp));
                S::store(self.out.as_mut_ptr().add(at), S::mul(silu, up));
            }
        }
    }
}
