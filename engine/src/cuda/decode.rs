//! One value of a repacked weight, from the packed bytes alone: the definition that kernels are checked against.

use super::{
    repack::{CudaLayout, RepackedMatrix},
    tile::{Place, STRIPE_ROWS, TileLayout, UNIT_K},
};
use crate::quant::dequantize_row;

impl RepackedMatrix {
    /// Bytes of a stripe of 64 rows.
    pub fn stripe_bytes(&self) -> usize {
        self.bytes.len() / (self.n_out_padded / STRIPE_ROWS).max(1)
    }

    /// The value at row `n`, column `k`, padding included, from the packed bytes alone: the definition that kernels
    /// are checked against.
    ///
    /// # Panics
    /// If `n` or `k` is not below its padded number.
    pub fn value(&self, n: usize, k: usize) -> f32 {
        assert!(n < self.n_out_padded && k < self.n_in_padded, "[{n}, {k}] of {self:?}");
        let stripe = &self.bytes[n / STRIPE_ROWS * self.stripe_bytes()..][..self.stripe_bytes()];
        let row = n % STRIPE_ROWS;
        let tiles = match self.layout {
            CudaLayout::Tiles(tiles) => tiles,
            CudaLayout::Dense => {
                let bytes = self.format.block_bytes();
                let mut value = [0.0];
                dequantize_row(
                    self.format,
                    &stripe[(row * self.n_in_padded + k) * bytes..][..bytes],
                    &mut value,
                );
                return value[0];
            }
        };
        let codes = tiles.codes();
        let unit = &stripe[tiles.unit_offset(k / UNIT_K)..][..tiles.unit_bytes()];
        let half =
            |bytes: &[u8], at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let q = f32::from(
            i16::from(code_at(tiles, unit, row, k % UNIT_K))
                - i16::try_from(codes.offset).unwrap_or(0),
        );
        let meta = |which| tiles.meta_offset(row, which, k % UNIT_K / codes.group);
        if !codes.super_block {
            let product = q * half(unit, meta(0));
            return if codes.has_min { product + half(unit, meta(1)) } else { product };
        }
        let supers = &stripe[tiles.super_offset(k / UNIT_K)..][..tiles.super_bytes()];
        let product = q
            * (half(supers, tiles.super_scale_offset(row, 0))
                * f32::from(unit[meta(0)].cast_signed()));
        if codes.has_min {
            product - half(supers, tiles.super_scale_offset(row, 1)) * f32::from(unit[meta(1)])
        } else {
            product
        }
    }
}

/// The code of a row (0..64) and a k (0..64) of a unit.
fn code_at(tiles: TileLayout, unit: &[u8], row: usize, k: usize) -> u8 {
    let place = Place::new(row, k);
    let extra = tiles.extra_offset(place.block, place.lane);
    let field = |at: usize, shift: usize, mask: u32| {
        let word = u32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
        // At most four bits are left.
        (word >> shift & mask).to_le_bytes()[0]
    };
    let low =
        field(tiles.p4_offset(place.block, place.lane) + 4 * place.step, place.p4_shift(), 0x0f);
    let high = match tiles.codes().bits {
        5 => field(extra, place.p1_shift(), 1),
        6 => field(extra + 4 * place.p2_word(), place.p2_shift(), 3),
        8 => field(extra + 4 * place.step, place.p4_shift(), 0x0f),
        _ => 0,
    };
    low | high << 4
}
