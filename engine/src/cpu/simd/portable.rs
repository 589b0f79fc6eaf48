//! Plain Rust: arrays of sixteen lanes, left to the compiler to vectorize. The definition of what the other
//! instruction sets must compute (up to fused multiply-add, which this one does not use).
#![expect(unsafe_code, reason = "raw loads, as `Simd` asks")]
#![allow(clippy::missing_safety_doc, reason = "see `Simd`")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "`Simd` states what the caller owes")]

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];

/// 64 bytes, seen as bytes or as sixteen little-endian i32.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Bytes([u8; 64]);

impl Bytes {
    #[inline(always)]
    fn lane(&self, i: usize) -> i32 {
        i32::from_le_bytes([self.0[4 * i], self.0[4 * i + 1], self.0[4 * i + 2], self.0[4 * i + 3]])
    }

    #[inline(always)]
    fn from_lanes(f: impl Fn(usize) -> i32) -> Self {
        let mut bytes = [0; 64];
        for i in 0..LANES {
            bytes[4 * i..4 * i + 4].copy_from_slice(&f(i).to_le_bytes());
        }
        Self(bytes)
    }
}

pub(super) unsafe fn vectorize<K: Kernel>(kernel: K) -> K::Out {
    unsafe { kernel.run::<Portable>() }
}

#[inline(always)]
fn map2(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
unsafe fn dot(acc: Bytes, code: impl Fn(usize) -> i32, x: *const i8) -> Bytes {
    let x: [i8; 4] = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
    Bytes::from_lanes(|i| {
        (0..4).fold(acc.lane(i), |sum, b| sum + code(4 * i + b) * i32::from(x[b]))
    })
}

unsafe impl Simd for Portable {
    type F = F;
    type I = Bytes;
    const INT8_ROWS: usize = 2;
    const F32_ROWS: usize = 1;
    const PRODUCT_BLOCK: (usize, usize) = (4, 1);
    const BYTES_ARE_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(ptr: *const f32) -> F {
        unsafe { ptr.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(ptr: *mut f32, value: F) {
        unsafe { ptr.cast::<F>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_f16(ptr: *const u16) -> F {
        let bits = unsafe { ptr.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(ptr: *mut u16, value: F) {
        unsafe {
            ptr.cast::<[u16; LANES]>().write_unaligned(value.map(|v| f16::from_f32(v).to_bits()));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(ptr: *const u16) -> F {
        let bits = unsafe { ptr.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| bf16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(ptr: *const u8) -> F {
        unsafe { ptr.cast::<[u8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(ptr: *const i8) -> F {
        unsafe { ptr.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: F, b: F) -> F {
        std::array::from_fn(|i| if i < n { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "integral and within -126..=127")]
    unsafe fn pow2(a: F) -> F {
        a.map(|v| f32::from_bits((((v as i32) + 127) << 23).cast_unsigned()))
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        let mut a = a;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn zero_i() -> Bytes {
        Bytes([0; 64])
    }
    #[inline(always)]
    unsafe fn load_i(ptr: *const u8) -> Bytes {
        Bytes(unsafe { ptr.cast::<[u8; 64]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn to_f(a: Bytes) -> F {
        std::array::from_fn(|i| a.lane(i) as f32)
    }
    #[inline(always)]
    unsafe fn low_nibbles(a: Bytes) -> Bytes {
        Bytes(a.0.map(|b| b & 15))
    }
    #[inline(always)]
    unsafe fn high_nibbles(a: Bytes) -> Bytes {
        Bytes(a.0.map(|b| b >> 4))
    }
    #[inline(always)]
    unsafe fn or_bit<const I: u32>(a: Bytes, plane: Bytes) -> Bytes {
        Bytes(std::array::from_fn(|i| a.0[i] | ((plane.0[i] >> I) & 1) << 4))
    }
    #[inline(always)]
    unsafe fn or_two_bits<const I: u32>(a: Bytes, plane: Bytes) -> Bytes {
        Bytes(std::array::from_fn(|i| a.0[i] | ((plane.0[i] >> (2 * I)) & 3) << 4))
    }
    #[inline(always)]
    unsafe fn byte_lane<const B: u32>(a: Bytes) -> Bytes {
        Bytes::from_lanes(|i| i32::from(a.0[4 * i + B as usize]))
    }
    #[inline(always)]
    unsafe fn dot(acc: Bytes, codes: Bytes, x: *const i8) -> Bytes {
        unsafe { dot(acc, |i| i32::from(codes.0[i]), x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Bytes, codes: Bytes, x: *const i8) -> Bytes {
        unsafe { dot(acc, |i| i32::from(codes.0[i]), x) }
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the caller keeps values within i8")]
    unsafe fn store_i8(ptr: *mut i8, value: F) {
        unsafe {
            ptr.cast::<[i8; LANES]>().write_unaligned(value.map(|v| v.round_ties_even() as i8));
        }
    }
    #[inline(always)]
    unsafe fn select_below(x: F, limit: F, a: F, b: F) -> F {
        std::array::from_fn(|i| if x[i] < limit[i] { a[i] } else { b[i] })
    }
}
