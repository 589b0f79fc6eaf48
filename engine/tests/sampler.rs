//! The sampler: distributions, every parameter alone, edges, and exactness of log-probabilities.

use std::sync::Arc;

use pleach_engine::{
    sampler::{SampledToken, SamplingParams, sample},
    step_batch::SampleRow,
};
use proptest::prelude::*;

fn row(params: SamplingParams) -> SampleRow {
    SampleRow {
        row: 0,
        params: Arc::new(params),
        sample_index: 0,
        history: Arc::default(),
        n_prompt: 0,
        banned: Vec::new(),
        forced: None,
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Counts of `n` draws of one seed.
fn draws(logits: &[f32], params: &SamplingParams, n: u64) -> Vec<u64> {
    let mut counts = vec![0; logits.len()];
    let mut row = row(params.clone());
    for sample_index in 0..n {
        row.sample_index = sample_index;
        counts[sample(logits, &row).token as usize] += 1;
    }
    counts
}

/// Pearson's chi-square of counts against weights; tokens of weight 0 must not occur.
fn chi_square(counts: &[u64], weights: &[f64]) -> f64 {
    let n = counts.iter().sum::<u64>() as f64;
    let total: f64 = weights.iter().sum();
    let mut chi = 0.0;
    for (&count, &weight) in counts.iter().zip(weights) {
        if weight == 0.0 {
            assert_eq!(count, 0, "{counts:?}");
        } else {
            let expected = n * weight / total;
            chi += (count as f64 - expected).powi(2) / expected;
        }
    }
    chi
}

const LOGITS: [f32; 8] = [0.5, 2.0, -1.0, 1.5, 0.0, 2.5, -3.0, 1.0];

/// For 7 degrees of freedom chance exceeds this once in 10,000 times; the seeds are fixed.
const CHI_SQUARE_MAX: f64 = 29.9;

fn weights(temperature: f32, keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let weight =
        |(i, &x): (usize, &f32)| if keep(i) { f64::from(x / temperature).exp() } else { 0.0 };
    LOGITS.iter().enumerate().map(weight).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let check = |params: SamplingParams, expected: Vec<f64>| {
        let chi = chi_square(&draws(&LOGITS, &params, 20_000), &expected);
        assert!(chi < CHI_SQUARE_MAX, "{params:?}: {chi}");
    };
    let base = SamplingParams { seed: 3, ..SamplingParams::default() };
    for temperature in [0.3, 1.0, 2.0] {
        check(SamplingParams { temperature, ..base.clone() }, weights(temperature, |_| true));
        // Ranks: 5, 1, 3, 7, 0, 4, 2, 6.
        check(
            SamplingParams { temperature, top_k: 3, ..base.clone() },
            weights(temperature, |i| [5, 1, 3].contains(&i)),
        );
    }
    check(SamplingParams { top_k: 8, ..base.clone() }, weights(1.0, |_| true));
    check(SamplingParams { top_k: 1000, ..base.clone() }, weights(1.0, |_| true));
    // Probabilities: 0.407 (5), 0.247 (1), 0.150 (3), 0.091 (7), 0.055 (0), 0.033 (4), 0.012 (2), 0.002 (6).
    check(SamplingParams { top_p: 0.5, ..base.clone() }, weights(1.0, |i| [5, 1].contains(&i)));
    check(SamplingParams { top_p: 0.7, ..base.clone() }, weights(1.0, |i| [5, 1, 3].contains(&i)));
    check(SamplingParams { top_p: 0.9999, ..base.clone() }, weights(1.0, |_| true));
    // Relative to the likeliest: 1, 0.61, 0.37, 0.22, 0.14, ...
    check(SamplingParams { min_p: 0.3, ..base.clone() }, weights(1.0, |i| [5, 1, 3].contains(&i)));
    check(
        SamplingParams { min_p: 0.3, top_k: 2, ..base.clone() },
        weights(1.0, |i| [5, 1].contains(&i)),
    );
    check(
        SamplingParams { min_p: 0.3, top_p: 0.99, ..base.clone() },
        weights(1.0, |i| [5, 1, 3].contains(&i)),
    );
    // top_p is of what top_k leaves: 0.506, 0.307, 0.186.
    check(
        SamplingParams { top_k: 3, top_p: 0.55, ..base.clone() },
        weights(1.0, |i| [5, 1].contains(&i)),
    );
    // min_p comes after the temperature: at 0.5 the ratios are 1, 0.37, 0.14.
    check(
        SamplingParams { temperature: 0.5, min_p: 0.3, ..base },
        weights(0.5, |i| [5, 1].contains(&i)),
    );
}

#[test]
fn a_large_vocabulary_is_drawn_from_evenly() {
    let logits = vec![1.0f32; 5000];
    for params in [
        SamplingParams::default(),
        SamplingParams { top_p: 0.999_999, ..SamplingParams::default() },
        SamplingParams { top_k: 4999, ..SamplingParams::default() },
    ] {
        let counts = draws(&logits, &params, 10_000);
        let quarters: Vec<u64> = counts.chunks(1250).map(|quarter| quarter.iter().sum()).collect();
        assert!(quarters.iter().all(|&n| (2300..2700).contains(&n)), "{params:?}: {quarters:?}");
    }
}

#[test]
fn settings_that_leave_one_token_are_greedy() {
    for params in [
        greedy(),
        SamplingParams { temperature: 1e-6, ..SamplingParams::default() },
        SamplingParams { top_k: 1, ..SamplingParams::default() },
        SamplingParams { top_p: 1e-9, ..SamplingParams::default() },
        SamplingParams { top_p: 1e-9, top_k: 5, ..SamplingParams::default() },
        SamplingParams { min_p: 1.0, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(5, 100.0)], ..SamplingParams::default() },
    ] {
        assert_eq!(draws(&LOGITS, &params, 500)[5], 500, "{params:?}");
    }
}

#[test]
fn ties_go_to_the_lower_token() {
    let logits = [1.0, 3.0, 3.0, 3.0];
    assert_eq!(sample(&logits, &row(greedy())).token, 1);
    let two = draws(&logits, &SamplingParams { top_k: 2, ..SamplingParams::default() }, 500);
    assert!(two[1] > 0 && two[2] > 0 && two[3] == 0, "{two:?}");
    let top = sample(&logits, &row(SamplingParams { logprobs: Some(3), ..greedy() })).top;
    assert_eq!(top.iter().map(|entry| entry.0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn bias_and_bans() {
    let with_bias = |logit_bias| row(SamplingParams { logit_bias, ..greedy() });
    assert_eq!(sample(&LOGITS, &with_bias(vec![(6, 100.0)])).token, 6);
    assert_eq!(sample(&LOGITS, &with_bias(vec![(5, -100.0)])).token, 1);
    assert_eq!(
        sample(&LOGITS, &with_bias(vec![(8, 100.0), (u32::MAX, 100.0)])).token,
        5,
        "outside the vocabulary"
    );
    let banned = |banned| SampleRow { banned, ..row(greedy()) };
    assert_eq!(sample(&LOGITS, &banned(vec![5, 1, 99])).token, 3);
    let biased_and_banned = SampleRow { banned: vec![6], ..with_bias(vec![(6, 100.0)]) };
    assert_eq!(sample(&LOGITS, &biased_and_banned).token, 5, "a ban holds against a bias");
    for params in [
        greedy(),
        SamplingParams::default(),
        SamplingParams { top_p: 0.5, ..SamplingParams::default() },
    ] {
        let all_banned = SampleRow { banned: (0..8).collect(), ..row(params) };
        assert_eq!(sample(&LOGITS, &all_banned), SampledToken::none());
    }
}

#[test]
fn penalties() {
    let check = |logits: [f32; 2], history: &[u32], n_prompt, params: SamplingParams, expected| {
        let row =
            SampleRow { history: Arc::new(history.to_vec()), n_prompt, ..row(params.clone()) };
        assert_eq!(
            sample(&logits, &row).token,
            expected,
            "{logits:?} after {history:?}: {params:?}"
        );
    };
    let repetition = SamplingParams { repetition_penalty: 2.0, ..greedy() };
    let frequency = SamplingParams { frequency_penalty: 0.3, ..greedy() };
    let presence = SamplingParams { presence_penalty: 0.3, ..greedy() };
    // Positive logits are divided, negative ones multiplied, once, for tokens of prompt and completion.
    check([2.0, 1.5], &[0], 1, repetition.clone(), 1);
    check([-1.0, -1.5], &[0], 0, repetition.clone(), 1);
    check([2.0, 0.9], &[0, 0, 0], 1, repetition, 0);
    // The other two look at the completion only; frequency counts.
    check([2.0, 1.5], &[0, 0], 1, frequency.clone(), 0);
    check([2.0, 1.5], &[0, 0], 0, frequency.clone(), 1);
    check([2.0, 1.5], &[0, 0], 2, frequency, 0);
    check([2.0, 1.8], &[0], 1, presence.clone(), 0);
    check([2.0, 1.8], &[0], 0, presence.clone(), 1);
    check([2.0, 1.5], &[0, 0, 0, 77], 0, presence, 0);
    // Negative penalties invite.
    check([2.0, 1.5], &[1], 0, SamplingParams { presence_penalty: -1.0, ..greedy() }, 1);
}

#[test]
fn logprobs_are_of_the_unmodified_logits_and_accurate() {
    let logits: Vec<f32> = (0..49_152u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 12) as f32 / 45_000.0 - 8.0)
        .collect();
    let exact_sum = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    let params = SamplingParams {
        logprobs: Some(20),
        logit_bias: vec![(7, 100.0)],
        seed: 5,
        ..SamplingParams::default()
    };
    let sampled = sample(&logits, &row(params));
    assert_eq!(sampled.token, 7);
    let exact = |token: u32| f64::from(logits[token as usize]) - exact_sum;
    assert!((f64::from(sampled.logprob) - exact(7)).abs() < 1e-6);
    assert_eq!(sampled.top.len(), 20);
    assert!(sampled.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    assert!(
        sampled
            .top
            .iter()
            .all(|&(token, logprob)| (f64::from(logprob) - exact(token)).abs() < 1e-6)
    );
    let none = sample(&LOGITS, &row(greedy()));
    assert_eq!((none.logprob, none.top), (0.0, Vec::new()), "not asked for");
    let all = sample(&LOGITS, &row(SamplingParams { logprobs: Some(50), ..greedy() }));
    assert_eq!(all.top.len(), 8, "more than the vocabulary");
}

#[test]
fn forced_tokens_are_scored() {
    let forced = |token| SampleRow {
        forced: Some(token),
        ..row(SamplingParams { logprobs: Some(1), ..greedy() })
    };
    let scored = sample(&LOGITS, &forced(6));
    let sum = LOGITS.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    assert_eq!((scored.token, scored.top[0].0), (6, 5));
    assert!((f64::from(scored.logprob) - (-3.0 - sum)).abs() < 1e-6);
    assert_eq!(sample(&LOGITS, &forced(8)), SampledToken::none());
}

#[test]
fn logits_that_are_not_numbers_choose_nothing() {
    for bad in [f32::NAN, f32::INFINITY] {
        for params in
            [greedy(), SamplingParams::default(), SamplingParams { logprobs: Some(2), ..greedy() }]
        {
            let mut logits = LOGITS;
            logits[2] = bad;
            assert_eq!(sample(&logits, &row(params)), SampledToken::none());
        }
    }
    assert_eq!(sample(&[], &row(greedy())), SampledToken::none());
    let mut masked = [f32::NEG_INFINITY; 8];
    masked[4] = -1.0;
    assert_eq!(draws(&masked, &SamplingParams::default(), 100)[4], 100);
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let cuts = (0.0f32..3.0, 0.0001f32..=1.0, 0u32..70, 0.0f32..=1.0);
    let others = (0.5f32..2.0, -2.0f32..2.0, any::<u64>(), proptest::option::of(0u32..200));
    (cuts, others).prop_map(
        |((temperature, top_p, top_k, min_p), (repetition, penalty, seed, logprobs))| {
            SamplingParams {
                temperature,
                top_p,
                top_k,
                min_p,
                repetition_penalty: repetition,
                frequency_penalty: penalty,
                presence_penalty: penalty / 2.0,
                logit_bias: vec![(3, penalty), (1000, 1.0)],
                seed,
                logprobs,
            }
        },
    )
}

proptest! {
    #[test]
    fn equal_arguments_give_equal_bits_and_never_a_banned_token(
        params in any_params(),
        logits in proptest::collection::vec(prop_oneof![9 => -60.0f32..60.0, 1 => Just(f32::NEG_INFINITY)], 1..300),
        history in proptest::collection::vec(0u32..310, 0..30),
        banned in proptest::collection::vec(0u32..310, 0..4),
        sample_index in any::<u64>(),
    ) {
        let n_prompt = history.len() / 2;
        let history = Arc::new(history);
        let row = SampleRow { sample_index, history, n_prompt, banned, ..row(params) };
        let first = sample(&logits, &row);
        let again = sample(&logits, &SampleRow { row: 17, ..row.clone() });
        prop_assert_eq!(&first, &again);
        if first.token == SampledToken::NO_TOKEN {
            let choices = (0u32..).zip(&logits).filter(|(token, x)| x.is_finite() && !row.banned.contains(token));
            prop_assert_eq!(choices.count(), 0);
        } else {
            prop_assert!(logits[first.token as usize].is_finite());
            prop_assert!(!row.banned.contains(&first.token));
        }
    }
}
