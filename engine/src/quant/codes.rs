//! A quantized row taken apart into integer codes and scales, without loss: what a packer for a kernel starts from.

use super::{BlockFormat, LEGACY_BLOCK_VALUES, SUPER_BLOCK_VALUES, k_quants, legacy};

/// What the codes and scales of a format mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    /// Codes are below `2^bits`: 4 (also for `Q2_K` and `Q3_K`, whose codes are smaller still), 5, 6 or 8.
    pub bits: u32,
    /// What is subtracted from a code before it is scaled: 0, 4 (`Q3_K`), 8, 16, 32 or 128 (`Q8_0`).
    pub offset: i32,
    /// Consecutive values that share a scale: 32 or 16.
    pub group: usize,
    /// Whether a group has a minimum.
    pub has_min: bool,
    /// Whether scales are [`Scales::Super`].
    pub super_block: bool,
}

impl CodeLayout {
    /// The offset in the type of the difference `code - offset`.
    pub(super) fn offset_i16(self) -> i16 {
        i16::try_from(self.offset).expect("offsets are at most 128")
    }
}

/// Scales of one row of `K` values. All f16 are given by their bits.
///
/// Products and sums are of f32, in the order written, each rounded: so the values equal [`super::dequantize_row`] bit for bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scales {
    /// `Q4_0`, `Q5_0`, `Q8_0`: `value = (code - offset) * d`; `Q4_1`, `Q5_1`: `value = code * d + m`.
    Half {
        /// f16, `[K / 32]`.
        d: Vec<u16>,
        /// f16, `[K / 32]`; present if the layout has minima.
        m: Option<Vec<u16>>,
    },
    /// K formats: `value = (code - offset) * (d * sc)`, with minima `value = code * (d * sc) - dmin * mn`.
    Super {
        /// f16, `[K / 256]`.
        d: Vec<u16>,
        /// `[K / group]`: 0..16 (`Q2_K`), -32..32 (`Q3_K`), 0..64 (`Q4_K`, `Q5_K`), any (`Q6_K`).
        sc: Vec<i8>,
        /// f16, `[K / 256]`; present if the layout has minima.
        dmin: Option<Vec<u16>>,
        /// `[K / group]`, 0..16 (`Q2_K`) or 0..64; present if the layout has minima.
        mn: Option<Vec<u8>>,
    },
}

/// One row of a quantized matrix taken apart without loss; see [`Scales`] for what a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeRow {
    /// `[K]` unsigned codes, each below `2^bits` of the [`CodeLayout`]. In the order of the values.
    pub codes: Vec<u8>,
    /// Scales of the row.
    pub scales: Scales,
}

impl Default for CodeRow {
    fn default() -> Self {
        Self { codes: Vec::new(), scales: Scales::Half { d: Vec::new(), m: None } }
    }
}

impl BlockFormat {
    /// What codes and scales of this format mean; `None` for F32, F16 and BF16, which have none.
    pub const fn code_layout(self) -> Option<CodeLayout> {
        let (bits, offset, group, has_min, super_block) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => (4, 8, 32, false, false),
            Self::Q4_1 => (4, 0, 32, true, false),
            Self::Q5_0 => (5, 16, 32, false, false),
            Self::Q5_1 => (5, 0, 32, true, false),
            Self::Q8_0 => (8, 128, 32, false, false),
            Self::Q2K => (4, 0, 16, true, true),
            Self::Q3K => (4, 4, 16, false, true),
            Self::Q4K => (4, 0, 32, true, true),
            Self::Q5K => (5, 0, 32, true, true),
            Self::Q6K => (6, 32, 16, false, true),
        };
        Some(CodeLayout { bits, offset, group, has_min, super_block })
    }
}

/// Takes a row of `k` values apart. The vectors of `out` are reused: no allocation for a row like the last one.
///
/// # Panics
/// If the format has no codes ([`BlockFormat::code_layout`] is `None`), if `k` is not a whole number of blocks, or if
/// `bytes` is not exactly their bytes.
pub fn unpack_row(format: BlockFormat, bytes: &[u8], k: usize, out: &mut CodeRow) {
    let Some(layout) = format.code_layout() else { panic!("{format} has no codes") };
    assert_eq!(format.row_bytes(k), Some(bytes.len()), "bytes of a {format} row of {k} values");
    out.codes.resize(k, 0);
    out.scales.clear_for(layout);
    let blocks = bytes.chunks_exact(format.block_bytes());
    match &mut out.scales {
        Scales::Half { d, m } => {
            for (block, codes) in blocks.zip(out.codes.chunks_exact_mut(LEGACY_BLOCK_VALUES)) {
                let (block_d, block_m) = legacy::unpack_block(layout, block, codes);
                d.push(block_d);
                if let Some(m) = m {
                    m.push(block_m);
                }
            }
        }
        Scales::Super { d, sc, dmin, mn } => {
            let groups = SUPER_BLOCK_VALUES / layout.group;
            for (block, codes) in blocks.zip(out.codes.chunks_exact_mut(SUPER_BLOCK_VALUES)) {
                let scales = k_quants::unpack_block(format, block, codes);
                d.push(scales.d);
                sc.extend_from_slice(&scales.sc[..groups]);
                if let (Some(dmin), Some(mn)) = (dmin.as_mut(), mn.as_mut()) {
                    dmin.push(scales.dmin);
                    mn.extend_from_slice(&scales.mn[..groups]);
                }
            }
        }
    }
}

impl Scales {
    /// Empties the vectors and makes the variant and its options those of `layout`, keeping memory where they already are.
    fn clear_for(&mut self, layout: CodeLayout) {
        match self {
            Self::Half { d, m } if !layout.super_block && m.is_some() == layout.has_min => {
                d.clear();
                if let Some(m) = m {
                    m.clear();
                }
            }
            Self::Super { d, sc, dmin, mn }
                if layout.super_block
                    && dmin.is_some() == layout.has_min
                    && mn.is_some() == layout.has_min =>
            {
                d.clear();
                sc.clear();
                if let (Some(dmin), Some(mn)) = (dmin, mn) {
                    dmin.clear();
                    mn.clear();
                }
            }
            Self::Half { .. } | Self::Super { .. } => {
                *self = if layout.super_block {
                    Self::Super {
                        d: Vec::new(),
                        sc: Vec::new(),
                        dmin: layout.has_min.then(Vec::new),
                        mn: layout.has_min.then(Vec::new),
                    }
                } else {
                    Self::Half { d: Vec::new(), m: layout.has_min.then(Vec::new) }
                };
            }
        }
    }
}
