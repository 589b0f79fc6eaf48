//! Rows as blocks of integer codes with a float scale, as `MatMulNBits` and `DequantizeLinear` take them:
//!
//! ```text
//! value = (code - 2^(bits - 1)) * scale [+ minimum]
//! ```
//!
//! Every block format of GGUF has this form, so nothing is lost (but for a rounding of f32 where a product and a sum are
//! rounded in another order). A format with minima has codes from 0 on; they are taken around the middle of their range,
//! and the minimum with them: `q * s + m = (q - c) * s + (m + c * s)`. So one zero point serves all formats, codes are
//! small where an accelerator rounds activations, and the minima are a product with the sums of the input's blocks.

use pleach_engine::quant::{CodeLayout, CodeRow, SUPER_BLOCK_VALUES, Scales};

use super::{Matrix, tally::Loss};

/// Values that share a scale where floats are quantized.
pub(crate) const LOSSY_BLOCK: usize = 32;

/// How a matrix is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// 4 or 8.
    pub(crate) bits: u32,
    /// Values of a block, 16 or 32.
    pub(crate) size: usize,
    pub(crate) has_min: bool,
}

/// Codes and scales of a part of a row.
#[derive(Debug, Default)]
pub(crate) struct BlockRow {
    /// One byte for each value.
    pub(crate) codes: Vec<u8>,
    /// One for each block.
    pub(crate) scales: Vec<f32>,
    /// One for each block, where there are minima.
    pub(crate) minima: Vec<f32>,
    file: CodeRow,
    values: Vec<f32>,
}

impl Blocks {
    /// The file's own codes; in 4 bits if they fit and 4 are wanted.
    pub(crate) fn exact(layout: CodeLayout, bits: u32) -> Self {
        let bits = if layout.bits <= 4 { bits } else { 8 };
        Self { bits, size: layout.group, has_min: layout.has_min }
    }

    /// Quantized here, symmetric.
    pub(crate) fn lossy(bits: u32) -> Self {
        Self { bits, size: LOSSY_BLOCK, has_min: false }
    }

    /// Bytes of the codes of a block.
    pub(crate) fn code_bytes(self) -> usize {
        self.size * self.bits as usize / 8
    }

    /// Stands for 0.
    pub(crate) fn zero_point(self) -> u8 {
        if self.bits == 4 { 8 } else { 128 }
    }

    /// Codes of a part of a row, whole blocks of the file's format and of this.
    pub(crate) fn encode(
        self,
        matrix: &Matrix<'_, '_>,
        n: usize,
        columns: std::ops::Range<usize>,
        out: &mut BlockRow,
        loss: &mut Loss,
    ) {
        let BlockRow { codes, scales, minima, file, values } = out;
        codes.clear();
        scales.clear();
        minima.clear();
        if let Some(layout) = matrix.unchanged_codes() {
            matrix.unpack(n, &columns, file);
            self.take_over(layout, file, codes, scales, minima);
        } else {
            values.resize(columns.len(), 0.0);
            matrix.read(n, columns, values);
            for block in values.chunks_exact(self.size) {
                self.quantize(block, codes, scales, loss);
            }
        }
    }

    fn take_over(
        self,
        layout: CodeLayout,
        row: &CodeRow,
        codes: &mut Vec<u8>,
        scales: &mut Vec<f32>,
        minima: &mut Vec<f32>,
    ) {
        let center = center(layout);
        let shift = i32::from(self.zero_point()) - center;
        // Codes are below the center's double, so the sum is a code again.
        codes.extend(row.codes.iter().map(|&code| (i32::from(code) + shift).to_le_bytes()[0]));
        let mut push = |scale: f32, minimum: Option<f32>| {
            scales.push(scale);
            minima.extend(minimum.map(|minimum| minimum + center as f32 * scale));
        };
        match &row.scales {
            Scales::Half { d, m } => {
                for (block, &d) in d.iter().enumerate() {
                    push(half(d), m.as_ref().map(|m| half(m[block])));
                }
            }
            Scales::Super { d, sc, dmin, mn } => {
                let groups = SUPER_BLOCK_VALUES / layout.group;
                for (group, &sc) in sc.iter().enumerate() {
                    let minimum = dmin.as_ref().zip(mn.as_ref());
                    let minimum = minimum
                        .map(|(dmin, mn)| -(half(dmin[group / groups]) * f32::from(mn[group])));
                    push(half(d[group / groups]) * f32::from(sc), minimum);
                }
            }
        }
    }

    /// The value of largest magnitude becomes the lowest code, as in ONNX Runtime's own quantizer
    /// (`MlasQuantizeBlockwise`, symmetric).
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "codes are clamped to their range"
    )]
    fn quantize(self, block: &[f32], codes: &mut Vec<u8>, scales: &mut Vec<f32>, loss: &mut Loss) {
        let zero = f32::from(self.zero_point());
        let extreme = block
            .iter()
            .fold(0f32, |most, &value| if value.abs() > most.abs() { value } else { most });
        let scale = extreme / -zero;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for &value in block {
            let code = (value * inverse + zero).round().clamp(0.0, 2.0 * zero - 1.0);
            loss.add(value, (code - zero) * scale);
            codes.push(code as u8);
        }
        scales.push(scale);
    }
}

/// What is subtracted from a code of the file so that codes lie around 0.
fn center(layout: CodeLayout) -> i32 {
    match (layout.has_min, layout.group) {
        (false, _) => layout.offset,
        // `Q2_K`: codes of 2 bits.
        (true, 16) => 2,
        (true, _) => 1 << (layout.bits - 1),
    }
}

fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

#[cfg(test)]
mod tests {
    use pleach_engine::{
        backend::MatrixSource,
        quant::{BlockFormat, dequantize_row},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::weights::MatrixRows;

    /// A row of random blocks; scales of 2^-14 to 2^2 in size.
    fn random_row(format: BlockFormat, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut bytes: Vec<u8> = (0..format.row_bytes(512).unwrap())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_le_bytes()[6]
            })
            .collect();
        let scales: &[usize] = match format {
            BlockFormat::F32
            | BlockFormat::F16
            | BlockFormat::Bf16
            | BlockFormat::Q4_0
            | BlockFormat::Q5_0
            | BlockFormat::Q8_0 => &[1],
            BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[1, 3],
            BlockFormat::Q2K => &[81, 83],
            BlockFormat::Q3K => &[109],
            BlockFormat::Q6K => &[209],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in scales {
                block[at] = block[at] & 0xbf & 0xc7 | 0x20;
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn codes_of_every_format_are_taken_over_exactly(seed: u64, format in 3..13usize, bits in 0..2u32) {
            let format = BlockFormat::ALL[format];
            let bytes = random_row(format, seed);
            let mut expected = vec![0.0; 512];
            dequantize_row(format, &bytes, &mut expected);
            let row = |_| bytes.as_slice();
            let source = MatrixSource { name: "", format, n_out: 1, n_in: 512, row: &row };
            let matrix = Matrix::new((1, 512), MatrixRows::File(&source), None);
            let blocks = Blocks::exact(format.code_layout().unwrap(), 4 << bits);
            let (mut out, mut loss) = (BlockRow::default(), Loss::default());
            blocks.encode(&matrix, 0, 256..512, &mut out, &mut loss);
            prop_assert_eq!(out.codes.len(), 256);
            for (i, expected) in expected[256..].iter().enumerate() {
                let (code, block) = (f32::from(out.codes[i]), i / blocks.size);
                prop_assert!(blocks.bits == 8 || out.codes[i] < 16);
                let product = (code - f32::from(blocks.zero_point())) * out.scales[block];
                let value = product + out.minima.get(block).unwrap_or(&0.0);
                let size = out.scales[block].abs() * 32.0 + out.minima.get(block).unwrap_or(&0.0).abs();
                prop_assert!((value - expected).abs() <= size * 2f32.powi(-22), "{format} {i}: {value}, {expected}");
                // The sign of a zero apart.
                let is_equal = (value - expected).abs() < f32::MIN_POSITIVE;
                prop_assert!(blocks.has_min || is_equal, "{format} {i}: {value}, {expected}");
            }
            prop_assert!(loss.relative_error() < 1e-12);
        }

        #[test]
        fn what_is_quantized_is_off_by_half_a_step(seed: u64, bits in 0..2u32) {
            let values: Vec<f32> = random_row(BlockFormat::F16, seed).iter().take(512).map(|&b| f32::from(b) - 100.0).collect();
            let matrix = Matrix::new((1, 512), MatrixRows::Own(&values), None);
            let blocks = Blocks::lossy(4 << bits);
            let (mut out, mut loss) = (BlockRow::default(), Loss::default());
            blocks.encode(&matrix, 0, 0..512, &mut out, &mut loss);
            for (i, value) in values.iter().enumerate() {
                let scale = out.scales[i / 32];
                let found = (f32::from(out.codes[i]) - f32::from(blocks.zero_point())) * scale;
                // A value of the other sign than the extreme one may be a whole step beyond the last code.
                prop_assert!((found - value).abs() <= scale.abs() * 1.001);
            }
            let bound = if blocks.bits == 4 { 0.12 } else { 0.006 };
            prop_assert!(loss.relative_error() < bound);
        }
    }
}
