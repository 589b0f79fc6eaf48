//! Rows of a tiny model under compositions, on every instruction set, in f32 and int8.

use pleach_adapters::{
    compose::{Part, sum},
    load_peft,
};
use pleach_engine::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX, SiteWeights},
    backend::StepRunner as _,
    cpu::{CpuBackend, Isa},
    model::{Activations, Decoder},
    sampler::SampledToken,
    spec::ModelSpec,
    step_batch::AdapterSlot,
};

use super::{
    delta,
    support::{
        Run, Tensors, fixtures, isas, load,
        mixed::score,
        random::{Random, case_seed},
    },
};

/// Largest difference of a log-probability with f32 activations, where adapters are f32 too.
const TOLERANCE: f32 = 2e-4;
/// Mean Kullback–Leibler divergence with int8 activations, where adapters are f16 and the summed delta is rounded otherwise
/// than its parts; 0.0004 seen, 0.0011 between any adapter and PEFT.
const INT8_KL: f64 = 1e-3;
/// Least divergence of a composition from the base.
const CHANGE_KL: f64 = 0.05;

/// Folders of `tests/fixtures/models`, and scales.
type Terms = [(&'static str, f32)];

/// Mixed ranks and scales, patterns, rsLoRA, a site of one layer only, negative scales; biases; head and embedding.
const COMPOSITIONS: [&Terms; 4] = [
    &[("lora/llama-plain/r8-patterns", 0.7), ("lora/llama-plain/r8-rslora-patterns", -0.5)],
    &[("lora/llama-plain/r64-one-layer", 1.0), ("lora/llama-plain/r3-all-linear", 0.3)],
    &[
        ("kinds/llama-plain/bias-r4", -0.6),
        ("kinds/llama-plain/head-bias", 0.4),
        ("lora/llama-plain/r1-q", 2.0),
    ],
    &[("kinds/llama-plain/embed-head-r17", 0.5), ("lora/llama-plain/r8-regex", 0.8)],
];

fn model(isa: Isa, activations: Activations) -> Decoder<CpuBackend> {
    load(&fixtures().join("models/llama-plain.gguf"), isa, 2, activations)
}

fn weights(terms: &Terms, spec: &ModelSpec) -> Vec<(AdapterWeights, f32)> {
    let load = |&(folder, scale): &(&str, f32)| {
        let path = fixtures().join("models").join(folder);
        (load_peft(&path, spec).unwrap().weights, scale)
    };
    terms.iter().map(load).collect()
}

fn composed(terms: &Terms, spec: &ModelSpec) -> AdapterWeights {
    let weights = weights(terms, spec);
    let parts: Vec<_> =
        weights.iter().map(|(weights, scale)| Part { weights, scale: *scale }).collect();
    sum(&parts, LORA_RANK_MAX).unwrap()
}

/// The same, by another way: the deltas themselves are added up, as factors of which one is the identity.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
fn dense(terms: &Terms, spec: &ModelSpec) -> AdapterWeights {
    let mut sites: Vec<SiteWeights> = Vec::new();
    let weights = weights(terms, spec);
    let mut names: Vec<_> = weights.iter().flat_map(|(w, _)| &w.sites).map(|s| s.site).collect();
    names.sort_unstable();
    names.dedup();
    for site in names {
        let (n_out, n_in) = spec.linear_shape(site.module);
        let mut total = vec![0f64; n_out * n_in];
        let mut bias: Option<Vec<f32>> = None;
        for (weights, scale) in &weights {
            let Some(part) = weights.sites.iter().find(|part| part.site == site) else { continue };
            for (total, value) in total.iter_mut().zip(delta(part).0) {
                *total += f64::from(*scale) * value;
            }
            let Some(own) = &part.bias else { continue };
            for (total, value) in bias.get_or_insert_with(|| vec![0.0; n_out]).iter_mut().zip(own) {
                *total += scale * part.lora_scale * value;
            }
        }
        let total: Vec<f32> = total.into_iter().map(|value| value as f32).collect();
        let rank = n_in.min(n_out);
        let identity = (0..rank * rank).map(|i| f32::from(u8::from(i % (rank + 1) == 0))).collect();
        let (a, b) = if rank == n_in { (identity, total) } else { (total, identity) };
        sites.push(SiteWeights { bias, ..SiteWeights::lora(site, rank, 1.0, a, b) });
    }
    AdapterWeights { sites, ..AdapterWeights::default() }
}

fn prompts() -> [Vec<u32>; 2] {
    let file = Tensors::open(&fixtures().join("models/llama-plain.safetensors"));
    ["short.ids", "long.ids"].map(|name| file.u32s(name))
}

/// Scores of both prompts under each slot, all in the same steps.
fn scores(
    model: &mut Decoder<CpuBackend>,
    slots: &[Option<AdapterSlot>],
) -> Vec<Vec<SampledToken>> {
    let prompts = prompts();
    let rows = slots.iter().flat_map(|slot| prompts.iter().map(move |ids| (ids, *slot)));
    let mut runs: Vec<_> = rows
        .zip(0..)
        .map(|((ids, slot), index): (_, u32)| {
            Run::in_blocks(ids, 16 * index..16 * (index + 1), slot)
        })
        .collect();
    let vocab = u32::try_from(model.spec().vocab).unwrap();
    score(model, &mut runs, &mut Random::new(case_seed(310)), vocab)
}

/// Log-probabilities of all tokens by token.
fn by_token(sampled: &SampledToken) -> Vec<(u32, f32)> {
    let mut top = sampled.top.clone();
    top.sort_unstable_by_key(|(token, _)| *token);
    top
}

/// Compares the rows of two adapters; returns the mean divergence.
fn compare(
    what: &str,
    found: &[Vec<SampledToken>],
    expected: &[Vec<SampledToken>],
    exact: bool,
) -> f64 {
    let (mut kl, mut n_rows) = (0.0, 0.0);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        n_rows += 1.0;
        for ((token, found), (other, expected)) in
            by_token(found).into_iter().zip(by_token(expected))
        {
            assert_eq!(token, other);
            let error = (found - expected).abs();
            assert!(!exact || error <= TOLERANCE, "{what}: token {token} off by {error}");
            kl += f64::from(expected).exp() * f64::from(expected - found);
        }
    }
    assert!(n_rows > 40.0, "{what}: {n_rows} rows");
    kl / n_rows
}

#[test]
fn rows_under_a_composition_are_those_under_the_sum_of_the_deltas() {
    let mut worst = 0f64;
    for isa in isas() {
        for activations in [Activations::F32, Activations::Int8] {
            let mut model = model(isa, activations);
            let spec = model.spec().clone();
            let mut slots = vec![None];
            for terms in COMPOSITIONS {
                slots.push(Some(model.install_weights(&composed(terms, &spec)).unwrap()));
                slots.push(Some(model.install_weights(&dense(terms, &spec)).unwrap()));
            }
            let scores = scores(&mut model, &slots);
            let (base, adapted) = scores.split_at(2);
            for (terms, rows) in COMPOSITIONS.iter().zip(adapted.chunks_exact(4)) {
                let what = format!("{isa} {activations} {terms:?}");
                let (found, expected) = rows.split_at(2);
                let kl = compare(&what, found, expected, activations == Activations::F32);
                assert!(kl.abs() < INT8_KL, "{what}: mean divergence {kl}");
                worst = worst.max(kl);
                let kl = compare(&what, found, base, false);
                assert!(kl > CHANGE_KL, "{what}: it changes next to nothing");
            }
        }
    }
    eprintln!("mean divergence at most {worst:.7}");
}

#[test]
fn a_row_under_a_composition_does_not_depend_on_its_neighbours() {
    for isa in isas() {
        for activations in [Activations::F32, Activations::Int8] {
            let mut model = model(isa, activations);
            let spec = model.spec().clone();
            let mut slots = vec![None];
            for terms in COMPOSITIONS {
                slots.push(Some(model.install_weights(&composed(terms, &spec)).unwrap()));
                let part = weights(&terms[..1], &spec).remove(0).0;
                slots.push(Some(model.install_weights(&part).unwrap()));
            }
            let together = scores(&mut model, &slots);
            for (slot, together) in slots.iter().zip(together.chunks_exact(2)) {
                let alone = scores(&mut model, &[*slot]);
                for (alone, together) in alone.iter().flatten().zip(together.iter().flatten()) {
                    assert_eq!(alone.token, together.token, "{isa} {activations} {slot:?}");
                    let bits = |sampled: &SampledToken| -> Vec<(u32, u32)> {
                        by_token(sampled).iter().map(|(t, l)| (*t, l.to_bits())).collect()
                    };
                    assert_eq!(bits(alone), bits(together), "{isa} {activations} {slot:?}");
                }
            }
        }
    }
}

#[test]
fn halves_of_the_largest_rank_are_the_whole() {
    // Rank 512 at every site, and an adapter whose outputs PEFT computed.
    const HALVES: &Terms = &[("lora/llama-plain/r256", 0.5), ("lora/llama-plain/r256", 0.5)];
    const WHOLE: &Terms = &[("lora/llama-plain/r256", 1.0)];
    for isa in isas() {
        for activations in [Activations::F32, Activations::Int8] {
            let mut model = model(isa, activations);
            let spec = model.spec().clone();
            let halves = composed(HALVES, &spec);
            assert!(halves.sites.iter().all(|site| site.rank == LORA_RANK_MAX));
            let whole = composed(WHOLE, &spec);
            assert_eq!(whole, weights(WHOLE, &spec).remove(0).0, "alone, an adapter is itself");
            let slots =
                [halves, whole].map(|weights| Some(model.install_weights(&weights).unwrap()));
            let scores = scores(&mut model, &slots);
            let what = format!("{isa} {activations}");
            let kl = compare(&what, &scores[..2], &scores[2..], activations == Activations::F32);
            assert!(kl.abs() < INT8_KL, "{what}: mean divergence {kl}");
        }
    }
}
