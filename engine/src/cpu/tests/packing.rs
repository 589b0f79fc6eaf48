//! Packed tiles give back the values of the file, bit for bit.

use crate::{
    cpu::{
        matmul_f32::DequantizeTile,
        memory::Arena,
        packed::{Dense, PackedMatrix},
        simd::LANES,
    },
    quant::{BlockFormat, dequantize_row},
};

use super::{Guarded, Random, UNTOUCHED, bits, isas, random::case_seed, random_rows};

/// Values of rows that are no multiple of sixteen, and widths of one and of several blocks.
fn shapes(format: BlockFormat) -> Vec<(usize, usize)> {
    let block = format.block_values().max(32);
    vec![(1, block), (17, 3 * block), (33, 2 * block)]
}

#[test]
fn row_values_are_those_of_the_file() {
    let mut random = Random::new(case_seed(0));
    for format in BlockFormat::ALL {
        for (n_out, n_in) in shapes(format) {
            let rows = random_rows(&mut random, format, n_out, n_in, false);
            let matrix = PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| &rows[n]);
            for (n, row) in rows.iter().enumerate() {
                let mut expected = vec![UNTOUCHED; n_in];
                dequantize_row(format, row, &mut expected);
                let mut found = vec![UNTOUCHED; n_in];
                matrix.row_values(n, &mut found);
                assert_eq!(
                    bits(&found),
                    bits(&expected),
                    "{format} row {n} of {n_out}, width {n_in}"
                );
            }
        }
    }
}

#[test]
fn dequantized_tiles_are_those_of_the_file() {
    let mut random = Random::new(case_seed(1));
    for isa in isas() {
        for format in BlockFormat::ALL.into_iter().filter(|format| !format.is_float()) {
            for (n_out, n_in) in shapes(format) {
                let rows = random_rows(&mut random, format, n_out, n_in, false);
                let matrix =
                    PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| &rows[n]);
                for tile in 0..matrix.n_tiles() {
                    let mut out = Guarded::new(n_in * LANES);
                    isa.run(DequantizeTile { matrix: &matrix, tile, out: out.values() });
                    let out = out.checked("dequantized tile");
                    for lane in 0..LANES {
                        let found: Vec<f32> = out[lane..].iter().step_by(LANES).copied().collect();
                        let mut expected = vec![0.0; n_in];
                        if let Some(row) = rows.get(tile * LANES + lane) {
                            dequantize_row(format, row, &mut expected);
                            assert_eq!(
                                bits(&found),
                                bits(&expected),
                                "{isa} {format} tile {tile} lane {lane}"
                            );
                        } else {
                            assert_eq!(
                                found, expected,
                                "{isa} {format} tile {tile}: padding is zero"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn dense_matrices_are_padded_with_zeros() {
    let mut random = Random::new(case_seed(2));
    for dense in [Dense::F32, Dense::F16, Dense::Bf16] {
        let values: Vec<f32> = random
            .units(5 * 17)
            .into_iter()
            .map(|v| half::bf16::from_f32(v).to_f32())
            .map(round_f16)
            .collect();
        let matrix = PackedMatrix::from_f32(dense, 5, 17, 4, &values, &mut Arena::new(0));
        assert_eq!((matrix.n_out, matrix.n_in, matrix.n_tiles()), (5, 20, 1));
        for (n, row) in values.chunks_exact(17).enumerate() {
            let mut found = vec![UNTOUCHED; 20];
            matrix.row_values(n, &mut found);
            assert_eq!(&found[..17], row, "{dense:?}");
            assert_eq!(&found[17..], [0.0; 3], "{dense:?}");
        }
    }
}

fn round_f16(value: f32) -> f32 {
    half::f16::from_f32(value).to_f32()
}
