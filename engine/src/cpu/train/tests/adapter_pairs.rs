//! The adapter's factors and gradients in bf16: against plain sums in f64 over rounded values.

use std::ops::Range;

use half::bf16;

use crate::{
    cpu::{
        Isa,
        simd::LANES,
        tests::{Guarded, Random, assert_close, bits, is_untouched, random::case_seed},
        threads::Parts,
        train::{
            lora::{Factor, GRADIENT_COLUMNS, GradientPanel, gradient_values, padded},
            lora_bf16::{ByTwos, PackPairs, PairSequence, ShrinkPairs, TurnPairs},
            product::{Rows, Target},
            product_bf16::PairRows,
        },
    },
    reference::matmul::{matmul, matmul_magnitude},
};

use super::{
    pair_cases::{Runner, pairs_of_rows, round_rows, rounded, turned},
    products::check_gradient,
};

/// Share of `Σ |a b|` by which a sum of a few hundred terms in one f32 chain may differ.
const TOLERANCE: f64 = 4e-6;
/// What must be overwritten.
const STALE: u32 = 0x7fc1_7fc1;

fn runners() -> Vec<Runner> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.lacks_for_bf16().is_none());
    isas.map(Runner::Of).chain([Runner::Emulated]).collect()
}

fn bits_of(value: f32) -> u32 {
    u32::from(bf16::from_f32(value).to_bits())
}

#[test]
fn factors_are_packed_in_pairs_of_rows_or_of_columns() {
    let mut random = Random::new(case_seed(240));
    for runner in runners() {
        for (n_rows, width) in [(1_usize, 16_usize), (3, 40), (8, 32), (16, 100), (33, 5), (20, 17)]
        {
            let values = random.units(n_rows * width);
            let value = |row: usize, column: usize| {
                let is_there = row < n_rows && column < width;
                if is_there { bits_of(values[row * width + column]) } else { 0 }
            };
            let what = format!("{runner} [{n_rows}, {width}]");

            // Rows 2 j and 2 j + 1, one row of pairs more than there are.
            let (stride, n_pairs) = (width.next_multiple_of(LANES) + LANES, n_rows / 2 + 1);
            let mut found = vec![STALE; n_pairs * stride];
            let to = Parts::new(&mut found);
            for pairs in [1..n_pairs, 0..1] {
                runner.run(PackPairs { from: &values, width, pairs, to: &to, stride });
            }
            for (index, found) in found.iter().enumerate() {
                let (j, c) = (index / stride, index % stride);
                assert_eq!(*found, value(2 * j, c) | value(2 * j + 1, c) << 16, "{what}: {j}, {c}");
            }

            // Columns 2 j and 2 j + 1.
            let stride = n_rows.next_multiple_of(LANES);
            let mut found = vec![STALE; width.div_ceil(2) * stride];
            let to = Parts::new(&mut found);
            for block in 0..stride / LANES {
                for columns in [0..width.min(LANES), width.min(LANES)..width] {
                    runner.run(TurnPairs { from: &values, width, columns, block, to: &to, stride });
                }
            }
            for (index, found) in found.iter().enumerate() {
                let (j, r) = (index / stride, index % stride);
                assert_eq!(*found, value(r, 2 * j) | value(r, 2 * j + 1) << 16, "{what}: {j}, {r}");
            }
        }
    }
}

#[test]
fn first_halves_are_scaled_sums_and_come_rounded_too() {
    let mut random = Random::new(case_seed(241));
    for runner in runners() {
        for (n_rows, n_in, rank) in [(1, 32_usize, 1), (5, 48, 16), (50, 33, 3), (37, 160, 20)] {
            let (narrow, width) = (padded(rank), n_in.next_multiple_of(LANES));
            let (x, lora_scale) = (random.units(n_rows * width), 0.75);
            // What is beyond the terms is finite, and multiplied by zero at most.
            let mut factor = vec![0.0; n_in.next_multiple_of(2) * narrow];
            for row in factor.chunks_exact_mut(narrow).take(n_in) {
                row[..rank].copy_from_slice(&random.units(rank));
            }
            let (pairs, factor_pairs) =
                (round_rows(runner, &x, width), pairs_of_rows(&factor, narrow));
            let (stride, rounded_stride) = (narrow + LANES, narrow / 2 + 3);
            let mut out = Guarded::new(n_rows * stride);
            let mut halves = vec![STALE; n_rows * rounded_stride];
            let (parts, rounded_parts) = (Parts::new(out.values()), Parts::new(&mut halves));
            let middle = n_rows / 3;
            for rows in [0..middle, middle..n_rows] {
                runner.run(ShrinkPairs {
                    rows,
                    n_in,
                    x: PairRows { pairs: &pairs, stride: width / 2 },
                    factor: PairRows { pairs: &factor_pairs, stride: narrow },
                    lora_scale,
                    out: Target { parts: &parts, start: 0, stride },
                    rounded: &rounded_parts,
                    rounded_stride,
                });
            }
            let what = format!("{runner} {n_rows} {n_in} {rank}");
            let (mut found, mut terms) = (Vec::new(), Vec::new());
            for (row, (out, halves)) in out
                .checked(&what)
                .chunks_exact(stride)
                .zip(halves.chunks(rounded_stride))
                .enumerate()
            {
                let (values, rest) = out.split_at(narrow);
                assert!(rest.iter().copied().all(is_untouched), "{what}");
                assert!(values[rank..].iter().all(|value| *value == 0.0), "{what}");
                for (pair, two) in halves.iter().zip(values.chunks(2)) {
                    assert_eq!(*pair, bits_of(two[0]) | bits_of(two[1]) << 16, "{what}");
                }
                assert_eq!(halves[narrow / 2..], [STALE; 3], "{what}");
                found.extend_from_slice(values);
                terms.extend(rounded(&x[row * width..][..n_in]));
            }
            let factor = turned(&rounded(&factor[..n_in * narrow]), narrow);
            let scaled = |values: Vec<f64>| -> Vec<f64> {
                values.iter().map(|value| value * f64::from(lora_scale)).collect()
            };
            let expected = scaled(matmul(&factor, &terms, n_in));
            let magnitude: Vec<f64> = scaled(matmul_magnitude(&factor, &terms, n_in))
                .iter()
                .map(|value| value + 1e-9)
                .collect();
            assert_close(&what, &found, &expected, &magnitude, TOLERANCE);
        }
    }
}

/// Sequences of odd and even lengths, one of a single row, one of more than are taken at a time.
const SEQUENCES: [Range<usize>; 4] = [0..7, 7..8, 8..16, 16..149];

#[test]
fn gradients_are_sums_over_pairs_of_rows_of_one_sequence() {
    let mut random = Random::new(case_seed(242));
    for runner in runners() {
        for (factor, n_features, rank) in
            [(Factor::A, 40, 3), (Factor::B, 152, 16), (Factor::B, 33, 29)]
        {
            let (n_rows, stride, narrow) = (SEQUENCES[3].end, 160, padded(rank));
            let mut v = vec![0.0; n_rows * narrow];
            for row in v.chunks_exact_mut(narrow) {
                row[..rank].copy_from_slice(&random.units(rank));
            }
            let x = random.units(n_rows * stride);
            let initial = random.units(rank * n_features);
            // Of some sequences, whose first row becomes row 0.
            let add = |sequences: &[Range<usize>], gradient: &mut Vec<f32>| {
                let first = sequences[0].start;
                let own: Vec<_> =
                    sequences.iter().map(|s| s.start - first..s.end - first).collect();
                let n_rows = own.last().unwrap().end;
                let (v, x) = (&v[first * narrow..], &x[first * stride..]);
                let mut by_twos = vec![STALE; n_rows * narrow];
                let to = Parts::new(&mut by_twos);
                for sequence in own.iter().cloned() {
                    let rows = Rows::new(v, narrow);
                    runner.run(PairSequence { sequence, rows, width: narrow, to: &to });
                }
                let pairs = PairRows { pairs: &by_twos, stride: narrow };
                let parts = Parts::new(gradient);
                for start in (0..n_features).step_by(GRADIENT_COLUMNS) {
                    runner.run(GradientPanel {
                        factor,
                        rank,
                        n_features,
                        columns: start..n_features.min(start + GRADIENT_COLUMNS),
                        n_rows,
                        v: ByTwos { pairs, sequences: &own },
                        x: Rows::new(x, stride),
                        gradient: &parts,
                        scratch: &mut vec![f32::NAN; gradient_values(rank)],
                    });
                }
            };
            let what = format!("{runner} {factor:?} {n_features} {rank}");
            let mut found = initial.clone();
            add(&SEQUENCES, &mut found);
            // One after the other they come to the same bits.
            let mut one_by_one = initial.clone();
            for sequence in &SEQUENCES {
                add(std::slice::from_ref(sequence), &mut one_by_one);
            }
            assert_eq!(bits(&found), bits(&one_by_one), "{what}");

            let columns: Vec<f32> =
                x.chunks_exact(stride).flat_map(|row| row[..n_features].to_vec()).collect();
            let of_rank: Vec<f32> =
                v.chunks_exact(narrow).flat_map(|row| row[..rank].to_vec()).collect();
            let (v, x) = (turned(&rounded(&of_rank), rank), turned(&rounded(&columns), n_features));
            check_gradient(&what, factor, (v, x), n_rows, &initial, &found);
        }
    }
}
