//! Writes a PEFT folder, as `save_pretrained` would.

use std::{borrow::Cow, collections::HashMap, io, path::Path};

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    site::Site,
    spec::ModelSpec,
};
use safetensors::{Dtype, SafeTensorError, tensor::View};
use serde_json::{Map, Value, json};

use super::{
    files::{CONFIG_FILE, TENSOR_FILE},
    targets::TreeRoot,
    tensor_name::{Matrix, NameStyle},
};

/// Why nothing usable was written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A kind that is not written.
    #[error("{site}: {kind} is not written")]
    Kind {
        /// Where it acts.
        site: Site,
        /// What it is.
        kind: &'static str,
    },
    /// PEFT's settings have one switch for the biases of all sites, and the loader knows none of an embedding.
    #[error("`lora_bias` is for all sites of an adapter or none, and not for an embedding")]
    Bias,
    /// The disk.
    #[error("{file}: {source}")]
    Write {
        /// Which file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The tensor file cannot be written.
    #[error("{TENSOR_FILE}: {0}")]
    Tensors(#[from] SafeTensorError),
}

/// Writes `LoRA`, with or without `lora_bias`, into a folder that is there. Weights are stored as F32, ranks and scales of
/// the sites exactly, so that the folder loads as the same generation. The settings come last: without them no tool
/// takes the folder for an adapter.
///
/// # Errors
/// [`SaveError`]. Some of the files may be there then.
pub fn save_peft(
    dir: &Path,
    weights: &AdapterWeights,
    spec: &ModelSpec,
    base_model_name: Option<&str>,
) -> Result<(), SaveError> {
    let has_bias = check(weights)?;
    let mut tensors = Vec::new();
    for site in &weights.sites {
        let (n_out, n_in) = spec.linear_shape(site.site.module);
        let name = |matrix| NameStyle::USUAL.name(site.site, matrix);
        tensors.push((name(Matrix::A), Values { shape: vec![site.rank, n_in], values: &site.a }));
        tensors.push((name(Matrix::B), Values { shape: vec![n_out, site.rank], values: &site.b }));
        if let Some(bias) = &site.bias {
            tensors.push((name(Matrix::Bias), Values { shape: vec![n_out], values: bias }));
        }
    }
    // What PEFT writes: the tensors are PyTorch's.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &dir.join(TENSOR_FILE))?;
    let mut text = format!("{:#}", config(&weights.sites, has_bias, base_model_name));
    text.push('\n');
    std::fs::write(dir.join(CONFIG_FILE), text)
        .map_err(|source| SaveError::Write { file: CONFIG_FILE, source })
}

/// Whether there are biases; refuses what is not written.
fn check(weights: &AdapterWeights) -> Result<bool, SaveError> {
    if let Some((site, _)) = weights.own_matrices().next() {
        return Err(SaveError::Kind { site, kind: "a whole matrix of the adapter's own" });
    }
    if let Some(site) = weights.sites.iter().find(|site| site.magnitude.is_some()) {
        return Err(SaveError::Kind { site: site.site, kind: "DoRA" });
    }
    let n_biases = weights.sites.iter().filter(|site| site.bias.is_some()).count();
    let embedding = weights.sites.iter().any(|site| site.site == Site::EMBEDDING);
    match n_biases {
        0 => Ok(false),
        n if n == weights.sites.len() && !embedding => Ok(true),
        _ => Err(SaveError::Bias),
    }
}

/// `adapter_config.json`. Sites are listed by their whole paths, which say the same for a model with more layers; a rank or
/// scale that is not the most common one is a pattern of its own.
fn config(sites: &[SiteWeights], has_bias: bool, base_model_name: Option<&str>) -> Value {
    let alpha = |site: &SiteWeights| f64::from(site.lora_scale) * site.rank as f64;
    let settings = |site: &SiteWeights| (site.rank, alpha(site).to_bits());
    let mut counts: HashMap<_, usize> = HashMap::new();
    for site in sites {
        *counts.entry(settings(site)).or_default() += 1;
    }
    // The largest settings decide between equals, so that one adapter is always one file.
    let usual = counts.into_iter().max_by_key(|(settings, count)| (*count, *settings));
    let (rank, alpha_bits) = usual.map_or((1, 0), |(settings, _)| settings);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for site in sites {
        let path = TreeRoot::CausalLm.path(site.site);
        if site.rank != rank {
            ranks.insert(path.clone(), json!(site.rank));
        }
        if alpha(site).to_bits() != alpha_bits {
            alphas.insert(path, json!(alpha(site)));
        }
    }
    let targets: Vec<_> = sites.iter().map(|site| TreeRoot::CausalLm.path(site.site)).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": f64::from_bits(alpha_bits),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": has_bias,
        "use_rslora": false,
        "use_dora": false,
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
    })
}

/// An F32 tensor, turned into bytes when it is written.
struct Values<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
