//! The scheduler over random submissions, cancellations, accidents and tiny pools: every sequence gives what it gives
//! alone, no block is lost, and everything ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod fake;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use fake::{
    Accident, NAN_TOKEN,
    audit::Audit,
    bench::{Bench, alone, assert_same_text, limits, request, tokens},
};
use pleach_engine::{
    backend::StepRunner,
    engine::AdapterLease,
    sampler::SamplingParams,
    sequence::{FinishReason, FlowId, SequenceId, SequenceRequest},
    step_batch::AdapterSlot,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Submit(SequenceRequest),
    Cancel(usize),
    Drop(usize),
    Steps(usize),
    Accident,
}

fn any_request() -> impl Strategy<Value = SequenceRequest> {
    let text = (0usize..3, 0usize..60, 0usize..100, 0usize..20, any::<bool>());
    let adapter = proptest::option::of(0u32..2);
    let ends = (1usize..50, 0usize..12, proptest::collection::vec(0u32..NAN_TOKEN, 0..4));
    let extras = (
        any::<bool>(),
        proptest::option::weighted(0.2, 0u32..3),
        0u64..2,
        proptest::bool::weighted(0.05),
    );
    (text, adapter, ends, extras).prop_map(
        |(text, adapter, (max_tokens, min_tokens, stop_tokens), extras)| {
            let (family, n_shared, tail_seed, n_tail, is_penalized) = text;
            let (wants_logprobs, prompt_logprobs, seed, is_broken) = extras;
            let mut prompt = tokens(family, n_shared);
            prompt.extend(tokens(tail_seed, n_tail.max(1)));
            if is_broken {
                prompt.push(NAN_TOKEN);
            }
            let sampling = SamplingParams {
                seed,
                repetition_penalty: if is_penalized { 1.1 } else { 1.0 },
                logprobs: wants_logprobs.then_some(1),
                ..SamplingParams::default()
            };
            SequenceRequest {
                prompt,
                adapter: adapter.map(|slot| AdapterLease::permanent(AdapterSlot(slot))),
                kv_key: [adapter.map_or(0, |slot| u8::try_from(slot).unwrap() + 1); 32],
                flow: FlowId(seed),
                sampling: Arc::new(sampling),
                max_tokens,
                min_tokens,
                stop_tokens,
                prompt_logprobs,
            }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any_request().prop_map(Op::Submit),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Drop),
        4 => (1usize..12).prop_map(Op::Steps),
        1 => Just(Op::Accident),
    ]
}

proptest! {
    /// Invariants 1, 3 and 7 of the architecture, as far as the scheduler can keep or break them. `PROPTEST_CASES` makes
    /// it longer.
    #[test]
    fn a_crowd_changes_nothing(
        n_kv_blocks in 2usize..14,
        max_batch in 1usize..7,
        n_more_rows in 0usize..40,
        prefix_cache in any::<bool>(),
        is_shuffled in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let limits = limits(n_kv_blocks, max_batch, max_batch + n_more_rows);
        let audit = Audit::new(is_shuffled);
        let mut bench = Bench::with_policy(limits, prefix_cache, Box::new(audit.clone()));
        let mut requests = Vec::new();
        let mut is_cancelled = Vec::new();
        let mut n_rows_max = 0;
        for op in ops {
            match op {
                Op::Submit(mut request) => {
                    request.prompt.truncate(limits.max_prompt_tokens());
                    n_rows_max += request.prompt.len() + request.max_tokens;
                    bench.submit(request.clone());
                    requests.push(request);
                    is_cancelled.push(false);
                }
                Op::Cancel(nth) if !requests.is_empty() => {
                    let index = nth % requests.len();
                    is_cancelled[index] |= bench.scheduler.cancel(SequenceId(index as u64));
                }
                Op::Drop(nth) if !requests.is_empty() => bench.streams[nth % requests.len()] = None,
                Op::Cancel(_) | Op::Drop(_) => {}
                Op::Steps(n) => (0..n).for_each(|_| { bench.step(); }),
                Op::Accident => bench.runner.accident = Some(Accident::Error),
            }
            bench.scheduler.pool().check();
        }
        // Generous for recomputing, but far from endless.
        bench.run_to_end(20 * n_rows_max + 10);
        audit.check_end(&bench.scheduler.stats());
        for (index, request) in requests.iter().enumerate().filter(|(index, _)| bench.streams[*index].is_some()).collect::<Vec<_>>() {
            let found = bench.outcome(index);
            let expected = alone(request, limits);
            match &found.end {
                Some(Ok(FinishReason::Cancelled)) => {
                    prop_assert!(is_cancelled[index]);
                    prop_assert!(expected.tokens.starts_with(&found.tokens));
                }
                Some(Err(message)) if message.contains("accident") => {
                    prop_assert!(expected.tokens.starts_with(&found.tokens));
                }
                _ => assert_same_text(&found, &expected),
            }
        }
    }
}

#[test]
fn second_turn_of_a_chat_finds_prompt_and_completion() {
    let mut bench = Bench::new(limits(20, 4, 64), true);
    let prompt = tokens(1, 30);
    let first = bench.submit(request(prompt.clone(), 10));
    bench.run_to_end(100);
    let mut chat = prompt;
    chat.extend(bench.outcome(first).tokens.iter().map(|token| token.0));
    chat.extend(tokens(2, 5));
    let second = bench.submit(request(chat.clone(), 5));
    bench.run_to_end(100);
    let found = bench.outcome(second);
    // 30 + 10 tokens, of which the last was never computed: 39, so 2 full blocks.
    assert_eq!(found.cached, Some(32));
    assert_same_text(&found, &alone(&request(chat, 5), limits(20, 4, 64)));
}

#[test]
fn a_whole_prompt_in_the_cache_still_computes_its_last_token() {
    let mut bench = Bench::new(limits(20, 4, 64), true);
    let first = bench.submit(request(tokens(1, 32), 1));
    bench.run_to_end(10);
    let again = bench.submit(request(tokens(1, 32), 1));
    bench.run_to_end(10);
    assert_eq!(bench.outcome(again).cached, Some(16));
    assert_eq!(bench.outcome(first).cached, Some(0));
    let stats = bench.scheduler.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens), (64, 16, 64));
}

#[test]
fn another_key_shares_nothing() {
    let mut bench = Bench::new(limits(20, 4, 64), true);
    bench.submit(request(tokens(1, 40), 1));
    bench.run_to_end(10);
    let other = bench.submit(SequenceRequest { kv_key: [9; 32], ..request(tokens(1, 40), 1) });
    bench.run_to_end(10);
    assert_eq!(bench.outcome(other).cached, Some(0));
}

#[test]
fn choices_of_one_prompt_compute_it_once_and_let_others_pass() {
    let limits = limits(60, 8, 64);
    let mut bench = Bench::new(limits, true);
    let prompt = tokens(1, 49);
    let choices: Vec<usize> = (0..4).map(|_| bench.submit(request(prompt.clone(), 3))).collect();
    let other = bench.submit(request(tokens(2, 4), 1));
    // The first choice takes 49 of the 64 rows; the other choices wait for its blocks instead of taking the rest.
    bench.step();
    assert!(
        bench.outcome(other).end.is_some(),
        "a sequence was held up by one that waits for a prefix"
    );
    bench.run_to_end(100);
    for (nth, index) in choices.into_iter().enumerate() {
        let found = bench.outcome(index);
        assert_eq!(found.cached, Some(if nth == 0 { 0 } else { 48 }));
        assert_same_text(&found, &alone(&request(prompt.clone(), 3), limits));
    }
    // Once the prompt, then one row of it for each other choice, two more tokens for each, and the other prompt.
    assert_eq!(bench.runner.seen.rows.load(Ordering::Relaxed), 49 + 3 + 4 * 2 + 4);
}

#[test]
fn preemption_recomputes_and_is_not_noticed() {
    let limits = limits(6, 4, 64);
    let mut bench = Bench::new(limits, true);
    let all: Vec<usize> = (0..3).map(|seed| bench.submit(request(tokens(seed, 14), 50))).collect();
    bench.run_to_end(1000);
    let mut n_preemptions = 0;
    for (seed, index) in all.into_iter().enumerate() {
        let found = bench.outcome(index);
        n_preemptions += found.preemptions;
        if seed == 0 {
            assert_eq!(found.preemptions, 0, "the oldest goes on");
        }
        assert_same_text(&found, &alone(&request(tokens(seed, 14), 50), limits));
    }
    assert!(n_preemptions > 0);
    assert_eq!(bench.scheduler.stats().preemptions, u64::from(n_preemptions));
    assert_eq!(bench.scheduler.stats().prompt_tokens, 3 * 14);
}

#[test]
fn a_sequence_ends_when_it_fills_pool_or_context() {
    for (n_kv_blocks, n_expected) in [(3, 48), (40, 150)] {
        let mut bench = Bench::new(limits(n_kv_blocks, 2, 64), true);
        let index = bench.submit(request(tokens(1, 20), 1000));
        bench.run_to_end(200);
        let found = bench.outcome(index);
        assert_eq!(found.end, Some(Ok(FinishReason::Length)));
        assert_eq!(20 + found.tokens.len(), n_expected);
    }
}

#[test]
fn stop_tokens_are_banned_before_min_tokens_and_reported_as_the_last_one() {
    let stop_tokens: Vec<u32> = (0..25).collect();
    let mut bench = Bench::new(limits(20, 2, 64), true);
    let wanted = SequenceRequest {
        min_tokens: 5,
        stop_tokens: stop_tokens.clone(),
        ..request(tokens(3, 9), 100)
    };
    let index = bench.submit(wanted);
    bench.run_to_end(200);
    let found = bench.outcome(index);
    let (last, before) = found.tokens.split_last().unwrap();
    assert_eq!(found.end, Some(Ok(FinishReason::Stop { token: last.0 })));
    assert!(before.len() >= 5 && before.iter().all(|token| !stop_tokens.contains(&token.0)));
}

#[test]
fn prompt_scores_cover_every_token_but_the_first() {
    let mut bench = Bench::new(limits(20, 2, 10), true);
    bench.submit(request(tokens(1, 40), 1));
    bench.run_to_end(20);
    let prompt = tokens(1, 40);
    let scored =
        bench.submit(SequenceRequest { prompt_logprobs: Some(2), ..request(prompt.clone(), 1) });
    let short = bench.submit(SequenceRequest { prompt_logprobs: Some(0), ..request(vec![7], 1) });
    bench.run_to_end(20);
    let found = bench.outcome(scored);
    assert_eq!(found.cached, Some(0), "scores need every row");
    let found_scores = found.scores.unwrap();
    assert_eq!(found_scores.iter().map(|score| score.0).collect::<Vec<_>>(), prompt[1..]);
    assert!(found_scores.iter().all(|score| score.2.len() == 2));
    assert_eq!(bench.outcome(short).scores, Some(Vec::new()));
}

#[test]
fn what_chooses_nothing_fails_alone() {
    let mut bench = Bench::new(limits(20, 4, 64), true);
    let good = bench.submit(request(tokens(1, 20), 5));
    let bad = bench.submit(request([tokens(1, 20), vec![NAN_TOKEN]].concat(), 5));
    bench.run_to_end(20);
    let message = bench.outcome(bad).end.unwrap().unwrap_err();
    assert!(message.contains("no token can be chosen"), "{message}");
    assert_same_text(&bench.outcome(good), &alone(&request(tokens(1, 20), 5), limits(20, 4, 64)));
}

#[test]
fn an_accident_leaves_nothing_of_its_blocks_in_the_cache() {
    let limits = limits(20, 4, 64);
    let mut bench = Bench::new(limits, true);
    bench.submit(request(tokens(1, 40), 1));
    bench.run_to_end(10);
    let lost = bench.submit(request(tokens(1, 50), 5));
    bench.runner.accident = Some(Accident::Error);
    bench.run_to_end(10);
    assert_eq!(bench.outcome(lost).end, Some(Err("device failure: accident".to_owned())));
    let again = bench.submit(request(tokens(1, 50), 5));
    bench.run_to_end(10);
    let found = bench.outcome(again);
    assert_eq!(found.cached, Some(0));
    assert_same_text(&found, &alone(&request(tokens(1, 50), 5), limits));
}

#[test]
fn decode_rows_come_first_and_prefill_shares_the_rest() {
    let mut bench = Bench::new(limits(40, 4, 20), true);
    bench.submit(request(tokens(1, 10), 30));
    bench.step();
    bench.submit(request(tokens(2, 25), 2));
    bench.submit(request(tokens(3, 25), 2));
    let mut shapes = Vec::new();
    for _ in 0..3 {
        let batch = bench.scheduler.schedule(Instant::now()).unwrap();
        shapes.push(batch.sequences.iter().map(|sequence| sequence.rows.len()).collect::<Vec<_>>());
        let sampled = bench.runner.step(&batch).unwrap();
        drop(batch);
        bench.scheduler.apply(sampled, Instant::now());
    }
    assert_eq!(shapes, [vec![1, 19], vec![1, 6, 13], vec![1, 1, 12]]);
}

#[test]
fn a_policy_hears_of_everything_once() {
    let audit = Audit::new(false);
    let mut bench = Bench::with_policy(limits(20, 2, 64), true, Box::new(audit.clone()));
    let of_flow =
        |flow, seed| SequenceRequest { flow: FlowId(flow), ..request(tokens(seed, 40), 3) };
    bench.submit(of_flow(1, 1));
    bench.step();
    // The second finds 32 of its 40 tokens in the cache.
    for (flow, seed) in [(2, 1), (3, 2), (4, 3), (4, 4)] {
        bench.submit(of_flow(flow, seed));
    }
    bench.step();
    assert!(bench.scheduler.cancel(SequenceId(3)));
    bench.streams[4] = None;
    bench.run_to_end(20);
    audit.check_end(&bench.scheduler.stats());
    let heard = audit.heard();
    assert_eq!(heard.n_uncached, 40 + 8 + 40);
    assert_eq!(heard.n_tokens_of, [(FlowId(1), 3), (FlowId(2), 3), (FlowId(3), 3)].into());
    assert_eq!((heard.n_admitted, heard.n_left), (3, 2));
}
