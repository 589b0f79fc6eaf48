//! Sixteen lanes of f32 or i32 (or 64 bytes) in the registers of one instruction set.
//!
//! Every kernel is written once over [`Simd`] as a [`Kernel`] and compiled once for each instruction set by
//! [`Isa::run`]: methods are `inline(always)`, so that they end up in a function that has the target features.
//! One lane is one output feature (or one token, in attention scores), so sums along K are never split over lanes
//! and a row's result cannot depend on how many rows are computed with it.
#![expect(unsafe_code, reason = "vector intrinsics and raw loads")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod portable;
mod tiles;

use super::Isa;
#[cfg(target_arch = "x86_64")]
pub(super) use amx::tiles_are_granted;
pub(crate) use bf16::{Bf16, Bf16Kernel};
#[cfg(test)]
pub(crate) use portable::Portable;
#[cfg(test)]
pub(crate) use tiles::{A_STEP, TileConfig};
pub(crate) use tiles::{BLOCK_ROWS, STEP_PAIRS, Strip, StripShape, Tiles};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Asks for `bytes` to be near when they are read; changes no result.
#[inline(always)]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has it; it reads nothing that the program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Vectors of one instruction set.
///
/// # Safety
/// Every method needs the features of its instruction set, and every pointer must be valid for the 16 values or
/// 64 bytes that the method reads or writes; no alignment is needed.
pub(crate) unsafe trait Simd: Copy {
    /// 16 f32.
    type F: Copy;
    /// 16 i32, or 64 bytes.
    type I: Copy;
    /// Rows that the int8 kernel keeps in registers.
    const INT8_ROWS: usize;
    /// Rows that the f32 kernel keeps in registers.
    const F32_ROWS: usize;
    /// Rows and vectors of a result that the products of training keep in registers.
    const PRODUCT_BLOCK: (usize, usize);
    /// [`Self::dot_bytes`] takes 8-bit codes as signed (code − 128) instead of unsigned.
    const BYTES_ARE_SIGNED: bool;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(ptr: *const f32) -> Self::F;
    unsafe fn store(ptr: *mut f32, value: Self::F);
    unsafe fn load_f16(ptr: *const u16) -> Self::F;
    unsafe fn store_f16(ptr: *mut u16, value: Self::F);
    unsafe fn load_bf16(ptr: *const u16) -> Self::F;
    unsafe fn load_u8(ptr: *const u8) -> Self::F;
    unsafe fn load_i8(ptr: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Lanes `0..n` of `a`, the rest of `b`.
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^a` for integral `a` in `-126..=127`.
    unsafe fn pow2(a: Self::F) -> Self::F;
    /// Sum of the lanes, in one fixed order.
    unsafe fn sum(a: Self::F) -> f32;
    /// Largest lane.
    unsafe fn largest(a: Self::F) -> f32;
    unsafe fn abs(a: Self::F) -> Self::F;

    unsafe fn zero_i() -> Self::I;
    unsafe fn load_i(ptr: *const u8) -> Self::I;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Low nibble of every byte.
    unsafe fn low_nibbles(a: Self::I) -> Self::I;
    /// High nibble of every byte.
    unsafe fn high_nibbles(a: Self::I) -> Self::I;
    /// `a | 16 * bit I of every byte of plane`.
    unsafe fn or_bit<const I: u32>(a: Self::I, plane: Self::I) -> Self::I;
    /// `a | 16 * bits 2I and 2I+1 of every byte of plane`.
    unsafe fn or_two_bits<const I: u32>(a: Self::I, plane: Self::I) -> Self::I;
    /// Byte `B` of every 32-bit lane, as an integer.
    unsafe fn byte_lane<const B: u32>(a: Self::I) -> Self::I;
    /// `acc + Σ codes[4i + b] * x[b]` for the four bytes b of every lane; codes are below 64, `x` is four i8.
    unsafe fn dot(acc: Self::I, codes: Self::I, x: *const i8) -> Self::I;
    /// The same for codes of all 8 bits, see [`Self::BYTES_ARE_SIGNED`].
    unsafe fn dot_bytes(acc: Self::I, codes: Self::I, x: *const i8) -> Self::I;
    /// Rounds to nearest and stores the low bytes of 16 lanes, all within i8.
    unsafe fn store_i8(ptr: *mut i8, value: Self::F);

    /// `e^x` to about 2 ulp; 0 below −87.
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: the caller has this instruction set; no memory is touched.
        unsafe {
            // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts (Cody and Waite), then a polynomial in r.
            let floor = Self::splat(-87.0);
            let clamped = Self::min(Self::max(x, floor), Self::splat(88.0));
            let n = Self::round(Self::mul(clamped, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), clamped);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let r2 = Self::mul(r, r);
            let y = Self::add(Self::fma(p, r2, r), Self::splat(1.0));
            let y = Self::mul(y, Self::pow2(n));
            Self::select_below(x, floor, Self::splat(0.0), y)
        }
    }

    /// Lane-wise `x < limit ? a : b`.
    unsafe fn select_below(x: Self::F, limit: Self::F, a: Self::F, b: Self::F) -> Self::F;

    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let (mut from, mut to) = ([[0.0f32; LANES]; LANES], [[0.0f32; LANES]; LANES]);
        // SAFETY: the caller has this instruction set; every array holds sixteen values.
        unsafe {
            for (values, row) in from.iter_mut().zip(rows) {
                Self::store(values.as_mut_ptr(), row);
            }
            for (i, row) in from.iter().enumerate() {
                for (to, value) in to.iter_mut().zip(row) {
                    to[i] = *value;
                }
            }
            to.map(|values| Self::load(values.as_ptr()))
        }
    }
}

/// Work written once over all instruction sets. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// Does the work.
    ///
    /// # Safety
    /// The processor must have the instruction set `S`.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

impl Isa {
    /// Runs a kernel compiled for this instruction set.
    ///
    /// # Panics
    /// If the processor lacks it: an `Isa` is checked where it is chosen.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            // SAFETY: needs no feature.
            Self::Portable => unsafe { portable::vectorize(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `CpuBackend::new` refused an `Isa` that `is_available` denies.
            Self::Avx2 => unsafe { avx2::vectorize(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512Vnni | Self::Avx512Amx => unsafe { avx512::vectorize(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512Vnni | Self::Avx512Amx => {
                unreachable!("refused by CpuBackend::new")
            }
        }
    }
}
