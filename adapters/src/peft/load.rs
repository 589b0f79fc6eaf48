//! From a PEFT folder to weights that the engine can take, or to an error that says what is wrong.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use half::f16;
use pleach_engine::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX, SiteWeights},
    site::{Site, TargetModule},
    spec::ModelSpec,
};

use super::{
    config::AdapterConfig,
    error::AdapterError,
    fields::shorten,
    targets::SiteSettings,
    tensor_file::{self, StoredDtype, StoredTensor, TENSOR_HEADER_BYTES_MAX},
    tensor_name::{Matrix, NameStyle, TensorName, feature_of},
};
use crate::digest::GenerationDigest;

/// The settings, in every PEFT folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// Longest settings file; real ones have some 1,000 bytes, with full module lists some 100,000.
pub const ADAPTER_CONFIG_BYTES_MAX: u64 = 1 << 20;

const PICKLE_FILE: &str = "adapter_model.bin";
const SHARD_INDEX_FILE: &str = "adapter_model.safetensors.index.json";

/// A checked adapter, ready for the engine.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    /// What the engine takes: f32, scale `alpha / r` or `alpha / sqrt(r)`.
    pub weights: AdapterWeights,
    /// Names the content of `weights`.
    pub digest: GenerationDigest,
    /// The base that it says it was trained on. Foreign files carry no digest of it: another name deserves a warning.
    pub base_model_name: Option<String>,
    /// Largest rank of any site.
    pub rank_max: usize,
    /// Which linears it acts on, each once, in the order of a layer.
    pub target_modules: Vec<TargetModule>,
    /// Weights of all sites.
    pub n_parameters: usize,
    /// Bytes of its tensors as stored in the file.
    pub tensor_bytes: u64,
    /// Every weight is exactly an f16, so that a device may hold it in half the bytes without changing a result.
    pub stored_f16_exact: bool,
}

/// Reads and checks a PEFT `LoRA` folder against the model. Blocks on the disk; call it off the step loop.
///
/// # Errors
/// [`AdapterError`] with the file, key or tensor. Nothing is skipped: what cannot be used is refused.
pub fn load_peft(dir: &Path, spec: &ModelSpec) -> Result<LoadedAdapter, AdapterError> {
    let names = file_names(dir).map_err(AdapterError::Folder)?;
    let config = read_file(dir, CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)?;
    // Settings first: a refusal by key says more than a file that is missing or looks odd because of that key.
    let config = AdapterConfig::from_json(&config)?;
    refuse_other_weight_files(&names)?;
    let tensors = read_file(dir, TENSOR_FILE, tensor_file_bytes_max(spec))?;
    assemble(&config, &tensors, spec)
}

/// [`load_peft`] from the contents of the two files.
///
/// # Errors
/// As [`load_peft`].
pub fn load_peft_bytes(
    config: &[u8],
    tensors: &[u8],
    spec: &ModelSpec,
) -> Result<LoadedAdapter, AdapterError> {
    assemble(&AdapterConfig::from_json(config)?, tensors, spec)
}

/// Largest tensor file: header, and f32 factors of the largest rank on every linear of the model.
pub fn tensor_file_bytes_max(spec: &ModelSpec) -> u64 {
    let sides = TargetModule::ALL.into_iter().map(|module| {
        let (n_out, n_in) = spec.linear_shape(module);
        n_out as u64 + n_in as u64
    });
    let value_bytes = StoredDtype::F32.n_bytes() as u64;
    let layer_bytes = sides.sum::<u64>().saturating_mul(LORA_RANK_MAX as u64 * value_bytes);
    layer_bytes.saturating_mul(spec.n_layers as u64).saturating_add(TENSOR_HEADER_BYTES_MAX as u64)
}

/// Names of the adapter's weight files, of whatever kind.
fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with("adapter_model")
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn refuse_other_weight_files(names: &[String]) -> Result<(), AdapterError> {
    let has = |file: &str| names.iter().any(|name| name == file);
    if has(TENSOR_FILE) {
        return Ok(());
    }
    let part = names
        .iter()
        .find(|name| name.starts_with("adapter_model-") && name.ends_with(".safetensors"));
    if has(SHARD_INDEX_FILE) {
        return Err(AdapterError::Sharded { file: SHARD_INDEX_FILE.to_owned() });
    }
    if let Some(part) = part {
        return Err(AdapterError::Sharded { file: shorten(part) });
    }
    if has(PICKLE_FILE) {
        return Err(AdapterError::Pickle { file: PICKLE_FILE });
    }
    Err(AdapterError::MissingFile { file: TENSOR_FILE })
}

/// The whole file, if it is a regular one and not longer than `limit`, also while somebody is appending to it.
fn read_file(dir: &Path, file: &'static str, limit: u64) -> Result<Vec<u8>, AdapterError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return AdapterError::MissingFile { file };
        }
        AdapterError::Read { file, source }
    };
    let path = dir.join(file);
    // Asked before opening: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(AdapterError::NotAFile { file });
    }
    let too_large = |bytes| AdapterError::FileTooLarge { file, bytes, limit };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes =
        Vec::with_capacity(usize::try_from(metadata.len()).map_err(|_| too_large(metadata.len()))?);
    File::open(&path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// The two factors of one site, as found so far.
#[derive(Default)]
struct Factors<'a> {
    a: Option<StoredTensor<'a>>,
    b: Option<StoredTensor<'a>>,
}

fn assemble(
    config: &AdapterConfig,
    file: &[u8],
    spec: &ModelSpec,
) -> Result<LoadedAdapter, AdapterError> {
    let tensors = tensor_file::parse(file)?;
    let tensor_bytes = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    let names = tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    let (style, names) = parse_names(&names, spec)?;
    let settings = config.sites(spec, style.root)?;

    let mut by_site: BTreeMap<Site, Factors<'_>> = BTreeMap::new();
    for (tensor, name) in tensors.into_iter().zip(names) {
        if !settings.contains_key(&name.site) {
            return Err(AdapterError::NotTargeted { tensor: tensor.name });
        }
        let factors = by_site.entry(name.site).or_default();
        // One name is in the file once, and one style has one name for each factor: nothing is overwritten here.
        match name.matrix {
            Matrix::A => factors.a = Some(tensor),
            Matrix::B => factors.b = Some(tensor),
        }
    }
    let mut weights = AdapterWeights { sites: Vec::with_capacity(settings.len()) };
    for (site, settings) in settings {
        weights.sites.push(site_weights(
            site,
            settings,
            by_site.remove(&site).unwrap_or_default(),
            style,
            spec,
        )?);
    }
    weights.check(spec)?;
    Ok(summarize(weights, config, tensor_bytes))
}

/// Every name must be a site's, and all in one style.
fn parse_names<'a>(
    names: &'a [String],
    spec: &ModelSpec,
) -> Result<(NameStyle<'a>, Vec<TensorName<'a>>), AdapterError> {
    let mut parsed: Vec<TensorName<'_>> = Vec::with_capacity(names.len());
    for name in names {
        let Some(tensor) = TensorName::parse(name) else {
            let tensor = name.clone();
            return Err(match feature_of(name) {
                Some(feature) => AdapterError::UnsupportedTensor { tensor, feature },
                None => AdapterError::UnknownTensor { tensor },
            });
        };
        if tensor.site.layer >= spec.n_layers {
            return Err(AdapterError::NoSuchLayer {
                tensor: name.clone(),
                n_layers: spec.n_layers,
            });
        }
        if parsed.first().is_some_and(|first| first.style != tensor.style) {
            return Err(AdapterError::MixedNames { tensor: name.clone(), other: names[0].clone() });
        }
        parsed.push(tensor);
    }
    Ok((parsed.first().map_or(NameStyle::USUAL, |first| first.style), parsed))
}

fn site_weights(
    site: Site,
    SiteSettings { rank, lora_scale }: SiteSettings,
    factors: Factors<'_>,
    style: NameStyle<'_>,
    spec: &ModelSpec,
) -> Result<SiteWeights, AdapterError> {
    let (n_out, n_in) = spec.linear_shape(site.module);
    let values = |matrix, tensor: Option<StoredTensor<'_>>, expected: [usize; 2]| {
        let Some(tensor) = tensor else {
            return Err(AdapterError::MissingTensor { tensor: style.name(site, matrix) });
        };
        if tensor.shape != expected {
            return Err(AdapterError::Shape {
                tensor: tensor.name,
                found: tensor.shape,
                expected,
                rank,
            });
        }
        let values = tensor.to_f32();
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => {
                Err(AdapterError::NotFinite { tensor: tensor.name, index, value: values[index] })
            }
            None => Ok(values),
        }
    };
    let a = values(Matrix::A, factors.a, [rank, n_in])?;
    let b = values(Matrix::B, factors.b, [n_out, rank])?;
    Ok(SiteWeights { site, rank, lora_scale, a, b })
}

fn summarize(weights: AdapterWeights, config: &AdapterConfig, tensor_bytes: u64) -> LoadedAdapter {
    let mut target_modules: Vec<_> = weights.sites.iter().map(|site| site.site.module).collect();
    target_modules.sort_unstable();
    target_modules.dedup();
    let values = || weights.sites.iter().flat_map(|site| site.a.iter().chain(&site.b));
    LoadedAdapter {
        digest: GenerationDigest::of(&weights),
        base_model_name: config.base_model_name.clone(),
        rank_max: weights.sites.iter().map(|site| site.rank).max().unwrap_or_default(),
        target_modules,
        n_parameters: weights.sites.iter().map(|site| site.a.len() + site.b.len()).sum(),
        tensor_bytes,
        // Bits, not values: f16 keeps the sign of zero.
        stored_f16_exact: values()
            .all(|value| f16::from_f32(*value).to_f32().to_bits() == value.to_bits()),
        weights,
    }
}
