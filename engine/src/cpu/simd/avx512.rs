//! AVX-512 with VNNI: one register is sixteen lanes.
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
pub(super) struct Avx512;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Out {
    unsafe { kernel.run::<Avx512>() }
}

#[inline(always)]
unsafe fn splat_x(x: *const i8) -> __m512i {
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

unsafe impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const INT8_ROWS: usize = 8;
    const F32_ROWS: usize = 4;
    const PRODUCT_BLOCK: (usize, usize) = (12, 2);
    const BYTES_ARE_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(ptr: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(ptr) }
    }
    #[inline(always)]
    unsafe fn store(ptr: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(ptr, value) }
    }
    #[inline(always)]
    unsafe fn load_f16(ptr: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(ptr.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(ptr: *mut u16, value: __m512) {
        unsafe {
            _mm256_storeu_si256(ptr.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(ptr: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(ptr.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(ptr: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(ptr: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: __m512, b: __m512) -> __m512 {
        let mask = ((1u32 << n.min(16)) - 1) as u16;
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a) }
    }
    #[inline(always)]
    unsafe fn pow2(a: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), a) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn zero_i() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load_i(ptr: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(ptr.cast()) }
    }
    #[inline(always)]
    unsafe fn to_f(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(a: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(a: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(a), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn or_bit<const I: u32>(a: __m512i, plane: __m512i) -> __m512i {
        unsafe {
            let set = _mm512_test_epi8_mask(plane, _mm512_set1_epi8((1u8 << I) as i8));
            _mm512_mask_add_epi8(a, set, a, _mm512_set1_epi8(16))
        }
    }
    #[inline(always)]
    unsafe fn or_two_bits<const I: u32>(a: __m512i, plane: __m512i) -> __m512i {
        unsafe {
            let shifted = match I {
                0 => _mm512_slli_epi16::<4>(plane),
                1 => _mm512_slli_epi16::<2>(plane),
                2 => plane,
                _ => _mm512_srli_epi16::<2>(plane),
            };
            // a | (shifted & 0x30)
            _mm512_ternarylogic_epi32::<0xf8>(a, shifted, _mm512_set1_epi8(0x30))
        }
    }
    #[inline(always)]
    unsafe fn byte_lane<const B: u32>(a: __m512i) -> __m512i {
        unsafe {
            let shifted = match B {
                0 => a,
                1 => _mm512_srli_epi32::<8>(a),
                2 => _mm512_srli_epi32::<16>(a),
                _ => return _mm512_srli_epi32::<24>(a),
            };
            _mm512_and_si512(shifted, _mm512_set1_epi32(0xff))
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, codes, splat_x(x)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, codes, splat_x(x)) }
    }
    #[inline(always)]
    unsafe fn store_i8(ptr: *mut i8, value: __m512) {
        unsafe { _mm_storeu_si128(ptr.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value))) }
    }
    #[inline(always)]
    unsafe fn select_below(x: __m512, limit: __m512, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, limit), b, a) }
    }
    #[inline(always)]
    unsafe fn transpose(r: [__m512; LANES]) -> [__m512; LANES] {
        let mut out = r;
        unsafe {
            // Pairs of rows, then 4 × 4 squares within the 128-bit quarters: quarter q of `squares[g][c]` is column
            // 4q + c of rows 4g..4g + 4. (No closures: one that is not inlined has not the instructions of its caller.)
            let mut squares = [[_mm512_setzero_ps(); 4]; 4];
            for g in 0..4 {
                let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
                let ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                squares[g] = [
                    _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
                    _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
                ];
            }
            // Then the quarters themselves: 0x88 takes the even ones of two vectors, 0xdd the odd ones.
            for c in 0..4 {
                let [a, b, d, e] = [squares[0][c], squares[1][c], squares[2][c], squares[3][c]];
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e)];
                out[c] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
                out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
                out[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
                out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
            }
        }
        out
    }
}
