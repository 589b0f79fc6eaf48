//! ggml block formats: how a row of values lies in a GGUF file, and what the values are.
//!
//! A row of `K` values is a whole number of blocks, one after the other; a matrix is its rows, one after the other.
//! [`dequantize_row`] is the definition of the values (plain loops, bit-equal to gguf-py's `gguf.quants.dequantize`);
//! [`unpack_row`] takes a row apart into integer codes and scales, without loss, for whoever packs it for a kernel.
//!
//! The byte layouts are drawn in `legacy.rs` (blocks of 32) and `k_quants.rs` (super-blocks of 256). Everything is little-endian.
//! Source of the formats: `ggml-common.h` and `ggml-quants.c` of ggml.

use std::fmt;

mod codes;
mod float;
mod k_quants;
mod legacy;

pub use codes::{CodeLayout, CodeRow, Scales, unpack_row};

/// Values in a block of the older formats, `Q4_0` to `Q8_0`.
pub const LEGACY_BLOCK_VALUES: usize = 32;

/// Values in a super-block of the K formats (`QK_K` in ggml).
pub const SUPER_BLOCK_VALUES: usize = 256;

/// How a tensor's values are stored in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 values, 4 bits, one scale.
    Q4_0,
    /// 32 values, 4 bits, scale and minimum.
    Q4_1,
    /// 32 values, 5 bits, one scale.
    Q5_0,
    /// 32 values, 5 bits, scale and minimum.
    Q5_1,
    /// 32 values, 8 bits, one scale.
    Q8_0,
    /// 256 values, 2 bits, 16 groups.
    Q2K,
    /// 256 values, 3 bits, 16 groups.
    Q3K,
    /// 256 values, 4 bits, 8 groups.
    Q4K,
    /// 256 values, 5 bits, 8 groups.
    Q5K,
    /// 256 values, 6 bits, 16 groups.
    Q6K,
}

impl BlockFormat {
    /// Every format that is supported.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// `(name, ggml type, values in a block, bytes of a block)`; the one table that the getters below read.
    const fn row_of_table(self) -> (&'static str, u32, usize, usize) {
        match self {
            Self::F32 => ("F32", 0, 1, 4),
            Self::F16 => ("F16", 1, 1, 2),
            Self::Bf16 => ("BF16", 30, 1, 2),
            Self::Q4_0 => ("Q4_0", 2, 32, 2 + 16),
            Self::Q4_1 => ("Q4_1", 3, 32, 2 + 2 + 16),
            Self::Q5_0 => ("Q5_0", 6, 32, 2 + 4 + 16),
            Self::Q5_1 => ("Q5_1", 7, 32, 2 + 2 + 4 + 16),
            Self::Q8_0 => ("Q8_0", 8, 32, 2 + 32),
            Self::Q2K => ("Q2_K", 10, 256, 16 + 64 + 2 + 2),
            Self::Q3K => ("Q3_K", 11, 256, 32 + 64 + 12 + 2),
            Self::Q4K => ("Q4_K", 12, 256, 2 + 2 + 12 + 128),
            Self::Q5K => ("Q5_K", 13, 256, 2 + 2 + 12 + 32 + 128),
            Self::Q6K => ("Q6_K", 14, 256, 128 + 64 + 16 + 2),
        }
    }

    /// Name as ggml spells it: `Q4_1`, `Q4_K`, `BF16`.
    pub const fn name(self) -> &'static str {
        self.row_of_table().0
    }

    /// Number of the type in GGUF files (`enum ggml_type`).
    pub const fn ggml_type(self) -> u32 {
        self.row_of_table().1
    }

    /// Values in one block: 1, 32 or 256.
    pub const fn block_values(self) -> usize {
        self.row_of_table().2
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row_of_table().3
    }

    /// The format of a type number, or `None` for one that is not supported; [`ggml_type_name`] names those.
    pub fn from_ggml_type(ggml_type: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.ggml_type() == ggml_type)
    }

    /// The format of a name as ggml spells it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Bytes of a row of `n_values` values; `None` if they are not a whole number of blocks, or too many.
    pub fn row_bytes(self, n_values: usize) -> Option<usize> {
        if !n_values.is_multiple_of(self.block_values()) {
            return None;
        }
        (n_values / self.block_values()).checked_mul(self.block_bytes())
    }

    /// Whether values are plain floats, without blocks and scales.
    pub const fn is_float(self) -> bool {
        self.block_values() == 1
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What ggml calls a type number, supported here or not; for messages.
pub fn ggml_type_name(ggml_type: u32) -> Option<&'static str> {
    if let Some(format) = BlockFormat::from_ggml_type(ggml_type) {
        return Some(format.name());
    }
    Some(match ggml_type {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

/// Writes the values of one row (or of any whole number of blocks): the definition of every format.
///
/// | buffer | length | note |
/// |---|---|---|
/// | `bytes` | `format.row_bytes(out.len())` | whole blocks, any alignment |
/// | `out` | `K` | every element is written |
///
/// # Panics
/// If `out` is not a whole number of blocks, or `bytes` is not exactly their bytes.
pub fn dequantize_row(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        format.row_bytes(out.len()),
        Some(bytes.len()),
        "bytes of a {format} row of {} values",
        out.len()
    );
    match format {
        BlockFormat::F32 => float::dequantize_f32(bytes, out),
        BlockFormat::F16 => float::dequantize_f16(bytes, out),
        BlockFormat::Bf16 => float::dequantize_bf16(bytes, out),
        BlockFormat::Q4_0
        | BlockFormat::Q4_1
        | BlockFormat::Q5_0
        | BlockFormat::Q5_1
        | BlockFormat::Q8_0 => legacy::dequantize(format, bytes, out),
        BlockFormat::Q2K
        | BlockFormat::Q3K
        | BlockFormat::Q4K
        | BlockFormat::Q5K
        | BlockFormat::Q6K => k_quants::dequantize(format, bytes, out),
    }
}

/// Two bytes, little-endian.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The value of an f16 given by its bits.
fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back() {
        for format in BlockFormat::ALL {
            assert_eq!(BlockFormat::from_ggml_type(format.ggml_type()), Some(format));
            assert_eq!(BlockFormat::from_name(format.name()), Some(format));
            assert_eq!(ggml_type_name(format.ggml_type()), Some(format.name()));
        }
        assert_eq!(BlockFormat::from_ggml_type(16), None);
        assert_eq!(ggml_type_name(16), Some("IQ2_XXS"));
        assert_eq!(ggml_type_name(1000), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(BlockFormat::Q4_1.row_bytes(576), Some(18 * 20));
        assert_eq!(BlockFormat::Q4_1.row_bytes(575), None);
        assert_eq!(BlockFormat::Q6K.row_bytes(0), Some(0));
        assert_eq!(BlockFormat::F32.row_bytes(usize::MAX), None);
    }
}
