//! Types that go to the device as they lie in memory.
#![expect(unsafe_code, reason = "values are seen as bytes")]

use super::DevicePtr;

/// A type without padding, of which every bit pattern is a value.
///
/// # Safety
/// It must be so: values are read from, and written as, bytes.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($ty:ty)*) => { $(
        // SAFETY: a number (or a transparent wrapper of one) has no padding and no invalid pattern.
        unsafe impl Plain for $ty {}
    )* };
}
plain!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 half::f16 half::bf16 DevicePtr);

// SAFETY: elements lie side by side without padding.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// The bytes of a value.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    bytes_of_slice(std::slice::from_ref(value))
}

/// The bytes of values side by side.
pub fn bytes_of_slice<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, so all of these bytes are initialized; a `u8` needs no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of values side by side, to be overwritten.
pub fn bytes_of_slice_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above; and whatever is written is a value, since every pattern of a `Plain` type is one.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
