//! One line for each way in which a config is read or refused.

use pleach_adapters::{AdapterConfig, peft::TreeRoot};
use pleach_engine::site::{Site, TargetModule};
use serde_json::{Value, json};

use crate::support::{config, config_with, toy_spec};

/// Reads the usual config with `edits`, for the toy model of two layers.
fn read(config: &Value) -> Result<AdapterConfig, String> {
    let config = AdapterConfig::from_json(config.to_string().as_bytes())
        .map_err(|error| error.to_string())?;
    config.sites(&toy_spec(2), TreeRoot::CausalLm).map_err(|error| error.to_string())?;
    Ok(config)
}

#[expect(clippy::needless_pass_by_value, reason = "callers write `json!` in place")]
fn check_refused(edits: Value, message: &str) {
    assert_eq!(read(&config_with(edits.clone())).unwrap_err(), message, "{edits}");
}

#[test]
fn what_changes_the_result_is_refused_by_its_key() {
    for (key, values) in [
        ("modules_to_save", vec![json!(["norm"]), json!(["lm_head", "classifier"])]),
        ("trainable_token_indices", vec![json!([1]), json!({"embed_tokens": [1]})]),
        ("target_parameters", vec![json!(["experts.down_proj"])]),
        ("layer_replication", vec![json!([[0, 1]])]),
        ("fan_in_fan_out", vec![json!(true)]),
        ("megatron_config", vec![json!({"hidden_size": 1})]),
        ("use_qalora", vec![json!(true)]),
        ("use_bdlora", vec![json!(true), json!({}), json!({"nblocks": 2})]),
        ("alora_invocation_tokens", vec![json!([1, 2]), json!([])]),
        ("arrow_config", vec![json!({})]),
        ("kasa_config", vec![json!({}), json!({"beta": 0.1})]),
        ("monteclora_config", vec![json!({})]),
        ("velora_config", vec![json!({})]),
        ("bias", vec![json!("all"), json!("lora_only")]),
        (
            "init_lora_weights",
            ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "new"]
                .map(Value::from)
                .into(),
        ),
    ] {
        for value in values {
            let error = read(&config_with(json!({ key: value }))).unwrap_err();
            assert!(error.starts_with(&format!("`{key}` is not supported (")), "{value}: {error}");
        }
    }
    check_refused(
        json!({"use_qalora": true}),
        "`use_qalora` is not supported (QALoRA: inputs are pooled before lora_A): true",
    );
}

#[test]
fn kinds_that_cannot_be_together_are_refused_by_their_key() {
    check_refused(
        json!({"use_dora": true, "lora_bias": true}),
        "`lora_bias` is not supported (a bias beside lora_B, together with `use_dora`): true",
    );
    for (key, what) in [
        ("use_dora", "DoRA of an embedding"),
        ("lora_bias", "a bias beside lora_B of an embedding"),
        ("ensure_weight_tying", "one adapter for embedding and head"),
    ] {
        check_refused(
            json!({key: true, "target_modules": ["q_proj", "embed_tokens"]}),
            &format!("`{key}` is not supported ({what}): true"),
        );
    }
    for edits in [
        json!({"ensure_weight_tying": true, "target_modules": ["lm_head"]}),
        json!({"ensure_weight_tying": true, "modules_to_save": ["embed_tokens"]}),
    ] {
        let error = read(&config_with(edits)).unwrap_err();
        assert!(error.starts_with("`ensure_weight_tying` is not supported"), "{error}");
    }
    check_refused(
        json!({"modules_to_save": "lm_head"}),
        "`modules_to_save` must be a list of strings, found: \"lm_head\"",
    );
}

#[test]
fn kinds_beyond_plain_lora_are_read() {
    let read = read(&config_with(json!({
        "use_dora": true, "modules_to_save": ["lm_head", "model.embed_tokens", "lm_head"], "ensure_weight_tying": false,
    })))
    .unwrap();
    assert!(read.use_dora && !read.lora_bias);
    assert_eq!(read.modules_to_save, [TargetModule::LmHead, TargetModule::EmbedTokens]);
}

#[test]
fn the_ends_of_the_model_are_targeted_as_by_peft() {
    let ends = |edits: Value, root| {
        let config = AdapterConfig::from_json(config_with(edits).to_string().as_bytes()).unwrap();
        let sites = config.sites(&toy_spec(2), root).unwrap();
        sites.into_keys().filter(|site| site.module.is_end()).collect::<Vec<_>>()
    };
    let both = [Site::EMBEDDING, Site::HEAD];
    let listed = json!(["q_proj", "embed_tokens", "lm_head"]);
    for (edits, expected) in [
        (json!({"target_modules": listed}), &both[..]),
        (json!({"target_modules": ".*(embed_tokens|lm_head|q_proj)"}), &both),
        (json!({"target_modules": "all-linear"}), &[]),
        // A whole name that is listed is taken whatever the layers; its end is not.
        (json!({"target_modules": listed, "layers_to_transform": [0]}), &both[1..]),
        (json!({"target_modules": listed, "exclude_modules": ["lm_head"]}), &both[..1]),
        (json!({"target_modules": listed, "modules_to_save": ["embed_tokens"]}), &both[1..]),
    ] {
        assert_eq!(ends(edits.clone(), TreeRoot::CausalLm), expected, "{edits}");
    }
    assert_eq!(
        ends(json!({"target_modules": ".*(embed_tokens|q_proj)|embed_tokens"}), TreeRoot::Decoder),
        both[..1]
    );
    let ranks = config_with(json!({
        "target_modules": ["lm_head", "embed_tokens"], "rank_pattern": {"lm_head": 3}, "alpha_pattern": {"embed_tokens": 1},
    }));
    let sites = AdapterConfig::from_json(ranks.to_string().as_bytes()).unwrap();
    let sites = sites.sites(&toy_spec(2), TreeRoot::CausalLm).unwrap();
    assert_eq!((sites[&Site::HEAD].rank, sites[&Site::EMBEDDING].rank), (3, 2));
    assert_eq!(
        (sites[&Site::HEAD].lora_scale, sites[&Site::EMBEDDING].lora_scale),
        (4.0 / 3.0, 0.5)
    );
    check_refused(
        json!({"target_modules": ["lm_head"], "r": 300}),
        "lm_head: rank 300 is outside 1..=256",
    );
}

#[test]
fn what_is_off_or_inert_is_accepted() {
    for edits in [
        json!({"use_dora": null, "lora_bias": false, "modules_to_save": [], "megatron_config": {}, "bias": null}),
        json!({"use_bdlora": false, "kasa_config": null, "arrow_config": null, "fan_in_fan_out": false}),
        json!({"lora_dropout": 0.1, "inference_mode": false, "qalora_group_size": 32, "task_type": null}),
        json!({"loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0}, "runtime_config": {"x": 1}}),
        json!({"a_key_of_the_future": null, "another": false, "third": {}, "fourth": [], "fifth": ""}),
    ] {
        assert!(read(&config_with(edits.clone())).is_ok(), "{edits}");
    }
    for init in [
        json!(true),
        json!(false),
        json!("gaussian"),
        json!("Gaussian"),
        json!("orthogonal"),
        json!("eva"),
        json!("mica"),
    ] {
        assert!(read(&config_with(json!({ "init_lora_weights": init }))).is_ok(), "{init}");
    }
    let read = read(&config_with(json!({"lora_alpha": 2.5}))).unwrap();
    assert_eq!((read.rank, read.lora_alpha, read.use_rslora), (2, 2.5, false));
    assert_eq!(read.base_model_name.as_deref(), Some("toy/base"));
}

#[test]
fn unknown_settings_are_refused_unless_off() {
    for value in [json!(true), json!(0), json!(1.5), json!("on"), json!([0]), json!({"x": null})] {
        check_refused(
            json!({ "a_key_of_the_future": value }),
            &format!(
                "`a_key_of_the_future` is not a known setting and may change the result: {value}"
            ),
        );
    }
}

#[test]
fn missing_keys() {
    for key in ["peft_type", "r", "lora_alpha", "target_modules"] {
        let mut missing = config();
        missing.as_object_mut().unwrap().remove(key);
        assert_eq!(read(&missing).unwrap_err(), format!("`{key}` is missing"));
        check_refused(json!({ key: null }), &format!("`{key}` is missing"));
    }
}

#[test]
fn bad_types_and_values_name_the_key() {
    for (key, value, expected) in [
        ("peft_type", json!(1), "a string"),
        ("r", json!("8"), "a positive integer"),
        ("r", json!(8.5), "a positive integer"),
        ("r", json!(0), "a positive integer"),
        ("r", json!(-1), "a positive integer"),
        ("lora_alpha", json!("16"), "a number"),
        ("use_rslora", json!("yes"), "true or false"),
        ("rank_pattern", json!([4]), "an object of positive integers"),
        ("rank_pattern", json!({"q_proj": 0}), "an object of positive integers"),
        ("alpha_pattern", json!({"q_proj": "1"}), "an object of numbers"),
        ("target_modules", json!(["q_proj", 1]), "a list of strings, a pattern or \"all-linear\""),
        ("exclude_modules", json!(1), "a list of strings or a pattern"),
        ("layers_to_transform", json!([-1]), "a layer index or a list of them"),
        ("layers_pattern", json!(3), "a string or a list of strings"),
        ("base_model_name_or_path", json!({}), "a string"),
        ("bias", json!(true), "a string"),
        ("init_lora_weights", json!(1), "true, false or a name"),
    ] {
        check_refused(
            json!({ key: value }),
            &format!("`{key}` must be {expected}, found: {value}"),
        );
    }
    check_refused(json!({"peft_type": "IA3"}), "`peft_type` IA3 is not supported, only LORA is");
    check_refused(
        json!({"r": 257}),
        "model.layers.0.self_attn.q_proj: rank 257 is outside 1..=256",
    );
    check_refused(
        json!({"rank_pattern": {"1.mlp.down_proj": 300}}),
        "model.layers.1.mlp.down_proj: rank 300 is outside 1..=256",
    );
    let long = read(&config_with(json!({"r": "9".repeat(10_000)}))).unwrap_err();
    assert!(long.len() < 200 && long.ends_with('…'), "{long}");
}

#[test]
fn targets_that_do_not_exist_are_refused() {
    for target in ["qkv_proj", "proj", "layers.2.mlp.up_proj", ""] {
        check_refused(
            json!({"target_modules": ["q_proj", target]}),
            &format!("`target_modules` entry `{target}` matches no linear of this model"),
        );
    }
    let no_site = "`target_modules`, `layers_to_transform` and `exclude_modules` leave no linear of this model";
    check_refused(json!({"target_modules": []}), no_site);
    check_refused(json!({"target_modules": "q_proj"}), no_site);
    check_refused(
        json!({"target_modules": ["q_proj"], "exclude_modules": ["self_attn.q_proj"]}),
        no_site,
    );
    check_refused(
        json!({"layers_to_transform": [0, 2]}),
        "`layers_to_transform` names layer 2, the model has 2 layers",
    );
}

#[test]
fn settings_that_exclude_each_other() {
    check_refused(
        json!({"target_modules": "all-linear", "layers_to_transform": [0]}),
        "`layers_to_transform` cannot be used when `target_modules` is a string",
    );
    check_refused(
        json!({"layers_pattern": "layers"}),
        "`layers_pattern` cannot be used without `layers_to_transform`",
    );
}

#[test]
fn bad_patterns_and_endless_lists() {
    for (key, value) in [
        ("target_modules", json!("(")),
        ("exclude_modules", json!("[")),
        ("rank_pattern", json!({"(": 1})),
        ("alpha_pattern", json!({"*": 1})),
    ] {
        let error = read(&config_with(json!({ key: value }))).unwrap_err();
        assert!(error.starts_with(&format!("`{key}`: pattern `")), "{error}");
    }
    let grouped = config_with(json!({"layers_to_transform": [0], "layers_pattern": "(lay)ers"}));
    assert!(read(&grouped).is_ok());
    let names: Vec<_> = (0..5000).map(|i| format!("q_proj{i}")).collect();
    check_refused(
        json!({ "target_modules": names }),
        "`target_modules` has 5000 entries, at most 4096 are read",
    );
    check_refused(
        json!({"layers_to_transform": vec![0; 5000]}),
        "`layers_to_transform` has 5000 entries, at most 4096 are read",
    );
}

#[test]
fn not_an_object() {
    let read = |json: &[u8]| AdapterConfig::from_json(json).unwrap_err().to_string();
    assert_eq!(read(b"[1]"), "expected a JSON object, found: [1]");
    assert!(read(b"{\"r\": NaN}").starts_with("not valid JSON: "));
    assert!(read(b"").starts_with("not valid JSON: "));
    assert!(read("[".repeat(100_000).as_bytes()).starts_with("not valid JSON: "));
    assert!(read(b"{\"r\": \"\xff\"}").starts_with("not valid JSON: "));
}
