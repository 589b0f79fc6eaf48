//! Products of pairs of bf16, summed in f32: what `vdpbf16ps` does, and the same in plain Rust.
//!
//! A lane takes `(acc + a₁ b₁) + a₀ b₀`, both sums rounded; products of bf16 are exact in f32. So the two have the same
//! bits, but for subnormal numbers: the instruction takes them for zero.
#![expect(unsafe_code, reason = "vector intrinsics")]
#![allow(clippy::missing_safety_doc, reason = "see `Bf16`")]
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one intrinsic or a few per method; `Bf16` states what the caller owes"
)]

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::{LANES, Simd, Tiles, portable::Portable, tiles::NoTiles};
use crate::cpu::Isa;

/// An instruction set with products of bf16.
///
/// # Safety
/// As [`Simd`]; `u32` pointers must be valid for sixteen of them, `u16` pointers for sixteen of them.
pub(crate) unsafe trait Bf16: Simd {
    /// Sixteen pairs: the first of a pair is the low half of its lane.
    type Pairs: Copy;

    /// To the nearest bf16, ties to even.
    unsafe fn pair(low: Self::F, high: Self::F) -> Self::Pairs;
    /// Rounds in the same way and stores the sixteen in their order.
    unsafe fn store_bf16(ptr: *mut u16, value: Self::F);
    unsafe fn load_pairs(ptr: *const u32) -> Self::Pairs;
    unsafe fn store_pairs(ptr: *mut u32, pairs: Self::Pairs);
    /// One pair in every lane; `ptr` is valid for one.
    unsafe fn splat_pair(ptr: *const u32) -> Self::Pairs;
    /// `(acc + a.high * b.high) + a.low * b.low`.
    unsafe fn dot_pairs(acc: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F;
}

/// Work over [`Bf16`], as [`super::Kernel`] is over [`Simd`]. `run` must be `#[inline(always)]`.
pub(crate) trait Bf16Kernel {
    /// Does the work; products are those of `T`, if it has tiles.
    ///
    /// # Safety
    /// The processor must have the instruction set `S` and the tiles `T`.
    unsafe fn run<S: Bf16, T: Tiles>(self);
}

impl Isa {
    /// What these kernels need for products of bf16 and this processor lacks.
    pub(crate) fn lacks_for_bf16(self) -> Option<&'static str> {
        match self {
            Self::Portable => None,
            Self::Avx2 => Some("kernels with AVX512-BF16, which avx2 are not"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                let has_it = self.is_available() && is_x86_feature_detected!("avx512bf16");
                (!has_it).then_some(NOT_HERE)
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Vnni => Some(NOT_HERE),
            Self::Avx512Amx => (!self.is_available()).then_some(NO_TILES),
        }
    }

    /// Runs a kernel over bf16.
    ///
    /// # Panics
    /// Where [`Self::lacks_for_bf16`] names something.
    #[inline]
    pub(crate) fn run_bf16<K: Bf16Kernel>(self, kernel: K) {
        match self {
            // SAFETY: needs no feature.
            Self::Portable => unsafe { kernel.run::<Portable, NoTiles>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `TrainPass::new` refused an `Isa` for which `lacks_for_bf16` names something.
            Self::Avx512Vnni => unsafe { avx512::vectorize::<NoTiles>(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512Amx => unsafe { avx512::vectorize::<Amx>(kernel) },
            _ => unreachable!("refused by TrainPass::new"),
        }
    }
}

const NOT_HERE: &str = "AVX512-BF16, which this processor lacks";
const NO_TILES: &str = "AMX-BF16, which this processor lacks or its system refuses";

fn bits(value: f32) -> u32 {
    u32::from(bf16::from_f32(value).to_bits())
}

fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

unsafe impl Bf16 for Portable {
    type Pairs = [u32; LANES];

    #[inline(always)]
    unsafe fn pair(low: Self::F, high: Self::F) -> Self::Pairs {
        std::array::from_fn(|i| bits(low[i]) | bits(high[i]) << 16)
    }
    #[inline(always)]
    unsafe fn store_bf16(ptr: *mut u16, value: Self::F) {
        let bits = value.map(|value| bf16::from_f32(value).to_bits());
        unsafe { ptr.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_pairs(ptr: *const u32) -> Self::Pairs {
        unsafe { ptr.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_pairs(ptr: *mut u32, pairs: Self::Pairs) {
        unsafe { ptr.cast::<Self::Pairs>().write_unaligned(pairs) }
    }
    #[inline(always)]
    unsafe fn splat_pair(ptr: *const u32) -> Self::Pairs {
        [unsafe { ptr.read_unaligned() }; LANES]
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F {
        std::array::from_fn(|i| (acc[i] + high(a[i]) * high(b[i])) + low(a[i]) * low(b[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512, __m512bh, __m512i, _mm256_storeu_si256, _mm512_cvtne2ps_pbh,
        _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_permutexvar_epi16,
        _mm512_set1_epi32, _mm512_storeu_si512,
    };
    use std::mem::transmute;

    use super::{Bf16, Bf16Kernel};
    use crate::cpu::simd::{Tiles, avx512::Avx512};

    #[target_feature(
        enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16"
    )]
    pub(super) unsafe fn vectorize<T: Tiles>(kernel: impl Bf16Kernel) {
        unsafe { kernel.run::<Avx512, T>() }
    }

    /// First the even lanes' places, then the odd ones': from two halves to pairs.
    static ZIP: [u16; 32] = [
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12,
        28, 13, 29, 14, 30, 15, 31,
    ];

    unsafe impl Bf16 for Avx512 {
        type Pairs = __m512i;

        #[inline(always)]
        unsafe fn pair(low: __m512, high: __m512) -> __m512i {
            unsafe {
                let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_permutexvar_epi16(_mm512_loadu_si512(ZIP.as_ptr().cast()), halves)
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(ptr: *mut u16, value: __m512) {
            unsafe {
                let values = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
                _mm256_storeu_si256(ptr.cast(), values);
            }
        }
        #[inline(always)]
        unsafe fn load_pairs(ptr: *const u32) -> __m512i {
            unsafe { _mm512_loadu_si512(ptr.cast()) }
        }
        #[inline(always)]
        unsafe fn store_pairs(ptr: *mut u32, pairs: __m512i) {
            unsafe { _mm512_storeu_si512(ptr.cast(), pairs) }
        }
        #[inline(always)]
        unsafe fn splat_pair(ptr: *const u32) -> __m512i {
            unsafe { _mm512_set1_epi32(ptr.read_unaligned().cast_signed()) }
        }
        #[inline(always)]
        unsafe fn dot_pairs(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
            unsafe {
                let a = transmute::<__m512i, __m512bh>(a);
                _mm512_dpbf16_ps(acc, a, transmute::<__m512i, __m512bh>(b))
            }
        }
    }
}
