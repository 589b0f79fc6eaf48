//! The K formats: super-blocks of 256 values in 8 or 16 groups, each group with small integer scales of its own,
//! which multiply one or two f16 scales of the super-block.
//!
//! Bytes of a super-block, with their offsets; `d` and `dmin` are f16, `g` is a value's group:
//!
//! ```text
//! Q2_K   84 B | scales 0..16 | qs 16..80 | d 80..82 | dmin 82..84 |             value = q * (d * sc[g]) - dmin * mn[g]
//! Q3_K  110 B | hmask 0..32 | qs 32..96 | scales 96..108 | d 108..110 |         value = (q - 4) * (d * sc[g])
//! Q4_K  144 B | d 0..2 | dmin 2..4 | scales 4..16 | qs 16..144 |                value = q * (d * sc[g]) - dmin * mn[g]
//! Q5_K  176 B | d 0..2 | dmin 2..4 | scales 4..16 | qh 16..48 | qs 48..176 |    value = q * (d * sc[g]) - dmin * mn[g]
//! Q6_K  210 B | ql 0..128 | qh 128..192 | scales 192..208, i8 | d 208..210 |    value = (q - 32) * (d * sc[g])
//!
//! groups: 16 of 16 values (Q2_K, Q3_K, Q6_K); 8 of 32 values (Q4_K, Q5_K)
//!
//! Codes. Planes lie side by side in the bits of a byte; value i of the super-block is found so:
//!   2-bit planes (qs of Q2_K, Q3_K; qh of Q6_K): byte 32 * (i / 128) + i % 32, bits 2p..2p + 2, p = i % 128 / 32
//!   4-bit planes (qs of Q4_K, Q5_K):             byte 32 * (i / 64) + i % 32,  bits 4p..4p + 4, p = i % 64 / 32
//!   4-bit planes (ql of Q6_K):                   byte 64 * (i / 128) + i % 64, bits 4p..4p + 4, p = i % 128 / 64
//!   1-bit planes (hmask of Q3_K, qh of Q5_K):    byte i % 32, bit i / 32
//! The planes of 1 bit (Q5_K: 2^4, Q3_K: 2^2) and of 2 bits (Q6_K: 2^4) are the upper part of the code.
//!
//! Scales of Q2_K: byte g is | mn[g] : 4 | sc[g] : 4 |.
//!
//! Scales of Q3_K, 16 of 6 bits in 12 bytes, stored + 32 (letters are groups 0 = A to 15 = P):
//!     0 IIIIAAAA   4 MMMMEEEE    8 MMIIEEAA
//!     1 JJJJBBBB   5 NNNNFFFF    9 NNJJFFBB
//!     2 KKKKCCCC   6 OOOOGGGG   10 OOKKGGCC
//!     3 LLLLDDDD   7 PPPPHHHH   11 PPLLHHDD
//!
//! Scales (capitals) and minima (small) of Q4_K and Q5_K, 8 + 8 of 6 bits in 12 bytes (groups 0 = A to 7 = H):
//!     0 EEAAAAAA   4 eeaaaaaa    8 eeeeEEEE
//!     1 FFBBBBBB   5 ffbbbbbb    9 ffffFFFF
//!     2 GGCCCCCC   6 ggcccccc   10 ggggGGGG
//!     3 HHDDDDDD   7 hhdddddd   11 hhhhHHHH
//! ```

use super::{BlockFormat, SUPER_BLOCK_VALUES, half, u16_at};

/// Most groups of a super-block.
const GROUPS_MAX: usize = 16;

/// Small scales of one super-block.
pub(super) struct GroupScales {
    /// Bits of the f16 scale.
    pub(super) d: u16,
    /// Bits of the f16 scale of the minima; zero where there are none.
    pub(super) dmin: u16,
    /// Per group; elements from the number of groups on are zero.
    pub(super) sc: [i8; GROUPS_MAX],
    /// Per group; zero where there are none.
    pub(super) mn: [u8; GROUPS_MAX],
}

/// Takes one super-block apart: writes its 256 codes, returns its scales.
pub(super) fn unpack_block(format: BlockFormat, block: &[u8], codes: &mut [u8]) -> GroupScales {
    let (mut sc, mut mn) = ([0; GROUPS_MAX], [0; GROUPS_MAX]);
    let (d, dmin) = match format {
        BlockFormat::Q2K => {
            for (g, packed) in block[..16].iter().enumerate() {
                (sc[g], mn[g]) = ((packed & 0x0f).cast_signed(), packed >> 4);
            }
            or_planes(codes, &block[16..80], 32, 2, 0);
            (u16_at(block, 80), u16_at(block, 82))
        }
        BlockFormat::Q3K => {
            let packed = &block[96..108];
            for (g, sc) in sc.iter_mut().enumerate() {
                let low = packed[g % 8] >> (4 * (g / 8)) & 0x0f;
                let high = packed[8 + g % 4] >> (2 * (g / 4)) & 0x03;
                *sc = (low | high << 4).cast_signed() - 32;
            }
            or_planes(codes, &block[32..96], 32, 2, 0);
            or_planes(codes, &block[..32], 32, 1, 2);
            (u16_at(block, 108), 0)
        }
        BlockFormat::Q4K => {
            unpack_scales_and_minima(&block[4..16], &mut sc, &mut mn);
            or_planes(codes, &block[16..144], 32, 4, 0);
            (u16_at(block, 0), u16_at(block, 2))
        }
        BlockFormat::Q5K => {
            unpack_scales_and_minima(&block[4..16], &mut sc, &mut mn);
            or_planes(codes, &block[48..176], 32, 4, 0);
            or_planes(codes, &block[16..48], 32, 1, 4);
            (u16_at(block, 0), u16_at(block, 2))
        }
        BlockFormat::Q6K => {
            for (sc, byte) in sc.iter_mut().zip(&block[192..208]) {
                *sc = byte.cast_signed();
            }
            or_planes(codes, &block[..128], 64, 4, 0);
            or_planes(codes, &block[128..192], 32, 2, 4);
            (u16_at(block, 208), 0)
        }
        BlockFormat::F32
        | BlockFormat::F16
        | BlockFormat::Bf16
        | BlockFormat::Q4_0
        | BlockFormat::Q4_1
        | BlockFormat::Q5_0
        | BlockFormat::Q5_1
        | BlockFormat::Q8_0 => unreachable!("{format} has no super-blocks"),
    };
    GroupScales { d, dmin, sc, mn }
}

/// Puts planes of `bits` bits, which lie side by side in `packed`, into the codes at bit `at` of each.
///
/// Every `stride` bytes hold `8 / bits` runs of `stride` values: the lowest bits of the bytes are the first run.
/// With `at == 0` the codes are overwritten, else completed.
fn or_planes(codes: &mut [u8], packed: &[u8], stride: usize, bits: usize, at: u32) {
    let mask = (1_u8 << bits) - 1;
    let runs = packed
        .chunks_exact(stride)
        .flat_map(|bytes| (0..8).step_by(bits).map(move |shift| (bytes, shift)));
    for (run, (bytes, shift)) in codes.chunks_exact_mut(stride).zip(runs) {
        for (code, byte) in run.iter_mut().zip(bytes) {
            let part = (byte >> shift & mask) << at;
            *code = if at == 0 { part } else { *code | part };
        }
    }
}

/// The 12 bytes of `Q4_K` and `Q5_K`: see the module's drawing.
fn unpack_scales_and_minima(packed: &[u8], sc: &mut [i8; GROUPS_MAX], mn: &mut [u8; GROUPS_MAX]) {
    for g in 0..4 {
        let (low_sc, low_mn, both) = (packed[g], packed[g + 4], packed[g + 8]);
        sc[g] = (low_sc & 0x3f).cast_signed();
        mn[g] = low_mn & 0x3f;
        sc[g + 4] = (both & 0x0f | low_sc >> 2 & 0x30).cast_signed();
        mn[g + 4] = both >> 4 | low_mn >> 2 & 0x30;
    }
}

/// See [`super::dequantize_row`], which has checked the lengths.
pub(super) fn dequantize(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    let layout = format.code_layout().expect("a K format has codes");
    let mut codes = [0; SUPER_BLOCK_VALUES];
    for (block, values) in
        bytes.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(SUPER_BLOCK_VALUES))
    {
        let scales = unpack_block(format, block, &mut codes);
        let (d, dmin) = (half(scales.d), half(scales.dmin));
        for (i, (value, code)) in values.iter_mut().zip(codes).enumerate() {
            let g = i / layout.group;
            let product =
                f32::from(i16::from(code) - layout.offset_i16()) * (d * f32::from(scales.sc[g]));
            // Without minima nothing is subtracted, so that -0.0 keeps its sign whatever dmin would be.
            *value =
                if layout.has_min { product - dmin * f32::from(scales.mn[g]) } else { product };
        }
    }
}
