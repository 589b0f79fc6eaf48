//! AVX2 with FMA and F16C: two registers are sixteen lanes.
#![expect(unsafe_code, reason = "vector intrinsics")]
#![allow(clippy::missing_safety_doc, reason = "see `Simd`")]
#![allow(
    clippy::wildcard_imports,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "intrinsics; masks and lane counts of sixteen lanes"
)]
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one intrinsic or a few per method; `Simd` states what the caller owes"
)]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// Lanes 0–7 and 8–15.
#[derive(Clone, Copy)]
pub(super) struct Pair<T>(T, T);

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Out {
    unsafe { kernel.run::<Avx2>() }
}

macro_rules! both {
    ($intrinsic:ident($($arg:expr),*)) => {
        unsafe { Pair($intrinsic($($arg.0),*), $intrinsic($($arg.1),*)) }
    };
}

#[inline(always)]
unsafe fn splat_x(x: *const i8) -> __m256i {
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// `acc + Σ u[4i + b] * s[4i + b]`; pairs of products must fit i16.
#[inline(always)]
unsafe fn dot_half(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// The same for two signed operands: `|u| <= 128`, `|s| <= 127`, so pairs of products stay within i16.
#[inline(always)]
unsafe fn dot_signed_half(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    unsafe {
        let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        dot_half(acc, _mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
    }
}

#[inline(always)]
unsafe fn lanes_below(n: usize, base: i32) -> __m256 {
    unsafe {
        let index =
            _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(base));
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(16) as i32), index))
    }
}

/// Eight by eight.
#[inline(always)]
unsafe fn transpose_half(r: [__m256; 8]) -> [__m256; 8] {
    unsafe {
        // Pairs of rows, then 4 × 4 squares within the 128-bit halves, then the halves themselves.
        let mut squares = r;
        for g in [0, 4] {
            let [low, low2] =
                [_mm256_unpacklo_ps(r[g], r[g + 1]), _mm256_unpacklo_ps(r[g + 2], r[g + 3])];
            let [high, high2] =
                [_mm256_unpackhi_ps(r[g], r[g + 1]), _mm256_unpackhi_ps(r[g + 2], r[g + 3])];
            squares[g] = _mm256_shuffle_ps::<0x44>(low, low2);
            squares[g + 1] = _mm256_shuffle_ps::<0xee>(low, low2);
            squares[g + 2] = _mm256_shuffle_ps::<0x44>(high, high2);
            squares[g + 3] = _mm256_shuffle_ps::<0xee>(high, high2);
        }
        let mut out = squares;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(squares[c], squares[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(squares[c], squares[4 + c]);
        }
        out
    }
}

unsafe impl Simd for Avx2 {
    type F = Pair<__m256>;
    type I = Pair<__m256i>;
    const INT8_ROWS: usize = 2;
    const F32_ROWS: usize = 1;
    const PRODUCT_BLOCK: (usize, usize) = (6, 1);
    const BYTES_ARE_SIGNED: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        unsafe {
            let v = _mm256_set1_ps(value);
            Pair(v, v)
        }
    }
    #[inline(always)]
    unsafe fn load(ptr: *const f32) -> Self::F {
        unsafe { Pair(_mm256_loadu_ps(ptr), _mm256_loadu_ps(ptr.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(ptr: *mut f32, value: Self::F) {
        unsafe {
            _mm256_storeu_ps(ptr, value.0);
            _mm256_storeu_ps(ptr.add(8), value.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(ptr: *const u16) -> Self::F {
        unsafe {
            Pair(
                _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(ptr.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_f16(ptr: *mut u16, value: Self::F) {
        unsafe {
            _mm_storeu_si128(ptr.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value.0));
            _mm_storeu_si128(
                ptr.add(8).cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value.1),
            );
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(ptr: *const u16) -> Self::F {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.add(8).cast()));
            Pair(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_u8(ptr: *const u8) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(ptr.cast());
            Pair(
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_i8(ptr: *const i8) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(ptr.cast());
            Pair(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            Pair(
                _mm256_blendv_ps(b.0, a.0, lanes_below(n, 0)),
                _mm256_blendv_ps(b.1, a.1, lanes_below(n, 8)),
            )
        }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe {
            Pair(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn pow2(a: Self::F) -> Self::F {
        #[inline(always)]
        unsafe fn half(a: __m256) -> __m256 {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
        unsafe { Pair(half(a.0), half(a.1)) }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(a.0, a.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(a.0, a.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Pair(_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1))
        }
    }
    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        unsafe { Pair(_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn load_i(ptr: *const u8) -> Self::I {
        unsafe { Pair(_mm256_loadu_si256(ptr.cast()), _mm256_loadu_si256(ptr.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    unsafe fn low_nibbles(a: Self::I) -> Self::I {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            Pair(_mm256_and_si256(a.0, mask), _mm256_and_si256(a.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn high_nibbles(a: Self::I) -> Self::I {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            Pair(
                _mm256_and_si256(_mm256_srli_epi16::<4>(a.0), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(a.1), mask),
            )
        }
    }
    #[inline(always)]
    unsafe fn or_bit<const I: u32>(a: Self::I, plane: Self::I) -> Self::I {
        #[inline(always)]
        unsafe fn half<const I: u32>(a: __m256i, plane: __m256i) -> __m256i {
            unsafe {
                let bit = _mm256_set1_epi8((1u8 << I) as i8);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(plane, bit), bit);
                _mm256_or_si256(a, _mm256_and_si256(set, _mm256_set1_epi8(16)))
            }
        }
        unsafe { Pair(half::<I>(a.0, plane.0), half::<I>(a.1, plane.1)) }
    }
    #[inline(always)]
    unsafe fn or_two_bits<const I: u32>(a: Self::I, plane: Self::I) -> Self::I {
        #[inline(always)]
        unsafe fn half<const I: u32>(a: __m256i, plane: __m256i) -> __m256i {
            unsafe {
                let shifted = match I {
                    0 => _mm256_slli_epi16::<4>(plane),
                    1 => _mm256_slli_epi16::<2>(plane),
                    2 => plane,
                    _ => _mm256_srli_epi16::<2>(plane),
                };
                _mm256_or_si256(a, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)))
            }
        }
        unsafe { Pair(half::<I>(a.0, plane.0), half::<I>(a.1, plane.1)) }
    }
    #[inline(always)]
    unsafe fn byte_lane<const B: u32>(a: Self::I) -> Self::I {
        #[inline(always)]
        unsafe fn half<const B: u32>(a: __m256i) -> __m256i {
            unsafe {
                let shifted = match B {
                    0 => a,
                    1 => _mm256_srli_epi32::<8>(a),
                    2 => _mm256_srli_epi32::<16>(a),
                    _ => _mm256_srli_epi32::<24>(a),
                };
                _mm256_and_si256(shifted, _mm256_set1_epi32(0xff))
            }
        }
        unsafe { Pair(half::<B>(a.0), half::<B>(a.1)) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, codes: Self::I, x: *const i8) -> Self::I {
        unsafe {
            let x = splat_x(x);
            Pair(dot_half(acc.0, codes.0, x), dot_half(acc.1, codes.1, x))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::I, codes: Self::I, x: *const i8) -> Self::I {
        unsafe {
            let x = splat_x(x);
            Pair(dot_signed_half(acc.0, codes.0, x), dot_signed_half(acc.1, codes.1, x))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(ptr: *mut i8, value: Self::F) {
        unsafe {
            let words =
                _mm256_packs_epi32(_mm256_cvtps_epi32(value.0), _mm256_cvtps_epi32(value.1));
            // packs works within 128-bit halves: put the quarters back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(ptr.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn select_below(x: Self::F, limit: Self::F, a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            Pair(
                _mm256_blendv_ps(b.0, a.0, _mm256_cmp_ps::<_CMP_LT_OQ>(x.0, limit.0)),
                _mm256_blendv_ps(b.1, a.1, _mm256_cmp_ps::<_CMP_LT_OQ>(x.1, limit.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn transpose(r: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = r;
        unsafe {
            // Quarters: rows 0–7 or 8–15, lanes 0–7 or 8–15.
            let [mut top_left, mut top_right] = [[r[0].0; 8]; 2];
            let [mut low_left, mut low_right] = [[r[0].0; 8]; 2];
            for i in 0..8 {
                (top_left[i], top_right[i]) = (r[i].0, r[i].1);
                (low_left[i], low_right[i]) = (r[8 + i].0, r[8 + i].1);
            }
            let (top_left, top_right) = (transpose_half(top_left), transpose_half(top_right));
            let (low_left, low_right) = (transpose_half(low_left), transpose_half(low_right));
            for i in 0..8 {
                out[i] = Pair(top_left[i], low_left[i]);
                out[8 + i] = Pair(top_right[i], low_right[i]);
            }
        }
        out
    }
}
