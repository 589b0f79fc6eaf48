//! Repacking loses nothing: every code has one place, and values from packed bytes are the file's, bit for bit.

use std::collections::HashSet;

use super::{Random, quantized, random_rows, repack_rows};
use crate::{
    backend::MatrixSource,
    cuda::{
        repack::{CudaLayout, RepackError, plan, repack},
        tile::{BLOCKS, LANES, Place, STRIPE_ROWS, TileLayout, UNIT_K},
    },
    quant::{BlockFormat, dequantize_row},
};

#[test]
fn every_code_of_a_unit_has_bits_of_its_own() {
    let (mut p4, mut p1, mut p2) = (HashSet::new(), HashSet::new(), HashSet::new());
    for row in 0..STRIPE_ROWS {
        for k in 0..UNIT_K {
            let p = Place::new(row, k);
            assert!(
                p.block < BLOCKS && p.lane < LANES && p.step < 4 && p.reg < 4 && p.element < 2,
                "{p:?}"
            );
            assert!(
                p.p4_shift() <= 28 && p.p1_shift() <= 31 && p.p2_shift() <= 30 && p.p2_word() < 2,
                "{p:?}"
            );
            // Rows as in the A fragment of mma.m16n8k16 (table of the PTX manual); a lane's k are consecutive.
            let fragment_row = p.lane / 4 + if p.reg % 2 == 1 { 8 } else { 0 };
            let lane_k = p.step * 4 + p.element + if p.reg >= 2 { 2 } else { 0 };
            assert_eq!((p.block * 16 + fragment_row, p.lane % 4 * 16 + lane_k), (row, k));
            p4.insert((p.block, p.lane, p.step, p.p4_shift()));
            p1.insert((p.block, p.lane, p.p1_shift()));
            p2.insert((p.block, p.lane, p.p2_word(), p.p2_shift()));
        }
    }
    assert_eq!((p4.len(), p1.len(), p2.len()), (4096, 4096, 4096));
}

#[test]
fn every_byte_of_a_stripe_belongs_to_one_thing() {
    for format in quantized() {
        let codes = format.code_layout().unwrap();
        let tiles = TileLayout::new(codes);
        let n_units = 8;
        let mut owners = vec![0_u8; tiles.stripe_bytes(n_units)];
        let mut own =
            |at: usize, bytes: usize| owners[at..at + bytes].iter_mut().for_each(|n| *n += 1);
        let n_mins = if codes.has_min { 2 } else { 1 };
        for unit in 0..n_units {
            let begin = tiles.unit_offset(unit);
            assert!(
                begin.is_multiple_of(128) && tiles.super_offset(unit).is_multiple_of(128),
                "{format}"
            );
            for (block, lane) in
                (0..BLOCKS).flat_map(|block| (0..LANES).map(move |lane| (block, lane)))
            {
                own(begin + tiles.p4_offset(block, lane), 16);
                own(begin + tiles.extra_offset(block, lane), tiles.extra_lane_bytes());
            }
            for (row, which) in
                (0..STRIPE_ROWS).flat_map(|row| (0..n_mins).map(move |which| (row, which)))
            {
                for group in 0..tiles.unit_groups() {
                    own(
                        begin + tiles.meta_offset(row, which, group),
                        if codes.super_block { 1 } else { 2 },
                    );
                }
                if codes.super_block && unit % 4 == 0 {
                    own(tiles.super_offset(unit) + tiles.super_scale_offset(row, which), 2);
                }
            }
        }
        assert!(owners.iter().all(|&n| n == 1), "{format}");
    }
}

/// Bits of a weight on the device, as the design states them.
#[test]
fn sizes_are_those_of_the_design() {
    for (format, bits) in [
        (BlockFormat::Q4_0, 4.5),
        (BlockFormat::Q4_1, 5.0),
        (BlockFormat::Q5_0, 5.5),
        (BlockFormat::Q5_1, 6.0),
        (BlockFormat::Q8_0, 8.5),
        (BlockFormat::Q2K, 5.125),
        (BlockFormat::Q3K, 4.5625),
        (BlockFormat::Q4K, 4.625),
        (BlockFormat::Q5K, 5.625),
        (BlockFormat::Q6K, 6.5625),
        (BlockFormat::F16, 16.0),
    ] {
        let plan = plan("w", format, 128, 1024).unwrap();
        assert!(
            (plan.bytes as f64 * 8.0 / (128.0 * 1024.0) - bits).abs() < 1e-12,
            "{format}: {} bytes",
            plan.bytes
        );
    }
}

#[test]
fn values_are_the_files_bit_for_bit() {
    let mut random = Random(7);
    for format in BlockFormat::ALL {
        for n_in in [32, 64, 96, 256, 512, 576] {
            if format.row_bytes(n_in).is_none() {
                continue;
            }
            for n_out in [1, 16, 63, 64, 65] {
                check_values(format, n_out, n_in, &mut random);
            }
        }
    }
}

/// Rows enough for several threads.
#[test]
fn many_stripes_are_packed_as_few_are() {
    check_values(BlockFormat::Q4_1, 64 * 37 + 5, 64, &mut Random(11));
    check_values(BlockFormat::Q6K, 64 * 9, 256, &mut Random(12));
    check_values(BlockFormat::Bf16, 64 * 9 + 1, 7, &mut Random(13));
}

fn check_values(format: BlockFormat, n_out: usize, n_in: usize, random: &mut Random) {
    let rows = random_rows(format, n_out, n_in, 0.1, random);
    let packed = repack_rows(format, &rows, n_in);
    assert_eq!(
        (packed.n_out_padded, packed.n_in_padded),
        (n_out.next_multiple_of(64), n_in.next_multiple_of(64))
    );
    assert_eq!(packed.bytes.len(), plan("w", format, n_out, n_in).unwrap().bytes);
    let mut expected = vec![0.0; n_in];
    for n in 0..packed.n_out_padded {
        let Some(row) = rows.get(n) else {
            // Padding may be a negative zero: (0 - 8) * 0.
            assert!(
                (0..packed.n_in_padded).all(|k| packed.value(n, k) == 0.0),
                "{format}: padded row {n}"
            );
            continue;
        };
        dequantize_row(format, row, &mut expected);
        for (k, expected) in expected.iter().enumerate() {
            let value = packed.value(n, k);
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{format} [{n}, {k}] of [{n_out}, {n_in}]"
            );
        }
        assert!(
            (n_in..packed.n_in_padded).all(|k| packed.value(n, k) == 0.0),
            "{format}: padding of row {n}"
        );
    }
}

#[test]
fn extreme_scales_survive() {
    // Subnormal, largest, negative zero; the codes are 0, 1, ..., 15.
    for bits in [0x0001_u16, 0x7bff, 0x8000, 0xfbff] {
        let mut row: Vec<u8> = bits.to_le_bytes().to_vec();
        row.extend((0..16_u8).map(|i| i | (15 - i) << 4));
        let rows = vec![row];
        let packed = repack_rows(BlockFormat::Q4_0, &rows, 32);
        let mut expected = [0.0; 32];
        dequantize_row(BlockFormat::Q4_0, &rows[0], &mut expected);
        for (k, expected) in expected.into_iter().enumerate() {
            assert_eq!(packed.value(0, k).to_bits(), expected.to_bits(), "{bits:#x} [{k}]");
        }
    }
}

#[test]
fn what_cannot_be_repacked_is_refused_by_name() {
    let refused =
        |format, n_out, n_in| plan("blk.0.attn_q.weight", format, n_out, n_in).unwrap_err();
    let not_whole = refused(BlockFormat::Q4K, 64, 320);
    assert_eq!(
        not_whole.to_string(),
        "blk.0.attn_q.weight: 320 values are not a whole number of Q4_K blocks"
    );
    assert!(matches!(
        refused(BlockFormat::F32, 0, 64),
        RepackError::Empty { n_out: 0, n_in: 64, .. }
    ));
    for (n_out, n_in) in
        [(usize::MAX, 64), (64, usize::MAX), (1 << 33, 64), (usize::MAX - 3, usize::MAX - 3)]
    {
        assert!(
            matches!(refused(BlockFormat::F32, n_out, n_in), RepackError::TooLarge { .. }),
            "[{n_out}, {n_in}]"
        );
    }

    let short = [0_u8; 35];
    let row = |_| &short[..];
    let source =
        MatrixSource { name: "w", format: BlockFormat::Q4_0, n_out: 2, n_in: 64, row: &row };
    let error = repack(&source).unwrap_err();
    assert_eq!(
        error,
        RepackError::RowBytes { name: "w".to_owned(), row: 0, found: 35, expected: 36 }
    );
}

#[test]
fn dense_rows_keep_their_type() {
    let mut random = Random(5);
    for format in [BlockFormat::F32, BlockFormat::F16, BlockFormat::Bf16] {
        let rows = random_rows(format, 3, 70, 1.0, &mut random);
        let packed = repack_rows(format, &rows, 70);
        assert_eq!(packed.layout, CudaLayout::Dense);
        let row_bytes = 128 * format.block_bytes();
        for (n, row) in rows.iter().enumerate() {
            assert_eq!(packed.bytes[n * row_bytes..][..row.len()], row[..], "{format} row {n}");
        }
        assert_eq!(packed.bytes.len(), 64 * row_bytes);
    }
}
