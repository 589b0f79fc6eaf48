//! Folders that are written, and shapes that adapters tell.

use pleach_adapters::{
    load_peft,
    peft::{CONFIG_FILE, PeftFiles, Shapes, TENSOR_FILE, save_peft},
};
use pleach_engine::{
    adapter_weights::{AdapterWeights, OwnMatrix, SiteWeights},
    site::{Site, TargetModule},
};
use serde_json::json;

use super::support::{Tensor, config, config_with, name, tensors_for, to_file, toy_spec};

const Q: Site = Site { layer: 0, module: TargetModule::QProj };
const DOWN: Site = Site { layer: 1, module: TargetModule::DownProj };

/// Sites of the toy model, with ranks and scales.
fn weights(sites: &[(Site, usize, f32)]) -> AdapterWeights {
    let spec = toy_spec(2);
    let values = |n: usize| (0..n).map(|i| 0.1 * i as f32 - 1.0).collect::<Vec<f32>>();
    let site = |&(site, rank, lora_scale): &(Site, usize, f32)| {
        let (n_out, n_in) = spec.linear_shape(site.module);
        SiteWeights::lora(site, rank, lora_scale, values(rank * n_in), values(n_out * rank))
    };
    let mut sites: Vec<_> = sites.iter().map(site).collect();
    sites.sort_by_key(|site| site.site);
    AdapterWeights { sites, ..AdapterWeights::default() }
}

#[test]
fn what_is_written_loads_as_the_same_weights() {
    let mut biased = weights(&[(Q, 2, 1.5), (DOWN, 2, 0.5), (Site::HEAD, 1, 1.5)]);
    for site in &mut biased.sites {
        site.bias = Some(vec![0.25; site.b.len() / site.rank]);
    }
    for weights in [
        // Scales whose alphas are no short decimals.
        weights(&[
            (Q, 3, 0.1),
            (DOWN, 7, 1.0 / 3.0),
            (Site::EMBEDDING, 5, -2.7),
            (Site::HEAD, 256, 1e-20),
        ]),
        weights(&[(Q, 4, 1.0), (Site { layer: 1, ..Q }, 4, 1.0), (DOWN, 4, 1.0)]),
        biased,
    ] {
        let dir = tempfile::tempdir().unwrap();
        save_peft(dir.path(), &weights, &toy_spec(2), None).unwrap();
        let loaded = load_peft(dir.path(), &toy_spec(2)).unwrap();
        assert!(loaded.weights == weights, "{:?}", std::fs::read(dir.path().join(CONFIG_FILE)));
        assert_eq!(loaded.base_model_name, None);
    }
}

#[test]
fn what_is_not_written_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |weights: &AdapterWeights| {
        save_peft(dir.path(), weights, &toy_spec(2), None).unwrap_err().to_string()
    };
    let mut dora = weights(&[(Q, 2, 1.0), (DOWN, 2, 1.0)]);
    dora.sites[1].magnitude = Some(vec![1.0; 6]);
    assert_eq!(refused(&dora), "model.layers.1.mlp.down_proj: DoRA is not written");
    let own = Some(OwnMatrix { values: Vec::new(), of_base: false });
    assert_eq!(
        refused(&AdapterWeights { head: own, ..weights(&[(Q, 2, 1.0)]) }),
        "lm_head: a whole matrix of the adapter's own is not written"
    );
    let bias = "`lora_bias` is for all sites of an adapter or none, and not for an embedding";
    let mut some = weights(&[(Q, 2, 1.0), (DOWN, 2, 1.0)]);
    some.sites[0].bias = Some(vec![1.0; 8]);
    assert_eq!(refused(&some), bias);
    let mut embedding = weights(&[(Site::EMBEDDING, 2, 1.0)]);
    embedding.sites[0].bias = Some(vec![1.0; 6]);
    assert_eq!(refused(&embedding), bias);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let gone = dir.path().join("gone");
    let error = save_peft(&gone, &weights(&[(Q, 2, 1.0)]), &toy_spec(2), None).unwrap_err();
    assert!(error.to_string().starts_with("adapter_model.safetensors: "), "{error}");
}

/// A folder with the toy model's usual adapter, changed.
fn folder(
    config: &serde_json::Value,
    edit: impl FnOnce(&mut super::support::Tensors),
) -> PeftFiles {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors_for(config, &toy_spec(2));
    edit(&mut tensors);
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    std::fs::write(dir.path().join(TENSOR_FILE), to_file(&tensors)).unwrap();
    PeftFiles::read(dir.path(), 1 << 20).unwrap()
}

#[test]
fn shapes_are_those_of_the_first_adapters() {
    let mut shapes = Shapes::default();
    let attention = config_with(json!({"target_modules": ["q_proj", "k_proj", "o_proj"]}));
    let first = folder(&attention, |_| {});
    let ends = folder(&config_with(json!({"target_modules": ["up_proj", "embed_tokens"]})), |_| {});
    for files in [&first, &ends] {
        shapes.learn(files).unwrap();
    }
    let (found, toy) = (shapes.spec(), toy_spec(2));
    for module in TargetModule::ALL.into_iter().chain(TargetModule::ENDS) {
        assert_eq!(found.linear_shape(module), toy.linear_shape(module), "{module:?}");
    }
    assert_eq!(found.n_layers, 2);
    for files in [&first, &ends] {
        assert_eq!(files.load(&found).unwrap().digest, files.load(&toy).unwrap().digest);
    }
    let tensor = name("1.self_attn.q_proj.lora_A.weight");
    let other = folder(&config(), |tensors| {
        tensors.insert(tensor.clone(), Tensor::f32(&[2, 5], std::iter::repeat(0.5)));
    });
    shapes.learn(&other).unwrap();
    assert_eq!(
        other.load(&shapes.spec()).unwrap_err().to_string(),
        format!("tensor `{tensor}` has shape [2, 5], expected [2, 6] for rank 2")
    );
}

#[test]
fn absurd_layers_are_not_believed() {
    let layer = u64::MAX;
    let tensor = name(&format!("{layer}.self_attn.q_proj.lora_A.weight"));
    let files = folder(&config(), |tensors| {
        tensors.insert(tensor.clone(), Tensor::f32(&[2, 6], std::iter::repeat(0.5)));
    });
    let mut shapes = Shapes::default();
    shapes.learn(&files).unwrap();
    assert_eq!(shapes.spec().n_layers, 2);
    assert_eq!(
        files.load(&shapes.spec()).unwrap_err().to_string(),
        format!("tensor `{tensor}`: the model has 2 layers")
    );
}
