//! A trained adapter as a PEFT folder: what `pleach_adapters::load_peft` and PEFT itself read.

use std::{collections::BTreeSet, io, path::Path};

use half::f16;
use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    site::Site,
    spec::ModelSpec,
};
use safetensors::{Dtype, serialize, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{
    files::write_atomically,
    head::{self, Head},
    lora::LoraSettings,
};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As they were trained.
    F32,
    /// Rounded; half the bytes, and what serving with int8 activations holds anyway.
    F16,
}

/// Writes `adapter_model.safetensors`, then `adapter_config.json`, into a folder, which is made if it is not there.
/// `base_model` is the name that the config gives for the base.
///
/// # Errors
/// Of the disk.
pub fn save_peft(
    folder: &Path,
    weights: &AdapterWeights,
    settings: &LoraSettings,
    spec: &ModelSpec,
    base_model: &str,
    precision: Precision,
) -> io::Result<()> {
    let tensors = tensors(weights, None, spec, precision).map_err(io::Error::other)?;
    let config = config(weights, settings, spec, base_model);
    write(folder, &tensors, &config)
}

/// The same of a sequence classifier, with its head (`score`); all in f32.
///
/// # Errors
/// Of the disk.
pub fn save_peft_classifier(
    folder: &Path,
    weights: &AdapterWeights,
    head: &Head,
    settings: &LoraSettings,
    spec: &ModelSpec,
    base_model: &str,
) -> io::Result<()> {
    let tensors = tensors(weights, Some(head), spec, Precision::F32).map_err(io::Error::other)?;
    let mut config = config(weights, settings, spec, base_model);
    config["task_type"] = "SEQ_CLS".into();
    config["modules_to_save"] = json!(["classifier", "score"]);
    write(folder, &tensors, &config)
}

fn write(folder: &Path, tensors: &[u8], config: &Value) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    write_atomically(&folder.join("adapter_model.safetensors"), tensors)?;
    let mut text = serde_json::to_vec_pretty(config).map_err(io::Error::other)?;
    text.push(b'\n');
    write_atomically(&folder.join("adapter_config.json"), &text)
}

fn stored(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Precision::F16 => {
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
        }
    }
}

fn tensors(
    weights: &AdapterWeights,
    head: Option<&Head>,
    spec: &ModelSpec,
    precision: Precision,
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let dtype = match precision {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
    };
    let mut stored_tensors = Vec::new();
    for site in &weights.sites {
        let (n_out, n_in) = spec.linear_shape(site.site.module);
        for (factor, values, shape) in [
            ("lora_A", &site.a, vec![site.rank, n_in]),
            ("lora_B", &site.b, vec![n_out, site.rank]),
        ] {
            let name = format!("base_model.model.{}.{factor}.weight", site.site.path());
            stored_tensors.push((name, shape, stored(values, precision)));
        }
    }
    if let Some(head) = head {
        let shape = vec![head.n_outputs(), spec.hidden];
        stored_tensors.push((head::TENSOR.to_owned(), shape, stored(head.weights(), precision)));
    }
    let views = stored_tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())];
    serialize(views, Some(metadata.into_iter().collect()))
}

/// The settings that a reader needs to find the same sites, ranks and scales.
fn config(
    weights: &AdapterWeights,
    settings: &LoraSettings,
    spec: &ModelSpec,
    base_model: &str,
) -> Value {
    let sites: BTreeSet<Site> = weights.sites.iter().map(|site| site.site).collect();
    let modules: BTreeSet<_> = sites.iter().map(|site| site.module).collect();
    // Names of modules where every layer has them, else paths.
    let targets: Vec<String> = if sites.len() == modules.len() * spec.n_layers {
        modules.iter().map(|module| module.name().to_owned()).collect()
    } else {
        sites.iter().map(|site| site.path()).collect()
    };
    let others = weights.sites.iter().filter(|site| site.rank != settings.rank);
    // Patterns are regular expressions over paths.
    let ranks: Map<String, Value> =
        others.map(|site| (site.site.path().replace('.', r"\."), site.rank.into())).collect();
    let usual = |site: &SiteWeights| crate::optimizer::narrow(settings.scale(site.rank));
    let others =
        weights.sites.iter().filter(|site| site.lora_scale.to_bits() != usual(site).to_bits());
    // PEFT divides by the same as for `lora_alpha`.
    let alphas: Map<String, Value> = others
        .map(|site| {
            let alpha = f64::from(site.lora_scale) / settings.scale(site.rank) * settings.alpha;
            (site.site.path().replace('.', r"\."), alpha.into())
        })
        .collect();
    json!({
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": settings.rank,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": settings.use_rslora,
    })
}
