//! The numbers of sums.

use half::f16;
use pleach_adapters::compose::{Part, SumError, sum};
use pleach_engine::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX, OwnMatrix, SiteWeights},
    site::{Site, TargetModule},
};

use super::{
    delta, parts,
    support::random::{Random, case_seed},
    toy,
};

/// Of a weight of `A`: its own rounding and that of the scale.
const F32_SHARE: f64 = 1.0 / (1 << 23) as f64;
/// Rounding of `A` to f16 beyond that.
const F16_SHARE: f64 = 1.0 / (1 << 11) as f64;
/// The same below the normal numbers of f16.
const F16_LEAST: f64 = 1.0 / (1 << 25) as f64;

const Q: Site = Site { layer: 0, module: TargetModule::QProj };
const DOWN: Site = Site { layer: 1, module: TargetModule::DownProj };
const N_IN: usize = 7;
const N_OUT: usize = 5;

/// Weights that are f16, so that only what the sum does to them is rounded.
fn site(random: &mut Random, site: Site, rank: usize, lora_scale: f32) -> SiteWeights {
    let mut values = |n: usize| -> Vec<f32> {
        random.units(n).into_iter().map(|value| f16::from_f32(value).to_f32()).collect()
    };
    SiteWeights::lora(site, rank, lora_scale, values(rank * N_IN), values(N_OUT * rank))
}

fn adapter(sites: Vec<SiteWeights>) -> AdapterWeights {
    AdapterWeights { sites, ..AdapterWeights::default() }
}

/// The sum's delta at a site against the sum of the parts' deltas there, with `A` as it is and as a device holds it.
fn check(parts: &[Part<'_>], composed: &AdapterWeights, at: Site) {
    let find = |weights: &AdapterWeights| weights.sites.iter().find(|s| s.site == at).cloned();
    let Some(found) = find(composed) else { panic!("{at} is missing") };
    let (mut expected, mut magnitude) = (vec![0.0; N_OUT * N_IN], vec![0.0; N_OUT * N_IN]);
    for part in parts {
        let Some(site) = find(part.weights) else { continue };
        let (delta, magnitudes) = delta(&site);
        let scale = f64::from(part.scale);
        for i in 0..expected.len() {
            expected[i] += scale * delta[i];
            magnitude[i] += scale.abs() * magnitudes[i];
        }
    }
    let held = SiteWeights {
        a: found.a.iter().map(|&value| f16::from_f32(value).to_f32()).collect(),
        ..found.clone()
    };
    // B is at most 1.
    let least = f64::from(found.lora_scale) * found.rank as f64 * F16_LEAST;
    for (what, site, share, least) in [("f32", found, 0.0, 0.0), ("f16", held, F16_SHARE, least)] {
        for (i, (found, expected)) in delta(&site).0.iter().zip(&expected).enumerate() {
            let bound = magnitude[i] * (share + F32_SHARE) + least;
            let error = (found - expected).abs();
            assert!(error <= bound, "{what} {at} {i}: {found} {expected}, off by {error}");
        }
    }
}

#[test]
fn a_sum_is_the_sum_of_the_deltas() {
    let mut random = Random::new(case_seed(300));
    for case in 0..200 {
        let weights: Vec<_> = (0..random.between(1, 8))
            .map(|_| {
                let mut sites = Vec::new();
                for at in [Q, DOWN] {
                    let rank = random.between(1, 9);
                    // alpha / r, alpha / √r, and what nobody would train.
                    let scale = [2.0, 1.0 / 3.0, 5f32.sqrt(), -0.7, 1e-3, 40.0][random.below(6)];
                    if random.chance(75) {
                        sites.push(site(&mut random, at, rank, scale));
                    }
                }
                adapter(sites)
            })
            .collect();
        let parts: Vec<_> = weights
            .iter()
            .map(|weights| Part {
                weights,
                scale: [1.0, 0.7, -1.0, -0.01, 3.3, 100.0][random.below(6)],
            })
            .collect();
        let composed = sum(&parts, LORA_RANK_MAX).unwrap();
        for at in [Q, DOWN] {
            let rank: usize = weights
                .iter()
                .flat_map(|weights| &weights.sites)
                .filter(|site| site.site == at)
                .map(|site| site.rank)
                .sum();
            let found = composed.sites.iter().find(|site| site.site == at);
            assert_eq!(found.map_or(0, |site| site.rank), rank, "case {case}");
            if rank > 0 {
                check(&parts, &composed, at);
            }
        }
    }
}

#[test]
fn parts_of_one_scale_keep_their_weights() {
    let mut random = Random::new(case_seed(301));
    let one = adapter(vec![site(&mut random, Q, 3, 2.0)]);
    let other = adapter(vec![site(&mut random, Q, 2, 4.0)]);
    let composed =
        sum(&[Part { weights: &one, scale: 0.5 }, Part { weights: &other, scale: 0.25 }], 9)
            .unwrap();
    let found = &composed.sites[0];
    assert_eq!((found.rank, found.lora_scale), (5, 1.0));
    assert_eq!(found.a, [one.sites[0].a.as_slice(), &other.sites[0].a].concat());
    for n in 0..N_OUT {
        let row = [&one.sites[0].b[n * 3..][..3], &other.sites[0].b[n * 2..][..2]].concat();
        assert_eq!(found.b[n * 5..][..5], row);
    }
    // Alone, with any scale.
    for scale in [1.0, 0.7, -0.3] {
        let alone = sum(&[Part { weights: &one, scale }], 9).unwrap().sites.remove(0);
        assert_eq!((alone.lora_scale, &alone.b), ((2.0 * scale).abs(), &one.sites[0].b));
        let signed: Vec<f32> = one.sites[0].a.iter().map(|value| value * scale.signum()).collect();
        assert_eq!(alone.a, signed);
    }
}

#[test]
fn what_is_scaled_to_nothing_is_left_out() {
    let mut random = Random::new(case_seed(302));
    let one = adapter(vec![site(&mut random, Q, 3, 2.0), site(&mut random, DOWN, 3, 0.0)]);
    let other = adapter(vec![site(&mut random, Q, 250, 1.0)]);
    let all = |scales: [f32; 2]| {
        let parts =
            [Part { weights: &one, scale: scales[0] }, Part { weights: &other, scale: scales[1] }];
        sum(&parts, 256).unwrap()
    };
    assert_eq!(all([1.0, 0.0]), adapter(vec![one.sites[0].clone()]));
    assert_eq!(all([0.0, 1.0]), other);
    assert_eq!(all([0.0, -0.0]), AdapterWeights::default());
}

#[test]
fn biases_are_added_up() {
    let (adapters, _) = toy(&["bias-r3", "plain-r4"]);
    let composed = sum(&parts(&adapters, &[-0.5, 2.0]), LORA_RANK_MAX).unwrap();
    for site in &composed.sites {
        let of_part = adapters[0].weights.sites.iter().find(|part| part.site == site.site);
        let Some(part) = of_part else {
            assert_eq!(site.bias, None, "{}", site.site);
            continue;
        };
        let (found, expected) = (site.bias.as_ref().unwrap(), part.bias.as_ref().unwrap());
        for (found, expected) in found.iter().zip(expected) {
            let (found, expected) = (site.lora_scale * found, -0.5 * part.lora_scale * expected);
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
        }
    }
    assert!(composed.sites.iter().any(|site| site.bias.is_some()));
}

#[test]
fn what_is_no_delta_is_refused_with_its_part_and_site() {
    let mut random = Random::new(case_seed(303));
    let plain = adapter(vec![site(&mut random, Q, 3, 2.0)]);
    let mut dora = plain.clone();
    dora.sites[0].magnitude = Some(vec![1.0; N_OUT]);
    let own = || Some(OwnMatrix { values: vec![0.0], of_base: true });
    let head = AdapterWeights { head: own(), ..plain.clone() };
    let embedding = AdapterWeights { embedding: own(), ..plain.clone() };
    let matrix = "a whole matrix of the adapter's own";
    for (weights, site, kind, text) in [
        (
            dora,
            Q,
            "DoRA",
            "model.layers.0.self_attn.q_proj: DoRA cannot be composed with other adapters",
        ),
        (
            head,
            Site::HEAD,
            matrix,
            "lm_head: a whole matrix of the adapter's own cannot be composed with other adapters",
        ),
        (
            embedding,
            Site::EMBEDDING,
            matrix,
            "model.embed_tokens: a whole matrix of the adapter's own cannot be composed with other adapters",
        ),
    ] {
        let parts = [Part { weights: &plain, scale: 1.0 }, Part { weights: &weights, scale: 0.5 }];
        let error = sum(&parts, LORA_RANK_MAX).unwrap_err();
        assert_eq!(error, SumError::Kind { part: 1, site, kind });
        assert_eq!(error.to_string(), text);
    }
    let wide = adapter(vec![site(&mut random, DOWN, 256, 2.0)]);
    let part = Part { weights: &wide, scale: 1.0 };
    assert_eq!(sum(&[part; 2], LORA_RANK_MAX).unwrap().sites[0].rank, 512);
    assert_eq!(
        sum(&[part; 3], LORA_RANK_MAX).unwrap_err().to_string(),
        "model.layers.1.mlp.down_proj: the ranks add up to 768, at most 512 can be composed"
    );
}
