//! "A row's result does not depend on its neighbours" on tiny models of every kind: tokens and log-probabilities of a
//! sequence are bit-equal alone and in any crowd, on every instruction set, with one thread and two.
//!
//! `PLEACH_TEST_CASES` multiplies the cases, `PLEACH_TEST_SEED` picks others. The same on the default model with real
//! adapters: `adapters/tests/bit_equality.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod support;

use pleach_engine::{
    backend::StepRunner,
    cpu::{CpuBackend, Isa},
    engine::EngineConfig,
    gguf::GgufFile,
    kv::KV_BLOCK_TOKENS,
    model::{Activations, CpuOptions, Decoder, load_cpu},
    step_batch::AdapterSlot,
};
use support::{
    crowd::{Happened, alone, crowd},
    fixtures, isas,
    random::{Random, case_seed, cases},
    through_engine::through_engine,
    wanted::{
        Chosen, Wanted, assert_adapters_differ, assert_equal, catalogue, random_adapter,
        random_kinds,
    },
};

/// Every architecture, head size and grouping; a format of each kind (codes of 4, 5, 6 and 8 bits, minima, K formats, dense).
const MODELS: [&str; 12] = [
    "llama-head-dim",
    "mistral",
    "qwen2",
    "qwen2-rope-yarn",
    "qwen3",
    "format-bf16",
    "format-f32",
    "format-q2_k",
    "format-q3_k",
    "format-q5_1",
    "format-q5_k",
    "format-mixed",
];
const ROWS_MAX: usize = 64;
/// Plain ones, then those of [`random_kinds`].
const PLAIN_ADAPTERS: usize = 3;
const ADAPTERS: u32 = 6;

/// The model with random adapters of every kind, always the same.
fn load(
    name: &str,
    isa: Isa,
    threads: usize,
    activations: Activations,
    n_blocks: usize,
) -> Decoder<CpuBackend> {
    let file = GgufFile::open(&fixtures().join("models").join(format!("{name}.gguf"))).unwrap();
    let spec = pleach_engine::model::read_spec(&file).unwrap();
    let element = if activations == Activations::Int8 { 2 } else { 4 };
    let block = spec.n_layers * 2 * spec.n_kv_heads * spec.head_dim * KV_BLOCK_TOKENS * element;
    let options = CpuOptions {
        isa,
        threads,
        activations,
        kv_bytes: n_blocks * block,
        adapter_bytes: 1 << 30,
        max_rows: ROWS_MAX,
    };
    let mut model = load_cpu(&file, options).unwrap();
    let mut random = Random::new(1);
    let plain: Vec<_> = (0..PLAIN_ADAPTERS).map(|_| random_adapter(&mut random, &spec)).collect();
    let slots: Vec<AdapterSlot> = plain
        .into_iter()
        .chain(random_kinds(&mut random, &spec))
        .map(|weights| model.install_weights(&weights).unwrap())
        .collect();
    assert!(slots.into_iter().eq((0..ADAPTERS).map(AdapterSlot)));
    model
}

/// Sequences, and what each gives alone on one thread.
fn catalogue_alone(name: &str, isa: Isa, activations: Activations) -> Vec<(Wanted, Vec<Chosen>)> {
    let mut model = load(name, isa, 1, activations, 16);
    let slots = (0..ADAPTERS).map(|slot| Some(AdapterSlot(slot)));
    let adapters: Vec<_> = std::iter::once(None).chain(slots).collect();
    let spec = model.spec().clone();
    let wanted = catalogue(&mut Random::new(case_seed(0)), &spec, &adapters, 40, 4..=40);
    let alone: Vec<_> =
        wanted.into_iter().map(|wanted| (wanted.clone(), alone(&mut model, &wanted))).collect();
    assert_adapters_differ(&alone);
    alone
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
    for (model_index, name) in MODELS.into_iter().enumerate() {
        for isa in isas() {
            for activations in [Activations::Int8, Activations::F32] {
                let catalogue = catalogue_alone(name, isa, activations);
                for threads in [1, 2] {
                    let mut model = load(name, isa, threads, activations, 256);
                    // Plain Rust takes most of the time.
                    let (n_cases, crowd_max) = if isa == Isa::Portable { (1, 12) } else { (4, 32) };
                    for case in 0..cases(n_cases) {
                        let seed = case_seed(1000 * model_index + case);
                        let mut random = Random::new(seed);
                        let n = random.between(2, crowd_max);
                        let (wanted, expected) = draw(&mut random, &catalogue, n);
                        let rows_max = random.between(2, ROWS_MAX);
                        let (found, events) = crowd(&mut model, &wanted, &mut random, rows_max);
                        let what =
                            format!("{name} {isa} {activations}, {threads} threads, seed {seed}");
                        assert_equal(&what, &wanted, &expected, &found);
                        happened += events;
                    }
                }
            }
        }
    }
    eprintln!("{happened:?}");
    assert!(happened.mixed > 0 && happened.prefill_beside_decode > 0, "{happened:?}");
    assert!(happened.prefix_hits > 0 && happened.preemptions > 0, "{happened:?}");
}

#[test]
fn alone_and_through_the_scheduler() {
    let (mut preemptions, mut prefix_hits) = (0, 0);
    for (model_index, name) in MODELS.into_iter().enumerate() {
        for isa in isas() {
            for (index, (activations, threads, prefix_cache)) in [
                (Activations::Int8, 1, true),
                (Activations::Int8, 2, false),
                (Activations::F32, 2, true),
            ]
            .into_iter()
            .enumerate()
            {
                if isa == Isa::Portable && index != model_index % 3 {
                    continue;
                }
                let catalogue = catalogue_alone(name, isa, activations);
                for case in 0..cases(1) {
                    let seed = case_seed(10_000 + 1000 * model_index + 10 * case + index);
                    let mut random = Random::new(seed);
                    let n = random.between(12, 40);
                    let (wanted, expected) = draw(&mut random, &catalogue, n);
                    // Few blocks: sequences of up to six push each other out.
                    let n_blocks = random.between(6, 14);
                    let model = load(name, isa, threads, activations, n_blocks);
                    let config = EngineConfig {
                        max_batch: random.between(3, 16),
                        max_step_rows: random.between(16, ROWS_MAX),
                        max_queue: 1000,
                        prefix_cache,
                    };
                    let what = format!(
                        "{name} {isa} {activations}, {threads} threads, {config:?}, {n_blocks} blocks, seed {seed}"
                    );
                    let (found, stats) =
                        through_engine(Box::new(model), config, &wanted, &mut random);
                    assert_equal(&what, &wanted, &expected, &found);
                    preemptions += stats.preemptions;
                    prefix_hits += stats.prefix_hits;
                    assert!(prefix_cache || stats.prefix_hits == 0, "{what}");
                }
            }
        }
    }
    eprintln!("{preemptions} preemptions, {prefix_hits} tokens from the prefix cache");
    assert!(preemptions > 0 && prefix_hits > 0);
}
