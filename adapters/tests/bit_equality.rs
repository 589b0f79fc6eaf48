//! The invariant "a row's result does not depend on its neighbours" on the default model with real adapters: tokens and
//! log-probabilities of a sequence are bit-equal alone and in any crowd of 2 to 32 rows, base rows, three adapters and a
//! composition of them, in any chunking, in any KV blocks, with and without a prefix hit, before and after preemption; on
//! every instruction set of this processor, with one thread and two, with int8 and f32 activations; by hand and through the
//! real scheduler.
//!
//! `PLEACH_TEST_CASES` multiplies the cases, `PLEACH_TEST_SEED` picks others. More models: `engine/tests/bit_equality.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::time::Instant;

use pleach_adapters::{
    compose::{Part, sum},
    load_peft,
};
use pleach_engine::{
    adapter_weights::LORA_RANK_MAX,
    backend::StepRunner,
    cpu::{CpuBackend, Isa},
    engine::EngineConfig,
    gguf::GgufFile,
    kv::KV_BLOCK_TOKENS,
    model::{Activations, CpuOptions, Decoder, load_cpu, read_spec},
    step_batch::AdapterSlot,
};
use support::{
    crowd::{Happened, alone, crowd},
    default_model, fixtures, isas,
    random::{Random, case_seed, cases},
    through_engine::through_engine,
    wanted::{Chosen, Wanted, assert_adapters_differ, assert_equal, catalogue, random_adapter},
};

#[path = "../../engine/tests/support/mod.rs"]
mod support;

const ROWS_MAX: usize = 32;
/// None, both trained adapters, a random one, and a composition of all three.
const ADAPTERS: [Option<AdapterSlot>; 5] =
    [None, Some(AdapterSlot(0)), Some(AdapterSlot(1)), Some(AdapterSlot(2)), Some(AdapterSlot(3))];

/// The default model with its adapters, always the same, and room for `n_blocks` KV blocks.
fn load(
    isa: Isa,
    threads: usize,
    activations: Activations,
    n_blocks: usize,
) -> Decoder<CpuBackend> {
    let file = GgufFile::open(&default_model()).unwrap();
    let spec = read_spec(&file).unwrap();
    let element = if activations == Activations::Int8 { 2 } else { 4 };
    let block = spec.n_layers * 2 * spec.n_kv_heads * spec.head_dim * KV_BLOCK_TOKENS * element;
    let options = CpuOptions {
        isa,
        threads,
        activations,
        kv_bytes: n_blocks * block,
        adapter_bytes: 1 << 30,
        max_rows: 64,
    };
    let mut model = load_cpu(&file, options).unwrap();
    let mut weights: Vec<_> = ["pirate", "extract"]
        .into_iter()
        .map(|name| load_peft(&fixtures().join("adapters").join(name), &spec).unwrap().weights)
        .collect();
    weights.push(random_adapter(&mut Random::new(1), &spec));
    let parts: Vec<_> = weights
        .iter()
        .zip([0.7, -0.4, 0.2])
        .map(|(weights, scale)| Part { weights, scale })
        .collect();
    weights.push(sum(&parts, LORA_RANK_MAX).unwrap());
    for (weights, slot) in weights.iter().zip(&ADAPTERS[1..]) {
        assert_eq!(Some(model.install_weights(weights).unwrap()), *slot);
    }
    model
}

/// How much a test does on one instruction set: plain Rust is about fifty times slower.
struct Amount {
    prompts_max: usize,
    n_tokens: std::ops::RangeInclusive<usize>,
    crowds: usize,
    crowd_max: usize,
}

impl Amount {
    fn of(isa: Isa, activations: Activations) -> Self {
        match (isa, activations) {
            // One KV block and a token, so that there is a prefix to share.
            (Isa::Portable, _) => {
                Self { prompts_max: 17, n_tokens: 2..=2, crowds: 1, crowd_max: 3 }
            }
            (_, Activations::Int8) => {
                Self { prompts_max: 40, n_tokens: 4..=12, crowds: 3, crowd_max: 20 }
            }
            (_, Activations::F32) => {
                Self { prompts_max: 36, n_tokens: 2..=6, crowds: 1, crowd_max: 12 }
            }
        }
    }

    /// Sequences, and what each gives alone on one thread.
    fn catalogue(&self, isa: Isa, activations: Activations) -> Vec<(Wanted, Vec<Chosen>)> {
        let mut model = load(isa, 1, activations, 16);
        let spec = model.spec().clone();
        let mut random = Random::new(case_seed(0));
        let mut wanted =
            catalogue(&mut random, &spec, &ADAPTERS, self.prompts_max, self.n_tokens.clone());
        if isa == Isa::Portable {
            // One of each adapter, the longest.
            wanted = wanted.into_iter().step_by(3).collect();
        }
        let alone: Vec<_> =
            wanted.into_iter().map(|wanted| (wanted.clone(), alone(&mut model, &wanted))).collect();
        assert_adapters_differ(&alone);
        alone
    }
}

/// `n` of them, some more than once.
fn draw<'a>(
    random: &mut Random,
    catalogue: &'a [(Wanted, Vec<Chosen>)],
    n: usize,
) -> (Vec<&'a Wanted>, Vec<&'a Vec<Chosen>>) {
    (0..n)
        .map(|_| &catalogue[random.below(catalogue.len())])
        .map(|(wanted, alone)| (wanted, alone))
        .unzip()
}

#[test]
fn alone_and_in_any_crowd() {
    let mut happened = Happened::default();
    let (mut case, mut n_cases) = (0, 0);
    for isa in isas() {
        for activations in [Activations::Int8, Activations::F32] {
            let start = Instant::now();
            let amount = Amount::of(isa, activations);
            let catalogue = amount.catalogue(isa, activations);
            for threads in [1, 2] {
                let mut model = load(isa, threads, activations, 160);
                for _ in 0..cases(amount.crowds) {
                    let seed = case_seed(case);
                    case += 1;
                    let mut random = Random::new(seed);
                    let n = random.between(2, amount.crowd_max);
                    let (wanted, expected) = draw(&mut random, &catalogue, n);
                    let rows_max = random.between(2, ROWS_MAX);
                    let (found, events) = crowd(&mut model, &wanted, &mut random, rows_max);
                    let what = format!(
                        "{isa} {activations}, {threads} threads, {rows_max} rows, seed {seed}"
                    );
                    assert_equal(&what, &wanted, &expected, &found);
                    happened += events;
                    n_cases += 1;
                }
            }
            eprintln!("{isa} {activations}: {:.1} s", start.elapsed().as_secs_f32());
        }
    }
    eprintln!("{n_cases} crowds, all equal: {happened:?}");
    assert!(happened.mixed > 0 && happened.prefill_beside_decode > 0, "{happened:?}");
    assert!(happened.prefix_hits > 0 && happened.preemptions > 0, "{happened:?}");
}

#[test]
fn alone_and_through_the_scheduler() {
    let (mut preemptions, mut prefix_hits) = (0, 0);
    // The other test covers the kernels of all instruction sets; a long run takes those here too.
    for isa in isas().into_iter().filter(|isa| *isa == Isa::detect() || cases(1) > 1) {
        let activations = Activations::Int8;
        let start = Instant::now();
        // Completions longer than prompts: sequences outgrow what they were admitted with.
        let amount = Amount { prompts_max: 24, n_tokens: 30..=40, ..Amount::of(isa, activations) };
        let catalogue = amount.catalogue(isa, activations);
        for (index, (threads, prefix_cache)) in [(2, true), (1, false)].into_iter().enumerate() {
            for case in 0..cases(1) {
                let seed = case_seed(1000 + 2 * case + index);
                let mut random = Random::new(seed);
                let (wanted, expected) = draw(&mut random, &catalogue, 20);
                // Few blocks: sequences of up to five push each other out.
                let n_blocks = random.between(12, 16);
                let config = EngineConfig {
                    max_batch: random.between(8, 16),
                    max_step_rows: random.between(16, ROWS_MAX),
                    max_queue: 1000,
                    prefix_cache,
                };
                let what =
                    format!("{isa}, {threads} threads, {config:?}, {n_blocks} blocks, seed {seed}");
                let model = load(isa, threads, activations, n_blocks);
                let (found, stats) = through_engine(Box::new(model), config, &wanted, &mut random);
                assert_equal(&what, &wanted, &expected, &found);
                preemptions += stats.preemptions;
                prefix_hits += stats.prefix_hits;
                assert!(prefix_cache || stats.prefix_hits == 0, "{what}");
            }
        }
        eprintln!("{isa}: {:.1} s", start.elapsed().as_secs_f32());
    }
    eprintln!("{preemptions} preemptions, {prefix_hits} tokens from the prefix cache");
    assert!(
        preemptions > 0 && prefix_hits > 0,
        "{preemptions} preemptions, {prefix_hits} prefix hits"
    );
}
