//! Cross-entropy over the vocabulary, chunk by chunk: the logits of a chunk are all that is ever in memory.
#![expect(unsafe_code, reason = "vector kernels")]

use crate::{
    cpu::simd::{Kernel, LANES, Simd},
    train::Likely,
};

/// Takes a chunk of logits into a row's running largest logit and sum of exponentials.
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

/// From a chunk of logits to what all targets of a row have in common of `dL/dlogit = Σ_t slope_t (1[t] − p)`:
/// `−p Σ_t slope_t`, in place; padding becomes zero.
pub(crate) struct LogitsBackRow<'a> {
    pub(crate) logits: &'a mut [f32],
    pub(crate) n: usize,
    /// Logarithm of the sum of exponentials over the whole vocabulary.
    pub(crate) lse: f32,
    /// `Σ_t dL/dlogp_t`.
    pub(crate) slope: f32,
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
                let slope = S::mul(p, S::splat(-self.slope));
                S::store(vector.as_mut_ptr(), S::first(self.n - i * LANES, slope, S::splat(0.0)));
            }
        }
    }
}

/// Takes a chunk of logits, of tokens from `first` on, into a row's likeliest tokens so far, the likeliest first.
pub(crate) fn take_likely(logits: &[f32], first: usize, top: &mut [Likely]) {
    let Some(mut smallest) = top.last().map(|likely| likely.logp) else { return };
    for (index, &logit) in logits.iter().enumerate() {
        if logit > smallest {
            // Equal ones stay before it: they are lower tokens.
            let place = top.partition_point(|likely| likely.logp >= logit);
            top[place..].rotate_right(1);
            #[expect(clippy::cast_possible_truncation, reason = "tokens are u32")]
            let token = (first + index) as u32;
            top[place] = Likely { token, logp: logit };
            smallest = top[top.len() - 1].logp;
        }
    }
}
