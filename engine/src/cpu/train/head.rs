//! Cross-entropy over the vocabulary, chunk by chunk: the logits of a chunk are all that is ever in memory.
#![expect(unsafe_code, reason = "vector kernels")]

use crate::cpu::simd::{Kernel, LANES, Simd};

/// Takes a chunk of logits into a target's running largest logit and sum of exponentials.
pub(crate) struct FoldRow<'a> {
    /// Logits, padded to whole vectors.
    pub(crate) logits: &'a [f32],
    /// How many are logits.
    pub(crate) n: usize,
    pub(crate) largest: &'a mut f32,
    pub(crate) sum: &'a mut f32,
}

impl Kernel for FoldRow<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let vectors = &self.logits.as_chunks::<LANES>().0[..self.n.div_ceil(LANES)];
        // SAFETY: the instruction set is the caller's; every vector has sixteen values.
        unsafe {
            let seen = |i: usize, vector: &[f32; LANES]| {
                S::first(self.n - i * LANES, S::load(vector.as_ptr()), S::splat(f32::NEG_INFINITY))
            };
            let mut top = S::splat(*self.largest);
            for (i, vector) in vectors.iter().enumerate() {
                top = S::max(top, seen(i, vector));
            }
            let top = S::largest(top);
            let mut sum = S::splat(0.0);
            for (i, vector) in vectors.iter().enumerate() {
                sum = S::add(sum, S::exp(S::sub(seen(i, vector), S::splat(top))));
            }
            *self.sum = *self.sum * (*self.largest - top).exp() + S::sum(sum);
            *self.largest = top;
        }
    }
}

/// From a chunk of logits to `dL/dlogit = weight (1[target] − p)`, in place; padding becomes zero.
pub(crate) struct LogitsBackRow<'a> {
    pub(crate) logits: &'a mut [f32],
    pub(crate) n: usize,
    /// Logarithm of the sum of exponentials over the whole vocabulary.
    pub(crate) lse: f32,
    /// `dL/dlogp`.
    pub(crate) weight: f32,
    /// The target, if it is in this chunk.
    pub(crate) target: Option<usize>,
}

impl Kernel for LogitsBackRow<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let vectors = &mut self.logits.as_chunks_mut::<LANES>().0[..self.n.div_ceil(LANES)];
        for (i, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the instruction set is the caller's; every vector has sixteen values.
            unsafe {
                let p = S::exp(S::sub(S::load(vector.as_ptr()), S::splat(self.lse)));
                let slope = S::mul(p, S::splat(-self.weight));
                S::store(vector.as_mut_ptr(), S::first(self.n - i * LANES, slope, S::splat(0.0)));
            }
        }
        if let Some(target) = self.target {
            self.logits[target] += self.weight;
        }
    }
}
