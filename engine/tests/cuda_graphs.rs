//! Adapters of every kind on the CUDA backend over a device without a GPU: which launches a step makes, that a graph serves
//! every mix of adapters of its bucket, and what packing refuses.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::BTreeSet;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner,
    cpu::Isa,
    cuda::{CudaBackend, CudaOptions, Device, DeviceInfo, RecordedLaunch},
    gguf::GgufFile,
    model::{Activations, Decoder, load_cuda, random_kinds as made_up, random_weights, read_spec},
    sampler::SampledToken,
    site::Site,
    step_batch::AdapterSlot,
};
use support::{
    Run, fixtures, prefill_all,
    random::{Random, case_seed},
    step,
    wanted::{random_adapter, random_kinds},
};

mod support;

/// Kernels of adapters at the ends of the model.
const ENDS: [&str; 3] = ["embed_adapters", "epilogue_in_place_1", "own_head"];

const OPTIONS: CudaOptions =
    CudaOptions { kv_bytes: 4 << 20, adapter_bytes: 8 << 20, max_rows: 44 };

fn device() -> Device {
    let mut device = Device::fake(DeviceInfo {
        ordinal: 0,
        name: "fake".to_owned(),
        compute_capability: (9, 0),
        n_sms: 132,
        memory_bytes: 128 << 20,
        l2_bytes: 1 << 20,
        shared_bytes_max: 227 << 10,
        driver_version: 13_000,
    });
    device.reserve(64 << 20).unwrap();
    device
}

fn file(base: &str) -> GgufFile {
    GgufFile::open(&fixtures().join("models").join(format!("{base}.gguf"))).unwrap()
}

fn load(base: &str) -> Decoder<CudaBackend> {
    load_cuda(&file(base), device(), OPTIONS).unwrap()
}

/// The launches of a step in which sequence `i` has `lengths[i].0` rows under an adapter or none; the last row of each is
/// sampled.
fn launches(
    runner: &mut Decoder<CudaBackend>,
    sequences: &[(usize, Option<AdapterSlot>)],
) -> Vec<RecordedLaunch> {
    let mut runs: Vec<Run> = sequences
        .iter()
        .zip(0..)
        .map(|(&(length, slot), index)| {
            Run::in_blocks(&vec![7 + index; length], 4 * index..4 * (index + 1), slot)
        })
        .collect();
    let mut rows: Vec<&mut Run> = runs.iter_mut().collect();
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.0).collect();
    runner.backend_mut().device().take_launches().unwrap();
    step(runner, &mut rows, &lengths, 0, false);
    runner.backend_mut().device().take_launches().unwrap()
}

fn names(launches: &[RecordedLaunch]) -> BTreeSet<&str> {
    launches.iter().map(|launch| launch.kernel.as_str()).collect()
}

/// Adapters of a model: plain, with `DoRA` on linears alone, and of every kind.
fn adapters(
    runner: &Decoder<CudaBackend>,
) -> (AdapterWeights, AdapterWeights, Vec<AdapterWeights>) {
    let mut random = Random::new(case_seed(61));
    let plain = random_adapter(&mut random, runner.spec());
    let kinds = random_kinds(&mut random, runner.spec());
    let mut dora = kinds[0].clone();
    dora.sites.retain(|site| !site.site.module.is_end());
    (plain, dora, kinds.to_vec())
}

#[test]
fn a_graph_serves_every_mix_of_kinds() {
    for base in ["llama-plain", "qwen2"] {
        let mut runner = load(base);
        let (plain, dora, kinds) = adapters(&runner);
        let plain = Some(runner.install_weights(&plain).unwrap());
        let dora = Some(runner.install_weights(&dora).unwrap());
        let kinds: Vec<_> =
            kinds.iter().map(|weights| Some(runner.install_weights(weights).unwrap())).collect();

        // Linears: of any kind.
        let linears = launches(&mut runner, &[(1, plain), (1, None), (1, plain)]);
        assert_eq!(launches(&mut runner, &[(1, dora), (1, dora), (1, plain), (1, None)]), linears);
        assert_eq!(runner.backend_mut().n_graphs(), 1, "{base}");
        assert!(names(&linears).is_disjoint(&BTreeSet::from(ENDS)), "{base}: nobody asked for it");

        // With the ends of the model: of any kind, too, and in any slot.
        let ends = launches(&mut runner, &[(1, kinds[0]), (1, None), (1, plain)]);
        assert!(names(&ends).is_superset(&BTreeSet::from(ENDS)), "{base}: {:?}", names(&ends));
        assert_eq!(
            launches(&mut runner, &[(1, kinds[2]), (1, kinds[1]), (1, kinds[0]), (1, kinds[1])]),
            ends
        );
        runner.remove_adapter(kinds[1].unwrap());
        let again = adapters(&runner).2;
        let slot = runner.install_weights(&again[2]).unwrap();
        let moved = Some(slot);
        assert_eq!(launches(&mut runner, &[(1, moved), (1, moved), (1, moved)]), ends);
        assert_eq!(runner.backend_mut().n_graphs(), 2, "{base}");
        // Its slot had an adapter of another kind: what is in the graph goes by what is there now.
        runner.remove_adapter(slot);
        let moved = Some(runner.install_weights(&adapters(&runner).0).unwrap());
        assert_eq!(launches(&mut runner, &[(1, moved), (1, None), (1, plain)]), linears);

        // The base pays for none of it.
        let none = launches(&mut runner, &[(1, None), (1, None), (1, None)]);
        assert_eq!(none.len(), linears.len() - linears_of(&linears), "{base}");
        assert_eq!(
            ends.len(),
            linears.len() + 1 + ENDS.len(),
            "{base}: shrink at the head, and these"
        );
    }
}

/// Launches that only adapters need.
fn linears_of(launches: &[RecordedLaunch]) -> usize {
    launches.iter().filter(|launch| launch.kernel.starts_with("lora_shrink")).count()
}

#[test]
fn prefill_has_the_same_kernels_of_its_own() {
    let mut runner = load("qwen2");
    let (plain, _, kinds) = adapters(&runner);
    let plain = Some(runner.install_weights(&plain).unwrap());
    let kind = Some(runner.install_weights(&kinds[1]).unwrap());
    let mixed = launches(&mut runner, &[(20, plain), (9, kind), (1, None)]);
    assert!(names(&mixed).is_superset(&BTreeSet::from(ENDS)));
    let only_linears = launches(&mut runner, &[(20, plain), (10, None)]);
    assert!(names(&only_linears).is_disjoint(&BTreeSet::from(ENDS)));
    assert_eq!(runner.backend_mut().n_graphs(), 0);
}

#[test]
fn what_cannot_be_packed_is_refused_by_name() {
    // A model that is no file has no base to take norms of.
    let spec = read_spec(&file("llama-plain")).unwrap();
    let mut backend = CudaBackend::new(device(), &spec, OPTIONS).unwrap();
    let weights = random_weights(&spec, &mut backend).unwrap();
    let mut random = Decoder::new(spec, backend, weights).unwrap();
    let (plain, dora, kinds) = adapters(&random);
    random.install_weights(&plain).unwrap();
    for weights in [&dora, &kinds[2]] {
        let error = random.install_weights(weights).unwrap_err().to_string();
        assert!(error.contains("no model file is loaded"), "{error}");
    }

    let mut runner = load("qwen2");
    // An adapted row without a norm.
    let mut zero = dora;
    zero.sites.truncate(1);
    zero.sites[0].lora_scale = f32::MAX;
    zero.sites[0].b.fill(0.5);
    let site = zero.sites[0].site;
    let error = runner.install_weights(&zero).unwrap_err().to_string();
    assert!(error.contains(&site.path()) && error.contains("row 0"), "{error}");
    // f16 ends at 65504.
    let mut large = kinds[2].clone();
    large.head.as_mut().unwrap().values[5] = 1e5;
    let error = runner.install_weights(&large).unwrap_err().to_string();
    assert_eq!(error, format!("{}: weight holds 100000, beyond the range of f16", Site::HEAD));
    // An adapter that takes more than there is for all of them.
    let mut small = OPTIONS;
    small.adapter_bytes = 1 << 10;
    let mut small = load_cuda(&file("qwen2"), device(), small).unwrap();
    let error = small.install_weights(&kinds[2]).unwrap_err().to_string();
    assert!(error.starts_with("an adapter needs "), "{error}");
}

/// Adapters that `gpu-check` makes up: a GPU takes them, and a part of one that it left out would show.
#[test]
fn made_up_kinds_change_what_the_base_says() {
    for base in ["llama-plain", "qwen2"] {
        let path = fixtures().join("models").join(format!("{base}.gguf"));
        let mut cpu = support::load(&path, Isa::detect(), 1, Activations::F32);
        let mut gpu = load(base);
        let n_top = u32::try_from(cpu.spec().vocab).unwrap();
        let of_base = log_probs(&mut cpu, None, n_top);
        for (index, weights) in made_up(&file(base), gpu.spec()).unwrap().iter().enumerate() {
            gpu.install_weights(weights).unwrap();
            let slot = cpu.install_weights(weights).unwrap();
            let adapted = log_probs(&mut cpu, Some(slot), n_top);
            let pairs = adapted.iter().zip(&of_base);
            let effect = pairs.map(|(adapted, base)| (adapted - base).abs()).fold(0.0, f32::max);
            assert!(effect > 0.1 && effect < 5.0, "{base}, kind {index}: moved by {effect}");
        }
    }
}

/// Of every token behind each position of a short prompt, by position and token.
fn log_probs(runner: &mut dyn StepRunner, slot: Option<AdapterSlot>, n_top: u32) -> Vec<f32> {
    let mut run = Run::in_blocks(&[5, 77, 12, 300, 9], 0..1, slot);
    let sampled = prefill_all(runner, &mut run, 5, n_top);
    let by_token = |sampled: SampledToken| {
        let mut top = sampled.top;
        top.sort_by_key(|(token, _)| *token);
        top.into_iter().map(|(_, logprob)| logprob)
    };
    sampled.into_iter().flat_map(by_token).collect()
}
