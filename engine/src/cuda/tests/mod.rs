//! What needs no GPU: layout, fragments, the header that kernels share, and launches on a fake device.

use crate::{
    backend::MatrixSource,
    cuda::repack::{RepackedMatrix, repack},
    quant::BlockFormat,
};

mod fake_device;
mod fragments;
mod gpu;
mod header;
mod repacked;
mod step_graphs;

/// Formats with codes.
fn quantized() -> impl Iterator<Item = BlockFormat> {
    BlockFormat::ALL.into_iter().filter(|format| format.code_layout().is_some())
}

/// A small generator; the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// In -1..1.
    fn signed(&mut self) -> f32 {
        let bits = u16::from_le_bytes([self.byte(), self.byte()]).cast_signed();
        f32::from(bits) / 32_768.0
    }
}

/// Rows of random blocks with scales near `scale`, some of them zero.
fn random_rows(
    format: BlockFormat,
    n_out: usize,
    n_in: usize,
    scale: f32,
    random: &mut Random,
) -> Vec<Vec<u8>> {
    // Where the f16 numbers of a block are.
    let halves: &[usize] = match format {
        BlockFormat::F16 | BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
        BlockFormat::F32 | BlockFormat::Bf16 => &[],
    };
    let row_bytes = format.row_bytes(n_in).unwrap();
    let mut rows = Vec::new();
    for _ in 0..n_out {
        let mut row: Vec<u8> = (0..row_bytes).map(|_| random.byte()).collect();
        for block in row.chunks_exact_mut(format.block_bytes()) {
            if format == BlockFormat::F32 {
                block.copy_from_slice(&random.signed().to_le_bytes());
            } else if format == BlockFormat::Bf16 {
                block.copy_from_slice(&half::bf16::from_f32(random.signed()).to_le_bytes());
            }
            for &at in halves {
                let value = if random.byte() < 8 { 0.0 } else { random.signed() * scale };
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
        }
        rows.push(row);
    }
    rows
}

fn repack_rows(format: BlockFormat, rows: &[Vec<u8>], n_in: usize) -> RepackedMatrix {
    let row = |at: usize| rows[at].as_slice();
    repack(&MatrixSource { name: "test.weight", format, n_out: rows.len(), n_in, row: &row })
        .unwrap()
}
