use std::sync::Arc;

use crate::{
    cuda::ops::{SampleGreedyParams, SampleResult, SampleSpec, TOP_MAX},
    sampler::{SampledToken, SamplingParams, sample},
    step_batch::SampleRow,
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, LOGPROB},
    header, to_u32,
};

/// Ties, NaN, infinities, forced tokens inside and outside the vocabulary, up to the 20 likeliest; against the CPU's sampler.
pub(super) fn sample_greedy(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let mut vocabs = vec![1, 33, 1000, 4099];
    if sizes == Sizes::Full {
        vocabs.extend([49_152, 128_256]);
    }
    vocabs.into_iter().map(|vocab| one(bench, vocab)).collect()
}

/// One row of logits, and what is asked of it.
struct Case {
    logits: Vec<f32>,
    forced: Option<u32>,
    logprobs: Option<u32>,
    skip: bool,
}

fn cases(bench: &mut Bench<'_>, vocab: usize) -> Vec<Case> {
    let mut row = |edit: &dyn Fn(&mut Vec<f32>), forced, logprobs| {
        // Few different values: ties everywhere.
        let mut logits: Vec<f32> =
            bench.random.values(vocab, 60.0).iter().map(|v| v.round() / 4.0).collect();
        edit(&mut logits);
        Case { logits, forced, logprobs, skip: false }
    };
    let last = vocab - 1;
    let plain = |_: &mut Vec<f32>| {};
    let skipped = Case { skip: true, ..row(&plain, None, None) };
    vec![
        row(&plain, None, None),
        row(&plain, None, Some(0)),
        row(&plain, None, Some(20)),
        skipped,
        row(&plain, Some(to_u32(last / 2)), None),
        row(&plain, Some(to_u32(last)), Some(3)),
        row(&plain, Some(to_u32(vocab)), Some(3)),
        row(&|logits| logits[last] = f32::NAN, None, Some(5)),
        row(&|logits| logits[last / 2] = f32::INFINITY, None, None),
        row(&|logits| logits.fill(f32::NEG_INFINITY), None, Some(1)),
        row(&|logits| logits[..last].fill(f32::NEG_INFINITY), None, Some(2)),
        row(&|logits| logits.fill(1.5), None, Some(20)),
        row(&|logits| logits[last] = 3e38, None, Some(2)),
    ]
}

fn one(bench: &mut Bench<'_>, vocab: usize) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let cases = cases(bench, vocab);
    let n_rows = cases.len();
    let mut compare = Comparison::new("sample_greedy", format!("{n_rows} rows of {vocab}"));
    let stride = vocab.next_multiple_of(64);
    let mut logits = vec![f32::NAN; n_rows * stride];
    for (row, case) in logits.chunks_exact_mut(stride).zip(&cases) {
        row[..vocab].copy_from_slice(&case.logits);
    }
    let spec = |case: &Case| SampleSpec {
        forced: if case.skip {
            SampleSpec::SKIP
        } else {
            case.forced.unwrap_or(SampleSpec::CHOOSE)
        },
        n_top: case.logprobs.unwrap_or(SampleSpec::NO_LOGPROBS),
    };
    let specs: Vec<SampleSpec> = cases.iter().map(spec).collect();
    let max_rows = n_rows + ROWS_BEYOND;
    let results = bench.output::<SampleResult>(max_rows)?;
    let params = SampleGreedyParams {
        step: bench.input(&[header(0, n_rows)])?,
        logits: bench.input(&logits)?,
        specs: bench.input(&specs)?,
        results: results.ptr,
        stride: to_u32(stride),
        vocab: to_u32(vocab),
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&results, SampleResult::EMPTY)?;
    compare.guards(whole);
    for (t, found) in found.iter().enumerate() {
        let Some(case) = cases.get(t).filter(|case| !case.skip) else {
            compare.holds(found.reserved == u32::MAX, || format!("wrote to row {t}"));
            continue;
        };
        let params = SamplingParams {
            temperature: 0.0,
            logprobs: case.logprobs,
            ..SamplingParams::default()
        };
        let row = SampleRow {
            row: t,
            params: Arc::new(params),
            sample_index: 0,
            history: Arc::default(),
            n_prompt: 0,
            banned: Vec::new(),
            forced: case.forced,
        };
        let expected = sample(&case.logits, &row);
        compare.holds(found.n_top as usize <= TOP_MAX, || {
            format!("row {t}: {} likeliest", found.n_top)
        });
        let found = SampledToken::from(found);
        let tokens = |sampled: &SampledToken| {
            sampled.top.iter().map(|&(token, _)| token).collect::<Vec<_>>()
        };
        let same = found.token == expected.token && tokens(&found) == tokens(&expected);
        compare.holds(same, || format!("row {t}: found {found:?}, expected {expected:?}"));
        let pairs =
            found.top.iter().zip(&expected.top).map(|(found, expected)| (found.1, expected.1));
        for (found, expected) in pairs.chain([(found.logprob, expected.logprob)]) {
            if found.to_bits() == expected.to_bits() {
                // Both may be infinite.
                continue;
            }
            let (found, expected) = (f64::from(found), f64::from(expected));
            compare.near(
                || format!("log-probability of row {t}"),
                found,
                expected,
                expected,
                LOGPROB,
            );
        }
    }
    Ok(compare.row())
}
