//! Causal attention of the rows of a step over paged keys and values.
//!
//! For every query vector (a row and one of its heads), in this order and independently of all others: scores
//! `s[t] = Σ_d q[d] k[t, d]` over d ascending; their maximum; `p[t] = exp(s[t] − max)`; the sum of p in sixteen chains
//! (t mod 16), then over the lanes; `out[d] = (Σ_t p[t] v[t, d]) / sum` over t ascending. Queries come scaled.
//! How vectors are grouped into tasks only decides how often a key is loaded.
#![expect(unsafe_code, reason = "vector kernel over paged memory")]

use crate::kv::{KV_BLOCK_TOKENS, KvBlockId};

use super::{
    kv_cache::{KvCache, KvElement},
    simd::{Kernel, LANES, Simd},
    threads::Parts,
};

/// Most query vectors of one task.
pub(crate) const VECTORS_MAX: usize = 12;

/// Some query vectors that share keys and values: consecutive rows of one sequence, heads of one kv head.
pub(crate) struct Attend<'a> {
    pub(crate) cache: &'a KvCache,
    pub(crate) layer: usize,
    pub(crate) kv_head: usize,
    pub(crate) block_table: &'a [KvBlockId],
    /// Rows of the step, and the position of the first.
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) first_position: usize,
    /// Query heads; rows × heads is at most [`VECTORS_MAX`].
    pub(crate) heads: std::ops::Range<usize>,
    /// `[T, q_stride]`, heads first in each row, already scaled.
    pub(crate) q: &'a [f32],
    pub(crate) q_stride: usize,
    /// `[T, out_stride]`.
    pub(crate) out: &'a Parts<'a, f32>,
    pub(crate) out_stride: usize,
    /// Room for the scores of all vectors: `VECTORS_MAX * context`, context rounded up to 16.
    pub(crate) scratch: &'a mut [f32],
}

#[derive(Clone, Copy)]
struct Vector {
    q: *const f32,
    scores: *mut f32,
    /// Tokens that it sees.
    limit: usize,
    out: *mut f32,
    inverse: f32,
}

impl Kernel for Attend<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the instruction set is the caller's.
        unsafe {
            match self.cache.shape.element {
                KvElement::F16 => self.attend::<S, true>(),
                KvElement::F32 => self.attend::<S, false>(),
            }
        }
    }
}

impl Attend<'_> {
    #[inline(always)]
    unsafe fn attend<S: Simd, const HALF: bool>(self) {
        let dim = self.cache.shape.head_dim;
        let n_vectors = self.rows.len() * self.heads.len();
        let last_limit = self.first_position + self.rows.len();
        let n_blocks = last_limit.div_ceil(KV_BLOCK_TOKENS);
        let padded = n_blocks * KV_BLOCK_TOKENS;
        assert!(n_vectors <= VECTORS_MAX && self.scratch.len() >= n_vectors * padded);
        assert!(dim.is_multiple_of(LANES));
        let mut vectors = [Vector {
            q: std::ptr::null(),
            scores: std::ptr::null_mut(),
            limit: 0,
            out: std::ptr::null_mut(),
            inverse: 0.0,
        }; VECTORS_MAX];
        let mut index = 0;
        for row in self.rows.clone() {
            for head in self.heads.clone() {
                vectors[index] = Vector {
                    q: self.q[row * self.q_stride + head * dim..][..dim].as_ptr(),
                    scores: self.scratch[index * padded..][..padded].as_mut_ptr(),
                    limit: self.first_position + (row - self.rows.start) + 1,
                    out: self.out.at(row * self.out_stride + head * dim, dim),
                    inverse: 0.0,
                };
                index += 1;
            }
        }
        let vectors = &mut vectors[..n_vectors];
        let blocks = &self.block_table[..n_blocks];
        // SAFETY: every pointer of a vector was checked for `dim` (or `padded`) values above; keys and values of a block
        // are checked by `KvCache`.
        unsafe {
            for (index, &block) in blocks.iter().enumerate() {
                let keys = self.cache.keys(self.layer, block, self.kv_head).as_ptr();
                let mut at = 0;
                macro_rules! group {
                    ($n:literal) => {
                        while S::INT8_ROWS >= $n && vectors.len() - at >= $n {
                            scores::<S, HALF, $n>(
                                keys,
                                dim,
                                index * KV_BLOCK_TOKENS,
                                &vectors[at..],
                            );
                            at += $n;
                        }
                    };
                }
                group!(6);
                group!(3);
                group!(2);
                group!(1);
            }
            for vector in vectors.iter_mut() {
                vector.inverse = 1.0 / softmax::<S>(vector.scores, vector.limit, n_blocks);
            }
            let mut column = 0;
            macro_rules! columns {
                ($width:literal) => {
                    while dim - column >= $width * LANES {
                        self.weigh_values::<S, HALF, $width>(blocks, column, last_limit, vectors);
                        column += $width * LANES;
                    }
                };
            }
            columns!(4);
            columns!(2);
            columns!(1);
        }
    }

    /// `WIDTH * 16` columns of the output of all vectors.
    #[inline(always)]
    unsafe fn weigh_values<S: Simd, const HALF: bool, const WIDTH: usize>(
        &self,
        blocks: &[KvBlockId],
        column: usize,
        n_tokens: usize,
        vectors: &[Vector],
    ) {
        let mut at = 0;
        macro_rules! group {
            ($n:literal) => {
                while (S::F32_ROWS >= $n || $n == 1) && vectors.len() - at >= $n {
                    // SAFETY: as in `attend`.
                    unsafe {
                        self.weigh_group::<S, HALF, WIDTH, $n>(
                            blocks,
                            column,
                            n_tokens,
                            &vectors[at..],
                        )
                    };
                    at += $n;
                }
            };
        }
        group!(4);
        group!(3);
        group!(2);
        group!(1);
    }

    #[inline(always)]
    unsafe fn weigh_group<S: Simd, const HALF: bool, const WIDTH: usize, const N: usize>(
        &self,
        blocks: &[KvBlockId],
        column: usize,
        n_tokens: usize,
        vectors: &[Vector],
    ) {
        let dim = self.cache.shape.head_dim;
        // Tokens that all of them see; of later ones a vector takes none, since even a weight of zero would let in what
        // is not finite.
        let shared = vectors[..N].iter().map(|vector| vector.limit).min().unwrap_or(0);
        // SAFETY: as in `attend`; scores are padded to whole blocks.
        unsafe {
            let mut acc = [[S::splat(0.0); WIDTH]; N];
            for (index, &block) in blocks.iter().enumerate() {
                let values = self.cache.values(self.layer, block, self.kv_head).as_ptr();
                let first = index * KV_BLOCK_TOKENS;
                let in_block = |limit: usize| limit.saturating_sub(first).min(KV_BLOCK_TOKENS);
                macro_rules! weigh {
                    ($token:expr, $vector:ident if $sees:expr) => {
                        for w in 0..WIDTH {
                            let value = load::<S, HALF>(values, $token * dim + column + w * LANES);
                            for (acc, $vector) in acc.iter_mut().zip(vectors) {
                                if $sees {
                                    let weight = S::splat(*$vector.scores.add(first + $token));
                                    acc[w] = S::fma(weight, value, acc[w]);
                                }
                            }
                        }
                    };
                }
                for token in 0..in_block(shared) {
                    weigh!(token, vector if true);
                }
                for token in in_block(shared)..in_block(n_tokens) {
                    weigh!(token, vector if first + token < vector.limit);
                }
            }
            for (acc, vector) in acc.into_iter().zip(vectors) {
                for (w, acc) in acc.into_iter().enumerate() {
                    S::store(
                        vector.out.add(column + w * LANES),
                        S::mul(acc, S::splat(vector.inverse)),
                    );
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, const HALF: bool>(elements: *const u8, at: usize) -> S::F {
    // SAFETY: the caller's: 16 elements from `at` on.
    unsafe {
        if HALF {
            S::load_f16(elements.cast::<u16>().add(at))
        } else {
            S::load(elements.cast::<f32>().add(at))
        }
    }
}

/// Scores of `N` vectors for the sixteen tokens of a block that begins with token `first`.
#[inline(always)]
unsafe fn scores<S: Simd, const HALF: bool, const N: usize>(
    keys: *const u8,
    dim: usize,
    first: usize,
    vectors: &[Vector],
) {
    // SAFETY: `keys` has `dim * 16` elements, each `q` has `dim` values, `scores` has whole blocks.
    unsafe {
        let q: [*const f32; N] = std::array::from_fn(|i| vectors[i].q);
        let mut acc = [S::splat(0.0); N];
        for d in 0..dim {
            let key = load::<S, HALF>(keys, d * KV_BLOCK_TOKENS);
            for (acc, q) in acc.iter_mut().zip(q) {
                *acc = S::fma(S::splat(*q.add(d)), key, *acc);
            }
        }
        let hidden = S::splat(f32::NEG_INFINITY);
        for (acc, vector) in acc.into_iter().zip(vectors) {
            let visible = vector.limit.saturating_sub(first);
            S::store(vector.scores.add(first), S::first(visible, acc, hidden));
        }
    }
}

/// Turns scores into unnormalized weights, in place, zero beyond `limit`; returns their sum.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: *mut f32, limit: usize, n_blocks: usize) -> f32 {
    let visible = limit.div_ceil(LANES);
    // SAFETY: `scores` has `n_blocks * 16` values.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in 0..visible {
            largest = S::max(largest, S::load(scores.add(i * LANES)));
        }
        let largest = S::splat(S::largest(largest));
        let mut sum = S::splat(0.0);
        for i in 0..visible {
            let p = S::exp(S::sub(S::load(scores.add(i * LANES)), largest));
            sum = S::add(sum, p);
            S::store(scores.add(i * LANES), p);
        }
        for i in visible..n_blocks {
            S::store(scores.add(i * LANES), S::splat(0.0));
        }
        S::sum(sum)
    }
}
