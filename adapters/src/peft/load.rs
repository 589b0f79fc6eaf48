//! From a PEFT folder to weights that the engine can take, or to an error that says what is wrong.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use half::f16;
use pleach_engine::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX, OwnMatrix, SiteWeights},
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
    /// Which linears it acts on, each once, in the order of a layer; the embedding and the head last.
    pub target_modules: Vec<TargetModule>,
    /// Weights of all sites, and of matrices of its own.
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
    let config = read_file(&dir.join(CONFIG_FILE), CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)?;
    // Settings first: a refusal by key says more than a file that is missing or looks odd because of that key.
    let config = AdapterConfig::from_json(&config)?;
    refuse_other_weight_files(&names)?;
    let tensors = read_file(&dir.join(TENSOR_FILE), TENSOR_FILE, tensor_file_bytes_max(spec))?;
    assemble(&config, &tensors, spec)
}

/// [`load_peft`] from the two files, wherever each is and whatever it is called there.
///
/// # Errors
/// As [`load_peft`]; files are called by the names that they have in a folder.
pub fn load_peft_files(
    config: &Path,
    tensors: &Path,
    spec: &ModelSpec,
) -> Result<LoadedAdapter, AdapterError> {
    let config = read_file(config, CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)?;
    let tensors = read_file(tensors, TENSOR_FILE, tensor_file_bytes_max(spec))?;
    load_peft_bytes(&config, &tensors, spec)
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

/// Largest tensor file: header, f32 factors of the largest rank and a vector on every linear of the model, and an
/// embedding and a head as a whole.
pub fn tensor_file_bytes_max(spec: &ModelSpec) -> u64 {
    let site_values = |module| {
        let (n_out, n_in) = spec.linear_shape(module);
        let (n_out, n_in) = (n_out as u64, n_in as u64);
        n_out.saturating_add(n_in).saturating_mul(LORA_RANK_MAX as u64).saturating_add(n_out)
    };
    let sum = |modules: &[TargetModule]| {
        modules.iter().fold(0, |sum: u64, &module| sum.saturating_add(site_values(module)))
    };
    let whole = (spec.vocab as u64).saturating_mul(spec.hidden as u64).saturating_mul(2);
    sum(&TargetModule::ALL)
        .saturating_mul(spec.n_layers as u64)
        .saturating_add(sum(&TargetModule::ENDS))
        .saturating_add(whole)
        .saturating_mul(StoredDtype::F32.n_bytes() as u64)
        .saturating_add(TENSOR_HEADER_BYTES_MAX as u64)
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
fn read_file(path: &Path, file: &'static str, limit: u64) -> Result<Vec<u8>, AdapterError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return AdapterError::MissingFile { file };
        }
        AdapterError::Read { file, source }
    };
    // Asked before opening: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(AdapterError::NotAFile { file });
    }
    let too_large = |bytes| AdapterError::FileTooLarge { file, bytes, limit };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes =
        Vec::with_capacity(usize::try_from(metadata.len()).map_err(|_| too_large(metadata.len()))?);
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// The tensors of one site, as found so far.
type Parts<'a> = BTreeMap<Matrix, StoredTensor<'a>>;

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

    let mut by_site: BTreeMap<Site, Parts<'_>> = BTreeMap::new();
    for (tensor, name) in tensors.into_iter().zip(names) {
        let (is_on, setting) = match name.matrix {
            Matrix::A | Matrix::B | Matrix::Base => (true, ""),
            Matrix::Bias => (config.lora_bias, "lora_bias"),
            Matrix::Magnitude => (config.use_dora, "use_dora"),
            Matrix::Saved => {
                (config.modules_to_save.contains(&name.site.module), "modules_to_save")
            }
        };
        if !is_on {
            return Err(AdapterError::SettingOff { tensor: tensor.name, setting });
        }
        if name.matrix != Matrix::Saved && !settings.contains_key(&name.site) {
            return Err(AdapterError::NotTargeted { tensor: tensor.name });
        }
        let parts = by_site.entry(name.site).or_default();
        if let Some(other) = parts.insert(name.matrix, tensor) {
            // One style has one name for each, but for a magnitude with and without `.weight`.
            return Err(AdapterError::MixedNames {
                tensor: parts[&name.matrix].name.clone(),
                other: other.name,
            });
        }
    }
    let reader = Reader { config, style, spec };
    let mut weights = AdapterWeights::default();
    for (site, settings) in settings {
        let parts = by_site.entry(site).or_default();
        weights.sites.push(reader.site(site, settings, parts)?);
    }
    weights.embedding = reader.own(Site::EMBEDDING, by_site.remove(&Site::EMBEDDING))?;
    weights.head = reader.own(Site::HEAD, by_site.remove(&Site::HEAD))?;
    weights.check(spec)?;
    Ok(summarize(weights, config, tensor_bytes))
}

/// Every name must be a site's, and all in one style.
fn parse_names<'a>(
    names: &'a [String],
    spec: &ModelSpec,
) -> Result<(NameStyle<'a>, Vec<TensorName<'a>>), AdapterError> {
    let mut parsed: Vec<TensorName<'_>> = Vec::with_capacity(names.len());
    // The name that the others must agree with.
    let mut model = 0;
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
        if !parsed.is_empty() && !parsed[model].agrees_with(&tensor) {
            return Err(AdapterError::MixedNames {
                tensor: name.clone(),
                other: names[model].clone(),
            });
        }
        // Names of the base's weights tell the least about the others.
        if parsed.get(model).is_some_and(|model| model.matrix == Matrix::Base) {
            model = parsed.len();
        }
        parsed.push(tensor);
    }
    Ok((parsed.get(model).map_or(NameStyle::USUAL, |name| name.style), parsed))
}

/// From tensors to checked values.
struct Reader<'a> {
    config: &'a AdapterConfig,
    style: NameStyle<'a>,
    spec: &'a ModelSpec,
}

impl Reader<'_> {
    /// Takes the tensors of `LoRA` out of `parts`.
    fn site(
        &self,
        site: Site,
        SiteSettings { rank, lora_scale }: SiteSettings,
        parts: &mut Parts<'_>,
    ) -> Result<SiteWeights, AdapterError> {
        let (n_out, n_in) = self.spec.linear_shape(site.module);
        let mut factor = |matrix, expected: [usize; 2]| {
            let tensor = self.take(site, matrix, parts)?;
            if tensor.shape != expected {
                return Err(AdapterError::Shape {
                    tensor: tensor.name,
                    found: tensor.shape,
                    expected,
                    rank,
                });
            }
            finite(tensor)
        };
        let a = factor(Matrix::A, [rank, n_in])?;
        let b = factor(Matrix::B, [n_out, rank])?;
        let mut vector = |matrix, is_on: bool| {
            let read = || own_shape(self.take(site, matrix, parts)?, &[n_out]);
            is_on.then(read).transpose()
        };
        let bias = vector(Matrix::Bias, self.config.lora_bias)?;
        let magnitude = vector(Matrix::Magnitude, self.config.use_dora)?;
        Ok(SiteWeights { site, rank, lora_scale, a, b, bias, magnitude })
    }

    /// A whole matrix of the adapter's own.
    fn own(&self, site: Site, parts: Option<Parts<'_>>) -> Result<Option<OwnMatrix>, AdapterError> {
        let mut parts = parts.unwrap_or_default();
        let shape = [self.spec.vocab, self.spec.hidden];
        if self.config.modules_to_save.contains(&site.module) {
            let values = own_shape(self.take(site, Matrix::Saved, &mut parts)?, &shape)?;
            return Ok(Some(OwnMatrix { values, of_base: false }));
        }
        let Some(tensor) = parts.remove(&Matrix::Base) else { return Ok(None) };
        Ok(Some(OwnMatrix { values: own_shape(tensor, &shape)?, of_base: true }))
    }

    fn take<'t>(
        &self,
        site: Site,
        matrix: Matrix,
        parts: &mut Parts<'t>,
    ) -> Result<StoredTensor<'t>, AdapterError> {
        let missing = || AdapterError::MissingTensor { tensor: self.style.name(site, matrix) };
        parts.remove(&matrix).ok_or_else(missing)
    }
}

/// The values of a tensor that must have this shape.
fn own_shape(tensor: StoredTensor<'_>, expected: &[usize]) -> Result<Vec<f32>, AdapterError> {
    if tensor.shape != expected {
        return Err(AdapterError::OwnShape {
            tensor: tensor.name,
            found: tensor.shape,
            expected: expected.to_vec(),
        });
    }
    finite(tensor)
}

fn finite(tensor: StoredTensor<'_>) -> Result<Vec<f32>, AdapterError> {
    let values = tensor.to_f32();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            Err(AdapterError::NotFinite { tensor: tensor.name, index, value: values[index] })
        }
        None => Ok(values),
    }
}

fn summarize(weights: AdapterWeights, config: &AdapterConfig, tensor_bytes: u64) -> LoadedAdapter {
    let sites = weights.sites.iter().map(|site| site.site);
    let own = weights.own_matrices().map(|(site, _)| site);
    let mut target_modules: Vec<_> = sites.chain(own).map(|site| site.module).collect();
    target_modules.sort_unstable();
    target_modules.dedup();
    // Bits, not values: f16 keeps the sign of zero.
    let is_exact = |value: &f32| f16::from_f32(*value).to_f32().to_bits() == value.to_bits();
    let stored_f16_exact = weights.arrays().flatten().all(is_exact);
    LoadedAdapter {
        digest: GenerationDigest::of(&weights),
        base_model_name: config.base_model_name.clone(),
        rank_max: weights.sites.iter().map(|site| site.rank).max().unwrap_or_default(),
        target_modules,
        n_parameters: weights.n_values(),
        tensor_bytes,
        // Bits, not values: f16 keeps the sign of zero.
        stored_f16_exact,
        weights,
    }
}
