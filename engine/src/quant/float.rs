//! Plain floats: one value is one block.
//!
//! ```text
//! F32    | b0 b1 b2 b3 |   IEEE 754 single, little-endian
//! F16    | b0 b1 |         IEEE 754 half
//! BF16   | b0 b1 |         the upper half of a single: value = bits << 16
//! ```

use super::{half, u16_at};

pub(super) fn dequantize_f32(bytes: &[u8], out: &mut [f32]) {
    for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}

pub(super) fn dequantize_f16(bytes: &[u8], out: &mut [f32]) {
    for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = half(u16_at(b, 0));
    }
}

pub(super) fn dequantize_bf16(bytes: &[u8], out: &mut [f32]) {
    for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = f32::from_bits(u32::from(u16_at(b, 0)) << 16);
    }
}
