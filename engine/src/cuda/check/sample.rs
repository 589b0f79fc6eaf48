use std::sync::Arc;

use crate::{
    cuda::{
        SamplePlan,
        ops::{LogitEdit, SampleParams, SampleResult, TOP_MAX},
    },
    sampler::{SampledToken, SamplingParams, sample as sample_on_host},
    step_batch::SampleRow,
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, LOGPROB},
    header, to_u32,
};

/// Rows of a launch that mix settings at random.
const N_MIXED: usize = 24;

/// Against the CPU's sampler, whose tokens must be met exactly: weights are integers, and no rounding differs.
pub(super) fn sample(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let mut vocabs = vec![1, 33, 1000, 4099];
    if sizes == Sizes::Full {
        vocabs.extend([49_152, 128_256, 262_144]);
    }
    let mut rows = Vec::new();
    for vocab in vocabs {
        for cases in [given(bench, vocab), each_setting(bench, vocab), mixed(bench, vocab)] {
            rows.push(one(bench, vocab, &cases)?);
        }
    }
    Ok(rows)
}

/// One row of logits, and what is asked of it.
struct Case {
    logits: Vec<f32>,
    row: SampleRow,
}

impl Case {
    fn new(logits: Vec<f32>, params: SamplingParams) -> Self {
        let row = SampleRow {
            row: 0,
            params: Arc::new(params),
            sample_index: 0,
            history: Arc::default(),
            n_prompt: 0,
            banned: Vec::new(),
            forced: None,
        };
        Self { logits, row }
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Few different values: ties everywhere.
fn with_ties(bench: &mut Bench<'_>, vocab: usize) -> Vec<f32> {
    bench.random.values(vocab, 60.0).iter().map(|v| v.round() / 4.0).collect()
}

/// Greedy and given tokens; ties, NaN, infinities, up to the 20 likeliest.
fn given(bench: &mut Bench<'_>, vocab: usize) -> Vec<Case> {
    let mut case = |edit: &dyn Fn(&mut Vec<f32>), forced, logprobs| {
        let mut logits = with_ties(bench, vocab);
        edit(&mut logits);
        let mut case = Case::new(logits, SamplingParams { logprobs, ..greedy() });
        case.row.forced = forced;
        case
    };
    let last = vocab - 1;
    let plain = |_: &mut Vec<f32>| {};
    vec![
        case(&plain, None, None),
        case(&plain, None, Some(0)),
        case(&plain, None, Some(20)),
        // More than the kernel gives: the host's.
        case(&plain, None, Some(21)),
        case(&plain, Some(to_u32(last / 2)), None),
        case(&plain, Some(to_u32(last)), Some(3)),
        case(&plain, Some(to_u32(vocab)), Some(3)),
        case(&plain, Some(u32::MAX), None),
        case(&|logits| logits[last] = f32::NAN, None, Some(5)),
        case(&|logits| logits[last / 2] = f32::INFINITY, None, None),
        case(&|logits| logits[last / 2] = f32::INFINITY, Some(0), None),
        case(&|logits| logits.fill(f32::NEG_INFINITY), None, Some(1)),
        case(&|logits| logits[..last].fill(f32::NEG_INFINITY), None, Some(2)),
        case(&|logits| logits.fill(1.5), None, Some(20)),
        case(&|logits| logits.sort_by(f32::total_cmp), None, Some(20)),
        case(&|logits| logits[last] = 3e38, None, Some(2)),
    ]
}

/// Every setting alone, and what only some logits meet.
fn each_setting(bench: &mut Bench<'_>, vocab: usize) -> Vec<Case> {
    let n = to_u32(vocab);
    let drawn = SamplingParams::default;
    let mut cases: Vec<Case> = [
        drawn(),
        SamplingParams { temperature: 0.3, ..drawn() },
        SamplingParams { temperature: 40.0, ..drawn() },
        SamplingParams { temperature: 1e-4, ..drawn() },
        SamplingParams { temperature: f32::INFINITY, ..drawn() },
        SamplingParams { top_k: 1, ..drawn() },
        SamplingParams { top_k: 40, ..drawn() },
        SamplingParams { top_k: n / 2, temperature: 9.0, ..drawn() },
        SamplingParams { top_k: n - 1, temperature: 9.0, ..drawn() },
        SamplingParams { top_k: n + 5, ..drawn() },
        SamplingParams { top_p: 0.9, ..drawn() },
        SamplingParams { top_p: 0.5, temperature: 9.0, ..drawn() },
        SamplingParams { top_p: 1e-9, ..drawn() },
        SamplingParams { top_p: 0.999_999, temperature: 3.0, ..drawn() },
        SamplingParams { min_p: 0.1, temperature: 3.0, ..drawn() },
        SamplingParams { min_p: 1.0, ..drawn() },
        SamplingParams { logprobs: Some(3), ..drawn() },
        SamplingParams { repetition_penalty: 1.3, ..drawn() },
        SamplingParams { frequency_penalty: 0.7, ..drawn() },
        SamplingParams { presence_penalty: -0.7, ..greedy() },
        SamplingParams { logit_bias: vec![(n / 2, 9.0), (n, 3.0), (0, -1.0)], ..drawn() },
    ]
    .into_iter()
    .enumerate()
    .map(|(index, params)| {
        let mut case = Case::new(bench.random.values(vocab, 6.0), params);
        case.row.sample_index = index as u64;
        with_history(bench, &mut case);
        case
    })
    .collect();
    // Ties at the edge of what is kept, within a segment and over several; bans; what cannot be chosen from.
    let mut add = |logits: Vec<f32>, params: SamplingParams, banned: Vec<u32>| {
        let mut case = Case::new(logits, params);
        case.row.sample_index = bench.random.bits();
        case.row.banned = banned;
        cases.push(case);
    };
    let flat = || vec![-2.5f32; vocab];
    let mut one_largest = flat();
    one_largest[vocab - 1] = 1.0;
    for _ in 0..3 {
        add(flat(), SamplingParams { top_k: n / 2 + 1, ..drawn() }, Vec::new());
        add(flat(), SamplingParams { top_p: 0.4, ..drawn() }, Vec::new());
        add(flat(), SamplingParams { top_k: 700, top_p: 0.4, ..drawn() }, Vec::new());
        add(one_largest.clone(), SamplingParams { top_k: n / 3 + 2, ..drawn() }, vec![0, 1, n]);
    }
    add(flat(), drawn(), (0..n).collect());
    add(flat(), greedy(), (0..n).collect());
    let (mut infinite, mut not_a_number) = (flat(), flat());
    infinite[vocab / 2] = f32::INFINITY;
    not_a_number[vocab / 2] = f32::NAN;
    for logits in [infinite, not_a_number] {
        add(logits.clone(), drawn(), Vec::new());
        // A ban helps the choice, not the log-probabilities.
        add(logits.clone(), drawn(), vec![n / 2]);
        add(logits, SamplingParams { logprobs: Some(1), ..drawn() }, vec![n / 2]);
    }
    cases
}

/// Half prompt, half completion, with tokens that occur twice or lie outside the vocabulary.
fn with_history(bench: &mut Bench<'_>, case: &mut Case) {
    let vocab = case.logits.len();
    let n_tokens = bench.random.below(60);
    let tokens = (0..n_tokens).map(|_| to_u32(bench.random.below(vocab.min(50) + 1)));
    case.row.history = Arc::new(tokens.collect());
    case.row.n_prompt = n_tokens / 2;
}

fn mixed(bench: &mut Bench<'_>, vocab: usize) -> Vec<Case> {
    (0..N_MIXED)
        .map(|index| {
            let mut logits = match bench.random.below(3) {
                0 => with_ties(bench, vocab),
                1 => bench.random.values(vocab, 4.0),
                _ => bench.random.values(vocab, 0.3),
            };
            if bench.random.below(4) == 0 {
                logits[bench.random.below(vocab)] = f32::NEG_INFINITY;
            }
            let mut pick = |choices: &[f32]| choices[bench.random.below(choices.len())];
            let params = SamplingParams {
                temperature: pick(&[0.0, 0.2, 0.8, 1.0, 1.7, 5.0]),
                top_p: pick(&[1.0, 0.99, 0.9, 0.6, 0.1]),
                min_p: pick(&[0.0, 0.0, 0.01, 0.2]),
                repetition_penalty: pick(&[1.0, 1.0, 1.2, 0.8]),
                frequency_penalty: pick(&[0.0, 0.0, 0.4, -0.1]),
                presence_penalty: pick(&[0.0, 0.0, 1.1]),
                top_k: [0, 0, 3, 50, 600][bench.random.below(5)],
                logit_bias: vec![(to_u32(bench.random.below(vocab)), bench.random.value() * 5.0)],
                seed: bench.random.bits(),
                logprobs: [None, Some(0), Some(7)][bench.random.below(3)],
            };
            let mut case = Case::new(logits, params);
            case.row.sample_index = index as u64;
            case.row.banned = vec![to_u32(bench.random.below(vocab))];
            with_history(bench, &mut case);
            case
        })
        .collect()
}

fn one(bench: &mut Bench<'_>, vocab: usize, cases: &[Case]) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let n_rows = cases.len();
    let mut compare = Comparison::new("sample", format!("{n_rows} rows of {vocab}"));
    let stride = vocab.next_multiple_of(64);
    let mut logits = vec![f32::NAN; n_rows * stride];
    for (row, case) in logits.chunks_exact_mut(stride).zip(cases) {
        row[..vocab].copy_from_slice(&case.logits);
    }
    let mut plan = SamplePlan::default();
    plan.plan(&cases.iter().map(|case| case.row.clone()).collect::<Vec<_>>(), vocab);
    let max_rows = n_rows + ROWS_BEYOND;
    let device_logits = bench.in_out(&logits)?;
    let edits = bench.in_out(plan.edits())?;
    let results = bench.output::<SampleResult>(max_rows)?;
    let params = SampleParams {
        step: bench.input(&[header(0, n_rows)])?,
        logits: device_logits.ptr,
        specs: bench.input(plan.specs())?,
        edits: edits.ptr,
        results: results.ptr,
        stride: to_u32(stride),
        vocab: to_u32(vocab),
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&results, SampleResult::EMPTY)?;
    compare.guards(whole);
    let (edits_after, whole) = bench.read(&edits, LogitEdit::none(0))?;
    compare.guards(whole);
    let same_edits = edits_after.iter().zip(plan.edits()).all(|(a, b)| a.token == b.token);
    compare.holds(same_edits, || "changed an edit's token".to_owned());
    let (logits_after, whole) = bench.read(&device_logits, 0f32)?;
    compare.guards(whole);
    let changed = logits_after.iter().zip(&logits).position(|(a, b)| a.to_bits() != b.to_bits());
    compare.holds(changed.is_none(), || format!("logit {changed:?} not as before"));
    for (t, found) in found.iter().enumerate() {
        match cases.get(t).filter(|_| !plan.on_host(t)) {
            Some(case) => compare_row(&mut compare, t, case, found),
            None => compare.holds(found.reserved == u32::MAX, || format!("wrote to row {t}")),
        }
    }
    Ok(compare.row())
}

fn compare_row(compare: &mut Comparison, t: usize, case: &Case, found: &SampleResult) {
    let expected = sample_on_host(&case.logits, &case.row);
    compare
        .holds(found.n_top as usize <= TOP_MAX, || format!("row {t}: {} likeliest", found.n_top));
    let found = SampledToken::from(found);
    let tokens =
        |sampled: &SampledToken| sampled.top.iter().map(|&(token, _)| token).collect::<Vec<_>>();
    let same = found.token == expected.token && tokens(&found) == tokens(&expected);
    compare.holds(same, || {
        format!("row {t}, {:?}: found {found:?}, expected {expected:?}", case.row.params)
    });
    let pairs = found.top.iter().zip(&expected.top).map(|(found, expected)| (found.1, expected.1));
    for (found, expected) in pairs.chain([(found.logprob, expected.logprob)]) {
        if found.to_bits() == expected.to_bits() {
            // Both may be infinite.
            continue;
        }
        let (found, expected) = (f64::from(found), f64::from(expected));
        let place = || format!("log-probability of row {t}");
        compare.near(place, found, expected, expected, LOGPROB);
    }
}
