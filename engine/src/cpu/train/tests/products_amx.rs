//! Products of bf16 by tiles: those of the processor, where it has them, and everywhere the same strips on tiles in plain
//! Rust. Both have the bits of the definition's order.
#![expect(unsafe_code, reason = "a configuration is looked at as the processor does")]

use std::thread;

use half::bf16;

use crate::{
    cpu::{
        Isa,
        simd::{BLOCK_ROWS, Strip, StripShape, TileConfig},
        tests::{Random, bits, random::case_seed},
        train::product::{Size, Sum},
    },
    reference::matmul::tile_sum,
};

use super::pair_cases::{ProductCase, Runner, check_linears};

fn runners() -> Vec<Runner> {
    let mut runners = vec![Runner::Emulated];
    if Isa::Avx512Amx.is_available() {
        runners.push(Runner::Of(Isa::Avx512Amx));
    } else {
        eprintln!("skipped: no {} on this processor, only emulated tiles", Isa::Avx512Amx);
    }
    runners
}

const SUMS: [Sum; 3] = [Sum::New, Sum::GoesOn, Sum::Added];

/// Every remainder of rows and terms: none, one, half a block or step, one less than a whole one.
const SIZES: [(usize, usize, usize); 10] = [
    (1, 16, 2),
    (2, 32, 30),
    (3, 48, 34),
    (16, 32, 32),
    (17, 16, 48),
    (31, 32, 64),
    (32, 32, 96),
    (33, 80, 62),
    (65, 32, 160),
    (161, 48, 544),
];

/// From a start and the terms of both factors to their sum.
type Order = fn(f32, &[f32], &[f32]) -> f32;

/// Orders in which somebody might add up; a difference from the first names the one that was found.
const ORDERS: [(&str, Order); 3] = [
    ("as the manual defines it", tile_sum),
    ("in one chain of terms", |start, a, b| a.iter().zip(b).fold(start, |sum, (a, b)| sum + a * b)),
    ("in one chain of pairs, the second of a pair first", |start, a, b| {
        let pairs = a.chunks(2).zip(b.chunks(2));
        pairs.fold(start, |sum, (a, b)| (sum + a[1] * b[1]) + a[0] * b[0])
    }),
];

/// An element, term by term.
fn added_up(order: Order, case: &ProductCase, (row, column): (usize, usize), sum: Sum) -> u32 {
    let (Size { n, k, .. }, width) = (case.size, case.a.len() / case.size.m);
    let round = |value: &f32| bf16::from_f32(*value).to_f32();
    let a: Vec<f32> = case.a[row * width..][..k].iter().map(round).collect();
    let p: Vec<f32> = case.p[column..].iter().step_by(n).map(round).collect();
    let initial = case.initial[row * n + column];
    let value = match sum {
        Sum::New => order(0.0, &a, &p),
        Sum::GoesOn => order(initial, &a, &p),
        Sum::Added => initial + order(0.0, &a, &p),
    };
    value.to_bits()
}

#[test]
fn products_have_the_bits_of_the_definition_and_rows_know_nothing_of_each_other() {
    let mut random = Random::new(case_seed(230));
    for (m, n, k) in SIZES {
        let case = ProductCase::new(&mut random, m, n, k);
        for (runner, sum) in runners().into_iter().flat_map(|r| SUMS.map(|sum| (r, sum))) {
            let found = case.checked(runner, sum);
            let is_so = |order| {
                let equal = |(i, x): (usize, &f32)| {
                    added_up(order, &case, (i / n, i % n), sum) == x.to_bits()
                };
                found.iter().enumerate().all(equal)
            };
            let names = ORDERS.into_iter().filter(|(_, order)| is_so(*order)).map(|(name, _)| name);
            let names: Vec<_> = names.collect();
            let what = format!("{runner} [{m}, {n}], {k} terms, {sum:?}");
            assert!(names.contains(&ORDERS[0].0), "{what}: adds up {names:?}, or otherwise");
        }
    }
}

#[test]
fn linears_of_every_format_in_both_directions() {
    let mut random = Random::new(case_seed(231));
    for runner in runners() {
        check_linears(&mut random, runner);
    }
}

#[test]
fn threads_have_tiles_of_their_own() {
    let mut random = Random::new(case_seed(232));
    let cases: Vec<_> =
        SIZES.iter().map(|&(m, n, k)| ProductCase::new(&mut random, m, n, k)).collect();
    for runner in runners() {
        let run = |case: &ProductCase| bits(&case.run(runner, 0..case.size.m, Sum::GoesOn));
        let alone: Vec<_> = cases.iter().map(run).collect();
        thread::scope(|scope| {
            for first in 0..4 {
                let (cases, alone) = (&cases, &alone);
                scope.spawn(move || {
                    for turn in 0..10 * cases.len() {
                        let index = (first + turn) % cases.len();
                        assert!(run(&cases[index]) == alone[index], "{runner}: case {index}");
                    }
                });
            }
        });
    }
}

#[test]
fn the_processor_reads_where_tiles_are_cut() {
    let (a, b, mut c, mut spare) = ([0; 1], [0; 1], [0.0; 1], [0.0; BLOCK_ROWS]);
    let shape =
        StripShape { rows: 29, n_blocks: 1, columns: 16, pairs: 7, n_steps: 1, goes_on: false };
    let strip = Strip::new(
        shape,
        (a.as_ptr(), 100),
        (b.as_ptr(), 16, 1600),
        (c.as_mut_ptr(), 50),
        &mut spare,
    );
    // SAFETY: `repr(C)` without padding, as the size says.
    let config = unsafe { std::mem::transmute::<TileConfig, [u8; 64]>(strip.config) };
    assert_eq!(config[..16], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Eight columns of f32; seven pairs; little-endian.
    assert_eq!(config[16..32], [32, 0, 32, 0, 32, 0, 32, 0, 28, 0, 28, 0, 32, 0, 32, 0]);
    assert_eq!(config[32..48], [0; 16]);
    assert_eq!(config[48..56], [15, 15, 14, 14, 15, 14, 7, 7]);
    assert_eq!(config[56..], [0; 8]);
    // The lower rows begin fifteen below, the right columns eight beside.
    let distance = |from: *const u32, to: *const u32| to.addr() - from.addr();
    assert_eq!(distance(strip.a[0], strip.a[1]), 15 * 100 * 4);
    assert_eq!(distance(strip.b[0], strip.b[1]), 8 * 4);
    assert_eq!(distance(strip.c[0].cast(), strip.c[1].cast()), 15 * 50 * 4);
    assert_eq!((strip.c_right, strip.a_stride, strip.b_stride), (32, 400, 64));
}
