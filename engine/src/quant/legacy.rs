//! The older formats: blocks of 32 values with one or two f16 scales.
//!
//! Bytes of a block, with their offsets; `d` and `m` are f16:
//!
//! ```text
//! Q4_0  18 B  | d 0..2 |          | qs 2..18 |                value = (q - 8) * d
//! Q4_1  20 B  | d 0..2 | m 2..4   | qs 4..20 |                value = q * d + m
//! Q5_0  22 B  | d 0..2 |          | qh 2..6 | qs 6..22 |      value = (q - 16) * d
//! Q5_1  24 B  | d 0..2 | m 2..4   | qh 4..8 | qs 8..24 |      value = q * d + m
//! Q8_0  34 B  | d 0..2 |          | qs 2..34, i8 |            value = q * d
//!
//! qs of 4 and 5 bits: byte j holds value j in its low half and value j + 16 in its high half
//!        7  6  5  4   3  2  1  0
//!     |  q[j + 16]  |    q[j]    |
//! qh: a u32; bit j is the fifth bit of value j
//! ```

use super::{BlockFormat, CodeLayout, LEGACY_BLOCK_VALUES, half, u16_at};

/// Takes one block apart: writes its 32 codes, returns the bits of `d` and of `m` (zero where there is none).
pub(super) fn unpack_block(layout: CodeLayout, block: &[u8], codes: &mut [u8]) -> (u16, u16) {
    let d = u16_at(block, 0);
    if layout.bits == 8 {
        for (code, q) in codes.iter_mut().zip(&block[2..]) {
            // q + 128 for an i8 in a byte: only the sign bit changes.
            *code = q ^ 0x80;
        }
        return (d, 0);
    }
    let (m, header) = if layout.has_min { (u16_at(block, 2), 4) } else { (0, 2) };
    let (fifth_bits, qs) = if layout.bits == 5 {
        (
            u32::from_le_bytes([
                block[header],
                block[header + 1],
                block[header + 2],
                block[header + 3],
            ]),
            &block[header + 4..],
        )
    } else {
        (0, &block[header..])
    };
    let fifth = |j: usize| if fifth_bits >> j & 1 == 1 { 16 } else { 0 };
    let (low, high) = codes.split_at_mut(LEGACY_BLOCK_VALUES / 2);
    for (j, q) in qs.iter().enumerate() {
        low[j] = q & 0x0f | fifth(j);
        high[j] = q >> 4 | fifth(j + 16);
    }
    (d, m)
}

/// See [`super::dequantize_row`], which has checked the lengths.
pub(super) fn dequantize(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    let layout = format.code_layout().expect("a legacy format has codes");
    let mut codes = [0; LEGACY_BLOCK_VALUES];
    for (block, values) in
        bytes.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(LEGACY_BLOCK_VALUES))
    {
        let (d, m) = unpack_block(layout, block, &mut codes);
        let (d, m) = (half(d), half(m));
        for (value, code) in values.iter_mut().zip(codes) {
            let q = f32::from(i16::from(code) - layout.offset_i16());
            // Without a minimum nothing is added: -0.0 + 0.0 would lose its sign.
            *value = if layout.has_min { q * d + m } else { q * d };
        }
    }
}
