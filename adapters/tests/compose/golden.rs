//! `merge` against PEFT's `add_weighted_adapter`, by the products of the factors: singular vectors have no sign of their own.

use pleach_adapters::{
    compose::{MergeError, MergeMethod, Merged, Part, merge},
    load_peft,
    peft::{CONFIG_FILE, save_peft},
};
use pleach_engine::{adapter_weights::SiteWeights, site::Site};
use serde_json::Value;

use super::{
    delta, parts,
    support::{Tensors, fixtures},
    toy,
};

/// Both round to f32; entries are of the size of 10.
const TOLERANCE: f64 = 2e-5;
/// PEFT decomposes in f32, and singular vectors of near values come apart the less.
const SVD_TOLERANCE: f64 = 1e-4;

fn quietly(parts: &[Part<'_>], method: MergeMethod) -> Result<Merged, MergeError> {
    merge(parts, method, &|_, _| {})
}

fn index() -> Vec<Value> {
    let text = std::fs::read(fixtures().join("merge/index.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap().as_array().unwrap().clone()
}

fn method(case: &Value) -> MergeMethod {
    match case["method"].as_str().unwrap() {
        "cat" => MergeMethod::Cat,
        "linear" => MergeMethod::Linear,
        "svd" => MergeMethod::Svd {
            rank: case["rank"].as_u64().map(|rank| usize::try_from(rank).unwrap()),
        },
        other => panic!("no method {other}"),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "weights are given as decimals")]
fn parts_of(case: &Value) -> (Vec<&str>, Vec<f32>) {
    let parts = case["parts"].as_array().unwrap().iter();
    parts.map(|part| (part[0].as_str().unwrap(), part[1].as_f64().unwrap() as f32)).unzip()
}

fn check_site(what: &str, expected: &Tensors, name: &str, site: &SiteWeights) {
    assert_eq!(site.lora_scale.to_bits(), 1f32.to_bits(), "{what}");
    let (found, _) = delta(site);
    let tolerance = if what.starts_with("svd") { SVD_TOLERANCE } else { TOLERANCE };
    let close = |found: f64, expected: f32| {
        assert!((found - f64::from(expected)).abs() < tolerance, "{what}: {found} {expected}");
    };
    for (found, expected) in found.into_iter().zip(expected.f32s(name)) {
        close(found, expected);
    }
    let bias = format!("{name}.bias");
    if expected.names().contains(&bias) {
        let found = site.bias.as_deref().unwrap_or_else(|| panic!("{what}: no bias"));
        for (found, expected) in found.iter().zip(expected.f32s(&bias)) {
            close(f64::from(*found), expected);
        }
    } else {
        assert!(site.bias.iter().flatten().all(|bias| *bias == 0.0), "{what}: a bias");
    }
}

#[test]
fn merged_adapters_equal_those_of_peft() {
    let expected = Tensors::open(&fixtures().join("merge/expected.safetensors"));
    let cases = index();
    assert!(cases.len() >= 7);
    for case in &cases {
        let case_name = case["case"].as_str().unwrap();
        let (names, scales) = parts_of(case);
        let (adapters, _) = toy(&names);
        let merged = quietly(&parts(&adapters, &scales), method(case)).unwrap();
        for site in &merged.weights.sites {
            let name = format!("{case_name}/{}", site.site.path());
            check_site(&name, &expected, &name, site);
        }
        let names = expected.names();
        let of_case = names.iter().filter_map(|name| name.strip_prefix(&format!("{case_name}/")));
        let n_sites = of_case.filter(|site| site.rsplit('.').next() != Some("bias")).count();
        assert_eq!(merged.weights.sites.len(), n_sites, "{case_name}");
    }
}

#[test]
fn a_merged_folder_loads_as_what_was_merged() {
    for case in &index() {
        let (names, scales) = parts_of(case);
        let (adapters, spec) = toy(&names);
        let merged = quietly(&parts(&adapters, &scales), method(case)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        save_peft(dir.path(), &merged.weights, &spec, Some("toy/merge")).unwrap();
        let loaded = load_peft(dir.path(), &spec).unwrap();
        assert_eq!(loaded.weights, merged.weights, "{case}");
        assert_eq!(loaded.base_model_name.as_deref(), Some("toy/merge"));

        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(CONFIG_FILE)).unwrap()).unwrap();
        let keys: Vec<_> = config.as_object().unwrap().keys().map(String::as_str).collect();
        // All of them are of PEFT 0.21.2; it fills in the others.
        assert_eq!(
            keys,
            [
                "peft_type",
                "task_type",
                "base_model_name_or_path",
                "inference_mode",
                "r",
                "lora_alpha",
                "rank_pattern",
                "alpha_pattern",
                "target_modules",
                "lora_dropout",
                "bias",
                "lora_bias",
                "use_rslora",
                "use_dora",
                "fan_in_fan_out",
                "init_lora_weights",
                "modules_to_save",
            ]
        );
    }
}

#[test]
fn ranks_of_merged_adapters() {
    let (adapters, _) = toy(&["patterns", "plain-r4", "rslora-r4"]);
    let parts = parts(&adapters, &[1.0, 0.25, 0.5]);
    let rank_of = |merged: &Merged, path: &str| {
        merged.weights.sites.iter().find(|site| site.site.path() == path).map(|site| site.rank)
    };
    let ranks = |method| {
        let merged = quietly(&parts, method).unwrap();
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"]
            .map(|path| rank_of(&merged, path))
    };
    assert_eq!(ranks(MergeMethod::Cat), [Some(10), Some(13), Some(4)]);
    // The largest of any adapter, as far as a site's matrices have it.
    assert_eq!(ranks(MergeMethod::Svd { rank: None }), [Some(5), Some(5), Some(4)]);
    assert_eq!(ranks(MergeMethod::Svd { rank: Some(2) }), [Some(2); 3]);
    let wide = ranks(MergeMethod::Svd { rank: Some(200) });
    assert!(wide.iter().flatten().all(|rank| *rank <= 13), "{wide:?}");
}

#[test]
fn what_is_lost_is_told_by_site() {
    let (adapters, _) = toy(&["plain-r4", "rslora-r4"]);
    let parts = parts(&adapters, &[1.0, 1.0]);
    let exact = quietly(&parts, MergeMethod::Cat).unwrap();
    assert!(exact.losses.is_empty());
    let cut = quietly(&parts, MergeMethod::Svd { rank: Some(3) }).unwrap();
    assert_eq!(cut.losses.len(), exact.weights.sites.len());
    for ((loss, cut), exact) in cut.losses.iter().zip(&cut.weights.sites).zip(&exact.weights.sites)
    {
        assert_eq!((loss.site, loss.rank), (cut.site, 3));
        let (cut, exact) = (delta(cut).0, delta(exact).0);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let missing = norm(&mut cut.iter().zip(&exact).map(|(cut, exact)| cut - exact));
        let share = missing / norm(&mut exact.iter().copied());
        assert!((share - loss.relative_error).abs() < 1e-5, "{loss:?}: {share}");
        assert!(loss.relative_error > 0.001, "{loss:?}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let (adapters, _) = toy(&["plain-r4", "patterns", "bias-r3"]);
    let refused = |scales: &[f32], method| {
        quietly(&parts(&adapters, scales), method).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&[1.0, 1.0, 0.0], MergeMethod::Linear),
        "model.layers.0.self_attn.q_proj: `linear` needs equal ranks, found 4 and 2"
    );
    assert_eq!(refused(&[0.0; 3], MergeMethod::Cat), "nothing is left to merge: all weights are 0");
    assert_eq!(
        refused(&[0.0, 1.0, 1.0], MergeMethod::Cat),
        "an adapter with `lora_bias` and one on embed_tokens cannot be merged"
    );
    for rank in [0, 257] {
        assert_eq!(
            refused(&[1.0; 3], MergeMethod::Svd { rank: Some(rank) }),
            format!("rank {rank} is outside 1..=256")
        );
    }
    let wide = SiteWeights::lora(Site::HEAD, 129, 1.0, vec![0.5; 129 * 12], vec![0.5; 16 * 129]);
    let wide =
        pleach_engine::adapter_weights::AdapterWeights { sites: vec![wide], ..Default::default() };
    let twice = [Part { weights: &wide, scale: 1.0 }, Part { weights: &wide, scale: -1.0 }];
    assert_eq!(
        quietly(&twice, MergeMethod::Cat).unwrap_err().to_string(),
        "lm_head: the ranks add up to 258, at most 256 can be composed"
    );
    assert_eq!(quietly(&twice, MergeMethod::Svd { rank: None }).unwrap().weights.sites[0].rank, 12);
}
