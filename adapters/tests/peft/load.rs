//! Whole adapters: the reference ones, small ones in every spelling, and one for each error.

use std::{fs, path::Path};

use pleach_adapters::{
    AdapterError, load_peft,
    peft::{CONFIG_FILE, TENSOR_FILE, load_peft_bytes, tensor_file_bytes_max},
};
use pleach_engine::site::TargetModule;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::{
    Tensor, check_refused, config, config_with, fixture, load, name, raw_file, smollm2_spec,
    tensors_for, to_file, toy_spec,
};

/// Ours, without what another model's file could bring along.
fn expected_digest(adapter: &str) -> String {
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap();
    expected["digests"][adapter].as_str().unwrap().to_owned()
}

#[test]
fn reference_adapters() {
    let pirate = load_peft(&fixture("pirate"), &smollm2_spec()).unwrap();
    assert_eq!(pirate.weights.sites.len(), 30 * 7);
    assert!(pirate.weights.sites.iter().all(|site| (site.rank, site.lora_scale) == (8, 2.0)));
    assert_eq!(pirate.target_modules, TargetModule::ALL);
    assert_eq!(
        (pirate.rank_max, pirate.n_parameters, pirate.tensor_bytes),
        (8, 2_442_240, 4_884_480)
    );
    assert_eq!(pirate.base_model_name.as_deref(), Some("HuggingFaceTB/SmolLM2-135M-Instruct"));
    assert!(pirate.stored_f16_exact);

    let extract = load_peft(&fixture("extract"), &smollm2_spec()).unwrap();
    assert_eq!(extract.weights.sites.len(), 30 * 2);
    assert!(extract.weights.sites.iter().all(|site| (site.rank, site.lora_scale) == (16, 4.0)));
    assert_eq!(extract.target_modules, [TargetModule::QProj, TargetModule::VProj]);
    assert_eq!(
        (extract.rank_max, extract.n_parameters, extract.tensor_bytes),
        (16, 921_600, 1_843_200)
    );

    for (adapter, loaded, digest) in [
        ("pirate", pirate, "ba13f3ca6ebd379b7589a7e0be092ee833548ba1a85a85d0ff69fbad05f6a224"),
        ("extract", extract, "2182d9260a7a08212b5d7a644b3e3b7ba22d58482acf1d4674f5e9c68fd945c6"),
    ] {
        assert_eq!(loaded.digest.to_string(), digest);
        assert_eq!(digest, expected_digest(adapter));
    }
}

#[test]
fn ranks_and_scales_by_pattern_reach_the_weights() {
    let config = config_with(json!({
        "use_rslora": true, "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"layers.1.mlp.down_proj": 10},
    }));
    let loaded = load(&config, &tensors_for(&config, &toy_spec(2))).unwrap();
    let found: Vec<_> =
        loaded.weights.sites.iter().map(|site| (site.rank, site.lora_scale)).collect();
    assert_eq!(found, [(2, 4.0 / 2.0_f32.sqrt()), (4, 2.0), (2, 4.0 / 2.0_f32.sqrt()), (4, 5.0)]);
    assert_eq!(loaded.rank_max, 4);
}

#[test]
fn equal_weights_are_one_generation_however_stored() {
    let tensors = tensors_for(&config(), &toy_spec(2));
    let plain = load(&config(), &tensors).unwrap();
    assert!(plain.stored_f16_exact);
    for dtype in [Dtype::F16, Dtype::BF16] {
        let cast =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.cast(dtype))).collect();
        let cast = load(&config(), &cast).unwrap();
        assert_eq!(
            (cast.digest, cast.tensor_bytes),
            (plain.digest, plain.tensor_bytes / 2),
            "{dtype:?}"
        );
    }
    for (from, to) in [
        ("base_model.model.model.", "model."),
        ("base_model.model.model.", "base_model.model."),
        ("base_model.model.model.", ""),
        (".weight", ".default.weight"),
    ] {
        let renamed =
            tensors.iter().map(|(name, tensor)| (name.replace(from, to), tensor.clone())).collect();
        assert_eq!(load(&config(), &renamed).unwrap().digest, plain.digest, "{from} -> {to}");
    }
    let header_and_data = reversed_file(&tensors);
    let reversed =
        load_peft_bytes(config().to_string().as_bytes(), &header_and_data, &toy_spec(2)).unwrap();
    assert_eq!(reversed.weights, plain.weights);

    let other_scale = load(&config_with(json!({"lora_alpha": 5})), &tensors).unwrap();
    assert_ne!(other_scale.digest, plain.digest);
    let filed_otherwise =
        config_with(json!({"task_type": null, "base_model_name_or_path": "other"}));
    assert_eq!(load(&filed_otherwise, &tensors).unwrap().digest, plain.digest);
}

/// Data in descending order of names, header in ascending order.
fn reversed_file(tensors: &crate::support::Tensors) -> Vec<u8> {
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for (name, tensor) in tensors.iter().rev() {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry =
            json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.shift_insert(0, name.clone(), entry);
    }
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    raw_file(&Value::Object(header).to_string(), &data)
}

#[test]
fn values_beyond_f16_are_noticed() {
    let mut tensors = tensors_for(&config(), &toy_spec(2));
    tensors.insert(
        name("0.self_attn.q_proj.lora_A.weight"),
        Tensor::f32(&[2, 6], std::iter::repeat(1.000_1)),
    );
    assert!(!load(&config(), &tensors).unwrap().stored_f16_exact);
}

#[test]
fn every_tensor_must_belong_to_a_targeted_site() {
    let extra = |rest: &str| {
        let name = rest.to_owned();
        move |tensors: &mut crate::support::Tensors| {
            tensors.insert(name, Tensor::f32(&[2, 6], std::iter::repeat(0.0)));
        }
    };
    let unknown = name("0.self_attn.qkv_proj.lora_A.weight");
    check_refused(
        extra(&unknown),
        &format!("tensor `{unknown}` belongs to no linear of this model"),
    );
    for (rest, setting) in [
        (name("0.self_attn.q_proj.lora_magnitude_vector"), "use_dora"),
        (name("0.self_attn.q_proj.lora_B.bias"), "lora_bias"),
        ("base_model.model.lm_head.weight".to_owned(), "modules_to_save"),
        ("base_model.model.model.embed_tokens.weight".to_owned(), "modules_to_save"),
    ] {
        let message =
            format!("tensor `{rest}`: adapter_config.json does not ask for it with `{setting}`");
        check_refused(extra(&rest), &message);
    }
    for rest in ["model.embed_tokens.lora_embedding_A", "lm_head.base_layer.weight"] {
        let tensor = format!("base_model.model.{rest}");
        let message = format!("tensor `{tensor}`: adapter_config.json does not target this linear");
        check_refused(extra(&tensor), &message);
    }
    for (rest, feature) in [
        (name("0.self_attn.q_proj.bias"), "a bias of the base (`bias`)"),
        (name("0.self_attn.q_proj.base_layer.weight"), "a weight of the base"),
        (
            "base_model.model.model.embed_tokens.lora_magnitude_vector".to_owned(),
            "DoRA of an embedding",
        ),
        (
            "base_model.model.model.norm.modules_to_save.default.weight".to_owned(),
            "a whole saved module (`modules_to_save`) other than embed_tokens and lm_head",
        ),
    ] {
        check_refused(extra(&rest), &format!("tensor `{rest}` is not supported: {feature}"));
    }
    let deep = name("2.self_attn.q_proj.lora_A.weight");
    check_refused(extra(&deep), &format!("tensor `{deep}`: the model has 2 layers"));
    let untargeted = name("1.self_attn.k_proj.lora_A.weight");
    check_refused(
        extra(&untargeted),
        &format!("tensor `{untargeted}`: adapter_config.json does not target this linear"),
    );
    let foreign = "model.layers.0.self_attn.q_proj.lora_A.weight";
    let first = name("0.mlp.down_proj.lora_A.weight");
    check_refused(
        extra(foreign),
        &format!("tensor `{foreign}` is named in another way than `{first}`"),
    );
}

/// What PEFT writes for this kind on the toy model, in eighths.
fn tensors_of_kind(config: &Value) -> crate::support::Tensors {
    let mut tensors = tensors_for(config, &toy_spec(2));
    let eighths =
        |shape: &[usize]| Tensor::f32(shape, (0..13_u8).cycle().map(|i| f32::from(i) / 8.0));
    let rows: Vec<(String, usize)> = tensors
        .iter()
        .filter(|(name, _)| name.contains("lora_B.weight"))
        .map(|(name, tensor)| (name.clone(), tensor.shape[0]))
        .collect();
    for (name, n_out) in rows {
        if config["use_dora"] == true {
            let name = name.replace("lora_B.weight", "lora_magnitude_vector");
            tensors.insert(name, eighths(&[n_out]));
        }
        if config["lora_bias"] == true {
            tensors.insert(name.replace("lora_B.weight", "lora_B.bias"), eighths(&[n_out]));
        }
    }
    for module in config["modules_to_save"].as_array().into_iter().flatten() {
        let root = if module == "lm_head" { "" } else { "model." };
        let name = format!("base_model.model.{root}{}.weight", module.as_str().unwrap());
        tensors.insert(name, eighths(&[32, 6]));
    }
    tensors
}

#[test]
fn every_kind_must_have_its_tensors_in_its_shapes() {
    let q = name("0.self_attn.q_proj.lora_B.weight");
    for (edits, part, shape, expected) in [
        (json!({"use_dora": true}), "lora_magnitude_vector", vec![8, 1], "[8]"),
        (json!({"lora_bias": true}), "lora_B.bias", vec![6], "[8]"),
        (json!({"modules_to_save": ["lm_head"]}), "lm_head", vec![6, 32], "[32, 6]"),
        (json!({"modules_to_save": ["embed_tokens"]}), "embed_tokens", vec![33, 6], "[32, 6]"),
    ] {
        let config = config_with(edits);
        let whole = tensors_of_kind(&config);
        let plain =
            load(&crate::support::config(), &tensors_for(&crate::support::config(), &toy_spec(2)));
        let loaded = load(&config, &whole).unwrap();
        assert_ne!(loaded.digest, plain.unwrap().digest, "{part}");
        let tensor = match part {
            "lm_head" => "base_model.model.lm_head.weight".to_owned(),
            "embed_tokens" => "base_model.model.model.embed_tokens.weight".to_owned(),
            part => q.replace("lora_B.weight", part),
        };
        let mut spoiled = whole.clone();
        spoiled.remove(&tensor).unwrap();
        assert_eq!(
            load(&config, &spoiled).unwrap_err().to_string(),
            format!("tensor `{tensor}` is missing, adapter_config.json targets its linear")
        );
        spoiled.insert(tensor.clone(), Tensor::f32(&shape, std::iter::repeat(1.0)));
        assert_eq!(
            load(&config, &spoiled).unwrap_err().to_string(),
            format!("tensor `{tensor}` has shape {shape:?}, expected {expected}")
        );
        let found = whole[&tensor].shape.clone();
        spoiled.insert(tensor.clone(), Tensor::f32(&found, std::iter::repeat(f32::NAN)));
        assert_eq!(
            load(&config, &spoiled).unwrap_err().to_string(),
            format!("tensor `{tensor}` holds NaN at index 0")
        );
    }
}

#[test]
fn weights_of_the_base_that_peft_saves_are_taken() {
    let config = config_with(json!({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}));
    let mut tensors = tensors_for(&config, &toy_spec(2));
    for (end, value) in [("model.embed_tokens", 0.5), ("lm_head", 0.25)] {
        let name = format!("base_model.model.{end}.base_layer.weight");
        tensors.insert(name, Tensor::f32(&[32, 6], std::iter::repeat(value)));
    }
    let loaded = load(&config, &tensors).unwrap();
    let (embedding, head) = (loaded.weights.embedding.unwrap(), loaded.weights.head.unwrap());
    assert!(embedding.of_base && head.of_base);
    assert_eq!((embedding.values, head.values), (vec![0.5; 32 * 6], vec![0.25; 32 * 6]));
    assert_eq!(
        loaded.target_modules,
        [TargetModule::QProj, TargetModule::EmbedTokens, TargetModule::LmHead]
    );
    // Raw state dicts name the adapter, but not at weights of the base.
    let raw = tensors.iter().map(|(name, tensor)| {
        let name = name.replace(".weight", ".default.weight");
        let name = name.replace("base_layer.default", "base_layer");
        let name = name.replace("embedding_A", "embedding_A.default");
        (name.replace("embedding_B", "embedding_B.default"), tensor.clone())
    });
    assert_eq!(load(&config, &raw.collect()).unwrap().digest, loaded.digest);
}

#[test]
fn every_targeted_site_must_have_its_tensors() {
    for rest in ["1.mlp.down_proj.lora_B.weight", "0.self_attn.q_proj.lora_A.weight"] {
        let missing = name(rest);
        check_refused(
            |tensors| drop(tensors.remove(&missing)),
            &format!("tensor `{missing}` is missing, adapter_config.json targets its linear"),
        );
    }
    let first = name("0.self_attn.q_proj.lora_A.weight");
    check_refused(
        std::collections::BTreeMap::clear,
        &format!("tensor `{first}` is missing, adapter_config.json targets its linear"),
    );
    // Layers that the config leaves out need none.
    let config = config_with(json!({"layers_to_transform": 1}));
    let loaded = load(&config, &tensors_for(&config, &toy_spec(2))).unwrap();
    assert!(loaded.weights.sites.iter().all(|site| site.site.layer == 1));
}

#[test]
fn shapes_types_and_values() {
    let a = name("0.self_attn.q_proj.lora_A.weight");
    let b = name("0.self_attn.q_proj.lora_B.weight");
    for (tensor, shape, expected) in
        [(&a, vec![3, 6], "[2, 6]"), (&a, vec![12], "[2, 6]"), (&b, vec![2, 8], "[8, 2]")]
    {
        check_refused(
            |tensors| {
                tensors.insert(tensor.clone(), Tensor::f32(&shape, std::iter::repeat(0.0)));
            },
            &format!("tensor `{tensor}` has shape {shape:?}, expected {expected} for rank 2"),
        );
    }
    check_refused(
        |tensors| {
            let double = tensors[&b].cast(Dtype::F64);
            tensors.insert(b.clone(), double);
        },
        &format!("{TENSOR_FILE}: tensor `{b}` has dtype F64, only F32, F16 and BF16 are read"),
    );
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            check_refused(
                |tensors| {
                    let values = (0..16).map(|i| if i == 5 { value } else { 0.5 });
                    let tensor = Tensor::f32(&[8, 2], values);
                    tensors.insert(
                        b.clone(),
                        if dtype == Dtype::F32 { tensor } else { tensor.cast(dtype) },
                    );
                },
                &format!("tensor `{b}` holds {shown} at index 5"),
            );
        }
    }
    let huge = config_with(json!({"lora_alpha": 1e300}));
    assert_eq!(
        load(&huge, &tensors_for(&config(), &toy_spec(2))).unwrap_err().to_string(),
        "model.layers.0.self_attn.q_proj: lora_scale holds a value that is not finite"
    );
}

/// A folder with the usual adapter of the toy model.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config().to_string()).unwrap();
    fs::write(dir.path().join(TENSOR_FILE), to_file(&tensors_for(&config(), &toy_spec(2))))
        .unwrap();
    dir
}

fn check_folder(edit: impl FnOnce(&Path), message: &str) {
    let dir = folder();
    assert!(load_peft(dir.path(), &toy_spec(2)).is_ok());
    edit(dir.path());
    assert_eq!(load_peft(dir.path(), &toy_spec(2)).unwrap_err().to_string(), message);
}

#[test]
fn folders_and_files() {
    let rename = |to: &'static str| {
        move |dir: &Path| fs::rename(dir.join(TENSOR_FILE), dir.join(to)).unwrap()
    };
    check_folder(rename("other"), "adapter_model.safetensors is missing");
    check_folder(
        rename("adapter_model.bin"),
        "adapter_model.bin is a pickle, only adapter_model.safetensors is read: convert it",
    );
    for part in ["adapter_model.safetensors.index.json", "adapter_model-00001-of-00002.safetensors"]
    {
        check_folder(
            rename(part),
            &format!(
                "{part}: weights in several files are not supported, only adapter_model.safetensors is read"
            ),
        );
    }
    check_folder(
        |dir| fs::remove_file(dir.join(CONFIG_FILE)).unwrap(),
        "adapter_config.json is missing",
    );
    check_folder(
        |dir| {
            fs::remove_file(dir.join(TENSOR_FILE)).unwrap();
            fs::create_dir(dir.join(TENSOR_FILE)).unwrap();
        },
        "adapter_model.safetensors is not a regular file",
    );
    check_folder(
        |dir| fs::write(dir.join(CONFIG_FILE), vec![b' '; (1 << 20) + 1]).unwrap(),
        "adapter_config.json has 1048577 bytes, at most 1048576 can be an adapter of this model",
    );
    let limit = tensor_file_bytes_max(&toy_spec(2));
    check_folder(
        |dir| fs::File::create(dir.join(TENSOR_FILE)).unwrap().set_len(limit + 1).unwrap(),
        &format!(
            "adapter_model.safetensors has {} bytes, at most {limit} can be an adapter of this model",
            limit + 1
        ),
    );
    check_folder(
        |dir| {
            let config = config_with(json!({"use_qalora": true}));
            fs::write(dir.join(CONFIG_FILE), config.to_string()).unwrap();
        },
        "adapter_config.json: `use_qalora` is not supported (QALoRA: inputs are pooled before lora_A): true",
    );
    // A pickle beside the safetensors file is not opened and does no harm, as in PEFT.
    let dir = folder();
    fs::write(dir.path().join("adapter_model.bin"), b"pickle").unwrap();
    assert!(load_peft(dir.path(), &toy_spec(2)).is_ok());
    let nowhere = load_peft(&dir.path().join("nowhere"), &toy_spec(2)).unwrap_err();
    assert!(matches!(nowhere, AdapterError::Folder(_)), "{nowhere}");
    let file = load_peft(&dir.path().join(CONFIG_FILE), &toy_spec(2)).unwrap_err();
    assert!(matches!(file, AdapterError::Folder(_)), "{file}");
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_names_itself() {
    let dir = folder();
    fs::remove_file(dir.path().join(TENSOR_FILE)).unwrap();
    std::os::unix::fs::symlink(TENSOR_FILE, dir.path().join(TENSOR_FILE)).unwrap();
    let error = load_peft(dir.path(), &toy_spec(2)).unwrap_err();
    assert!(matches!(error, AdapterError::Read { file: TENSOR_FILE, .. }), "{error}");
}
