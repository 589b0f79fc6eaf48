//! Products of bf16 by vectors: against plain sums in f64 over rounded factors, bit by bit against plain Rust, and
//! linears of every block format in both directions.

use half::bf16;

use crate::cpu::{
    Isa,
    tests::{Random, bits, random::case_seed},
    train::product::Sum,
};

use super::pair_cases::{ProductCase, Runner, check_linears, round_rows};

/// Instruction sets of this processor with products of bf16 by vectors.
fn runners() -> Vec<Runner> {
    let by_vectors = Isa::ALL.into_iter().filter(|isa| *isa != Isa::Avx512Amx);
    let isas: Vec<_> = by_vectors.filter(|isa| isa.lacks_for_bf16().is_none()).collect();
    if isas.len() == 1 {
        eprintln!("no AVX512-BF16 here: only plain Rust is tested");
    }
    isas.into_iter().map(Runner::Of).collect()
}

#[test]
fn rows_are_rounded_to_the_nearest_and_ties_to_even() {
    let mut random = Random::new(case_seed(220));
    let special = [
        0.0,
        -0.0,
        1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        // Halfway between two: to the even one, below and above.
        f32::from_bits(0x3f80_8000),
        f32::from_bits(0x3f81_8000),
        f32::from_bits(0xbf80_8000),
        f32::from_bits(0x3f80_8001),
        f32::from_bits(0x3f80_7fff),
    ];
    for runner in runners() {
        for width in [16, 48, 576] {
            let mut values = random.spiky(3 * width);
            values[..special.len()].copy_from_slice(&special);
            let pairs = round_rows(runner, &values, width);
            for (index, value) in values.iter().enumerate() {
                let found = pairs[index / 2] >> (index % 2 * 16) & 0xffff;
                let expected = bf16::from_f32(*value).to_bits();
                assert_eq!(found, u32::from(expected), "{runner}: {value} at {index}");
            }
        }
        let nan = round_rows(runner, &[f32::NAN; 16], 16)[0];
        assert!(f32::from_bits(nan << 16).is_nan() && f32::from_bits(nan & 0xffff_0000).is_nan());
    }
}

#[test]
fn products_of_all_sizes_equal_the_reference_and_rows_know_nothing_of_each_other() {
    let mut random = Random::new(case_seed(221));
    for (m, n, k) in [
        (1usize, 16usize, 2usize),
        (3, 48, 8),
        (12, 32, 0),
        (13, 16, 64),
        (25, 80, 34),
        (29, 32, 300),
    ] {
        let case = ProductCase::new(&mut random, m, n, k);
        for sum in [Sum::New, Sum::GoesOn, Sum::Added] {
            let of_runners = runners().into_iter().map(|runner| bits(&case.checked(runner, sum)));
            let of_runners: Vec<_> = of_runners.collect();
            assert!(of_runners.windows(2).all(|two| two[0] == two[1]), "{m} {n} {k} {sum:?}");
        }
    }
}

#[test]
fn linears_of_every_format_in_both_directions() {
    let mut random = Random::new(case_seed(222));
    for runner in runners() {
        check_linears(&mut random, runner);
    }
}
