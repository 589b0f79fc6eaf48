//! Tensor cores without a GPU: 32 lanes load a packed matrix as kernels do, decode it in fp16 registers, and feed
//! an emulated `mma.sync.m16n8k16`. What comes out is compared with f64 products of the file's values.
//!
//! Steps of a lane, all of which a kernel makes with one instruction each:
//!
//! ```text
//! word of P4 & 0x000f000f | 0x6400 6400        1024 + q of row r            (fp16: 1024 has an ulp of 1)
//! word of P4 & 0x00f000f0 | 0x6400 6400        1024 + 16 q of row r + 8
//! the extra plane's bits | at bit 4 or 8       5 and 6 bits; 8 bits: both nibbles are brought to bits 0..8
//! - 1024, or * 1/16 - 64                       q, exact
//! fma(q, s, z)                                 the weight, rounded once
//! ```
//!
//! Fragments: tables "Matrix fragments for mma.m16n8k16" of the PTX manual.

use half::f16;

use super::{Random, quantized, random_rows, repack_rows};
use crate::{
    cuda::{
        repack::{CudaLayout, RepackedMatrix},
        tile::{BLOCK_ROWS, BLOCKS, LANES, STRIPE_ROWS, TileLayout, UNIT_K},
    },
    quant::{BlockFormat, CodeRow, dequantize_row, unpack_row},
};

/// Tokens of one MMA.
const TOKENS: usize = 8;
/// Against f64 products of exact weights: fp16 rounding of scale, zero and weight (7.6e-4 was found for `Q4_K`).
const REL_L2_OF_FP16_WEIGHTS: f64 = 1.5e-3;
/// Against f64 products of the weights that the lanes decoded: f32 accumulation only.
const REL_L2_OF_ACCUMULATION: f64 = 2e-6;

/// Two fp16 in a register.
fn pair(register: u32) -> [f16; 2] {
    let [a, b, c, d] = register.to_le_bytes();
    [f16::from_le_bytes([a, b]), f16::from_le_bytes([c, d])]
}

/// Fused multiply-add in fp16: exact in f64 for all values here, then rounded once.
fn fma(a: f16, b: f16, c: f16) -> f16 {
    f16::from_f64(a.to_f64() * b.to_f64() + c.to_f64())
}

/// A unit and its super scales.
struct Unit<'a> {
    tiles: TileLayout,
    bytes: &'a [u8],
    supers: &'a [u8],
}

impl<'a> Unit<'a> {
    fn new(packed: &'a RepackedMatrix, tiles: TileLayout, stripe: usize, unit: usize) -> Self {
        let stripe = &packed.bytes[stripe * packed.stripe_bytes()..][..packed.stripe_bytes()];
        Self {
            tiles,
            bytes: &stripe[tiles.unit_offset(unit)..][..tiles.unit_bytes()],
            supers: &stripe[tiles.super_offset(unit)..][..tiles.super_bytes()],
        }
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn half(bytes: &[u8], at: usize) -> f16 {
        f16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    /// The codes of R0..R3 of one k16 step as exact fp16.
    fn codes(&self, block: usize, lane: usize, step: usize) -> [[f16; 2]; 4] {
        const MAGIC: u32 = 0x6400_6400;
        let low = self.word(self.tiles.p4_offset(block, lane) + 4 * step);
        let extra = self.tiles.extra_offset(block, lane);
        std::array::from_fn(|reg| {
            let odd = reg % 2 == 1;
            let bits = low >> (8 * (reg / 2)) & if odd { 0x00f0_00f0 } else { 0x000f_000f };
            let above = |plane: u32| plane << if odd { 8 } else { 4 };
            let mut scaled_by_16 = odd;
            let bits = match self.tiles.codes().bits {
                5 => bits | above(self.word(extra) >> (4 * step + reg) & 0x0001_0001),
                6 => {
                    bits | above(
                        self.word(extra + 4 * (step / 2)) >> (2 * (reg + 4 * (step % 2)))
                            & 0x0003_0003,
                    )
                }
                8 => {
                    let high = self.word(extra + 4 * step) >> (8 * (reg / 2));
                    scaled_by_16 = false;
                    // 16 * 255 does not fit below 1024, so the upper row comes down instead.
                    if odd {
                        bits >> 4 | high & 0x00f0_00f0
                    } else {
                        bits | (high & 0x000f_000f) << 4
                    }
                }
                _ => bits,
            };
            pair(bits | MAGIC).map(|value| {
                if scaled_by_16 {
                    fma(value, f16::from_f32(1.0 / 16.0), f16::from_f32(-64.0))
                } else {
                    fma(value, f16::ONE, f16::from_f32(-1024.0))
                }
            })
        })
    }

    /// Scale and zero of a row of the unit and one of its groups: the weight is `q * s + z`.
    fn scale_and_zero(&self, row: usize, group: usize) -> (f16, f16) {
        let codes = self.tiles.codes();
        let meta = |which| self.tiles.meta_offset(row, which, group);
        let (s, minimum) = if codes.super_block {
            let half =
                |which| Self::half(self.supers, self.tiles.super_scale_offset(row, which)).to_f32();
            let s = f16::from_f32(half(0) * f32::from(self.bytes[meta(0)].cast_signed()));
            (s, codes.has_min.then(|| f16::from_f32(-half(1) * f32::from(self.bytes[meta(1)]))))
        } else {
            (
                Self::half(self.bytes, meta(0)),
                codes.has_min.then(|| Self::half(self.bytes, meta(1))),
            )
        };
        let offset = f16::from_f32(-f32::from(i16::try_from(codes.offset).unwrap()));
        (s, minimum.unwrap_or_else(|| fma(offset, s, f16::ZERO)))
    }

    /// The A fragment of one k16 step: decoded weights.
    fn weights(&self, block: usize, lane: usize, step: usize) -> [[f16; 2]; 4] {
        let group = lane % 4 * 16 / self.tiles.codes().group;
        let codes = self.codes(block, lane, step);
        std::array::from_fn(|reg| {
            let row = block * BLOCK_ROWS + lane / 4 + 8 * (reg % 2);
            let (s, z) = self.scale_and_zero(row, group);
            codes[reg].map(|q| fma(q, s, z))
        })
    }
}

/// `d += a * b` of a warp, f16 inputs and f32 accumulators; `[lane]` of registers.
fn mma_m16n8k16(d: &mut [[f32; 4]; LANES], a: &[[[f16; 2]; 4]; LANES], b: &[[[f16; 2]; 2]; LANES]) {
    for lane in 0..LANES {
        for (reg, d) in d[lane].iter_mut().enumerate() {
            let row = lane / 4 + 8 * (reg / 2);
            let column = lane % 4 * 2 + reg % 2;
            for k in 0..16 {
                let a = a[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)][k % 2];
                let b = b[column * 4 + k % 8 / 2][k / 8][k % 2];
                *d += a.to_f32() * b.to_f32();
            }
        }
    }
}

/// `[n_out_padded][TOKENS]` of the packed matrix times x `[TOKENS][n_in_padded]`.
fn multiply(packed: &RepackedMatrix, tiles: TileLayout, x: &[Vec<f16>]) -> Vec<[f32; TOKENS]> {
    let mut out = vec![[0.0; TOKENS]; packed.n_out_padded];
    for stripe in 0..packed.n_out_padded / STRIPE_ROWS {
        for block in 0..BLOCKS {
            let mut d = [[0.0; 4]; LANES];
            for unit_idx in 0..packed.n_in_padded / UNIT_K {
                let unit = Unit::new(packed, tiles, stripe, unit_idx);
                for step in 0..4 {
                    let a = std::array::from_fn(|lane| unit.weights(block, lane, step));
                    // A lane's k of the unit are 16 consecutive ones, four a step.
                    let k = unit_idx * UNIT_K + step * 4;
                    let b = std::array::from_fn(|lane: usize| {
                        let x = &x[lane / 4][k + lane % 4 * 16..];
                        [[x[0], x[1]], [x[2], x[3]]]
                    });
                    mma_m16n8k16(&mut d, &a, &b);
                }
            }
            for (lane, d) in d.iter().enumerate() {
                for (reg, value) in d.iter().enumerate() {
                    let row = stripe * STRIPE_ROWS + block * BLOCK_ROWS + lane / 4 + 8 * (reg / 2);
                    out[row][lane % 4 * 2 + reg % 2] = *value;
                }
            }
        }
    }
    out
}

fn tiles_of(packed: &RepackedMatrix) -> TileLayout {
    let CudaLayout::Tiles(tiles) = packed.layout else {
        panic!("{:?} has no codes", packed.format)
    };
    tiles
}

#[test]
fn lanes_decode_every_code_exactly() {
    for format in quantized() {
        let (n_out, n_in) = (65, 512);
        let rows = random_rows(format, n_out, n_in, 0.1, &mut Random(3));
        let packed = repack_rows(format, &rows, n_in);
        let mut expected = CodeRow::default();
        for (n, row) in rows.iter().enumerate() {
            unpack_row(format, row, n_in, &mut expected);
            let block = n % STRIPE_ROWS / BLOCK_ROWS;
            for (k, &code) in expected.codes.iter().enumerate() {
                let unit = Unit::new(&packed, tiles_of(&packed), n / STRIPE_ROWS, k / UNIT_K);
                let lane = n % 8 * 4 + k % UNIT_K / 16;
                let reg = n % 16 / 8 + 2 * (k % 4 / 2);
                let q = unit.codes(block, lane, k % 16 / 4)[reg][k % 2];
                assert_eq!(q, f16::from_f32(f32::from(code)), "{format} [{n}, {k}]");
            }
        }
    }
}

#[test]
fn products_through_fragments_are_those_of_the_file() {
    let mut random = Random(19);
    for format in quantized() {
        for n_in in [32, 64, 96, 256, 576, 1024] {
            if format.row_bytes(n_in).is_none() {
                continue;
            }
            for n_out in [1, 16, 65] {
                check_products(format, n_out, n_in, &mut random);
            }
        }
    }
}

fn check_products(format: BlockFormat, n_out: usize, n_in: usize, random: &mut Random) {
    let rows = random_rows(format, n_out, n_in, 0.05, random);
    let packed = repack_rows(format, &rows, n_in);
    let tiles = tiles_of(&packed);
    let mut x = vec![vec![f16::ZERO; packed.n_in_padded]; TOKENS];
    for row in &mut x {
        for value in &mut row[..n_in] {
            *value = f16::from_f32(random.signed());
        }
        // One massive channel, as models have them.
        row[n_in / 3] = f16::from_f32(60.0 * random.signed());
    }
    let out = multiply(&packed, tiles, &x);

    let (mut error, mut accumulation_error, mut norm) = (0.0, 0.0, 0.0);
    let mut exact = vec![0.0; n_in];
    for (n, row) in rows.iter().enumerate() {
        dequantize_row(format, row, &mut exact);
        for (t, x) in x.iter().enumerate() {
            let (mut expected, mut of_decoded, mut magnitude) = (0.0, 0.0, 0.0);
            for (k, exact) in exact.iter().enumerate() {
                let unit = Unit::new(&packed, tiles, n / STRIPE_ROWS, k / UNIT_K);
                let lane = n % 8 * 4 + k % UNIT_K / 16;
                let registers = unit.weights(n % STRIPE_ROWS / BLOCK_ROWS, lane, k % 16 / 4);
                let decoded = registers[n % 16 / 8 + 2 * (k % 4 / 2)][k % 2];
                expected += f64::from(*exact) * x[k].to_f64();
                of_decoded += decoded.to_f64() * x[k].to_f64();
                magnitude += (f64::from(*exact) * x[k].to_f64()).powi(2);
            }
            let found = f64::from(out[n][t]);
            error += (found - expected).powi(2);
            accumulation_error += (found - of_decoded).powi(2);
            // Products may cancel: errors are measured against what is summed.
            norm += magnitude;
        }
    }
    let shape = format!("{format} [{n_out}, {n_in}]");
    assert!(norm > 0.0, "{shape}: nothing was multiplied");
    let (rel, rel_accumulation) = ((error / norm).sqrt(), (accumulation_error / norm).sqrt());
    assert!(rel <= REL_L2_OF_FP16_WEIGHTS, "{shape}: {rel:.3e}");
    assert!(
        rel_accumulation <= REL_L2_OF_ACCUMULATION,
        "{shape}: accumulation {rel_accumulation:.3e}"
    );
    for (n, row) in out.iter().enumerate().skip(n_out) {
        assert!(row.iter().all(|v| *v == 0.0), "{shape}: padded row {n} is {row:?}");
    }
}
