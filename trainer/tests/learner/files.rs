//! PEFT folders that are served, and training states that are read back.

use std::collections::BTreeMap;

use pleach_adapters::load_peft;
use pleach_engine::{
    adapter_weights::AdapterWeights,
    site::{Site, TargetModule},
};
use pleach_trainer::{LoraSettings, Objective, Precision, TrainState, save_peft};

use crate::{learner, settings, supervised, tiny};

/// An adapter with values everywhere, as after training.
fn trained(settings: &LoraSettings) -> AdapterWeights {
    let mut weights = settings.fresh(tiny().spec(), 3).unwrap();
    for (index, site) in weights.sites.iter_mut().enumerate() {
        for (i, value) in site.b.iter_mut().enumerate() {
            *value = ((index * 31 + i * 7) % 101) as f32 / 50.0 - 1.0;
        }
    }
    weights
}

#[test]
fn a_saved_adapter_is_the_one_that_is_loaded() {
    let spec = tiny().spec().clone();
    let site = |layer, module| Site { layer, module };
    let mixed = LoraSettings {
        ranks: BTreeMap::from([
            (site(0, TargetModule::QProj), 3),
            (site(2, TargetModule::DownProj), 8),
        ]),
        use_rslora: true,
        ..LoraSettings::all_linear(4)
    };
    let some = LoraSettings {
        modules: vec![TargetModule::VProj],
        ranks: BTreeMap::from([
            (site(1, TargetModule::VProj), 0),
            (site(2, TargetModule::UpProj), 2),
        ]),
        ..LoraSettings::all_linear(16)
    };
    for settings in [LoraSettings::all_linear(4), mixed, some] {
        let weights = trained(&settings);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter");
        save_peft(&path, &weights, &settings, &spec, "a-base", Precision::F32).unwrap();
        let loaded = load_peft(&path, &spec).unwrap();
        assert_eq!(loaded.weights, weights);
        assert_eq!(loaded.base_model_name.as_deref(), Some("a-base"));
        // Again, over the old files, in half the bytes.
        save_peft(&path, &weights, &settings, &spec, "a-base", Precision::F16).unwrap();
        let halved = load_peft(&path, &spec).unwrap();
        assert!(halved.stored_f16_exact && halved.tensor_bytes * 2 == loaded.tensor_bytes);
        let values = halved.weights.arrays().flatten().zip(weights.arrays().flatten());
        for (halved, value) in values {
            // Steps of f16: relative, and 2⁻²⁴ near zero.
            assert!((halved - value).abs() <= value.abs() * 1e-3 + 6e-8, "{halved} {value}");
        }
        let names: Vec<_> = std::fs::read_dir(&path).unwrap().collect();
        assert_eq!(names.len(), 2, "drafts are left: {names:?}");
    }
}

#[test]
fn a_state_is_read_back_and_others_are_refused() {
    let spec = tiny().spec().clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut run = learner(settings(Objective::Sft, 0.0), 128);
    run.step(supervised()).unwrap();
    let state = run.state("here");
    state.save(&path, &spec).unwrap();
    let first = std::fs::read(&path).unwrap();
    state.save(&path, &spec).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "a state has one form");
    assert_eq!(TrainState::load(&path, &spec, run.adapter()).unwrap(), state);

    let message = |path: &std::path::Path, like: &AdapterWeights| {
        TrainState::load(path, &spec, like).unwrap_err().to_string()
    };
    let other = LoraSettings::all_linear(8).fresh(&spec, 0).unwrap();
    assert_eq!(
        message(&path, &other),
        "the training state has no tensor model.layers.0.self_attn.q_proj.lora_A of shape [8, 64]"
    );
    let like = run.adapter();
    assert!(message(&folder.path().join("none"), like).starts_with("cannot read or write"));
    let adapter = folder.path().join("adapter");
    save_peft(&adapter, like, &LoraSettings::all_linear(4), &spec, "", Precision::F32).unwrap();
    assert_eq!(
        message(&adapter.join("adapter_model.safetensors"), like),
        "the file is no training state of version 1"
    );
    for length in [0, 7, 100, first.len() - 1] {
        std::fs::write(&path, &first[..length]).unwrap();
        assert_eq!(message(&path, like), "the training state is damaged");
    }
}
