//! Adapters of every kind, made up for a model at hand: for checks of a device where no trained ones are.

use crate::{
    adapter_weights::{AdapterWeights, OwnMatrix, SiteWeights},
    backend::{MatrixSource, RunError},
    cpu::{
        Isa,
        dora::{Workers, source_norms},
    },
    gguf::GgufFile,
    quant::dequantize_row,
    site::Site,
    spec::ModelSpec,
};

use super::{
    file_matrices::FileMatrices,
    random::{Small, random_adapter},
};

/// Rank of all of them at linears of layers.
const RANK: usize = 8;
/// By how much, times [`Small`]'s values, an adapter changes what it scales: up to a tenth.
const CHANGE: f32 = 10.0;
/// `lora_scale` at the ends of the model: with small factors it moves log-probabilities by some tenths.
const SCALE_OF_ENDS: f32 = 200.0;

/// One adapter of each kind beyond plain `LoRA`: `DoRA` and `lora_bias` at every linear and the head, `LoRA` on embedding and
/// head, both of its own. All keep near the base, so that the model still computes sensible numbers.
///
/// # Errors
/// [`RunError::Device`] naming a tensor that the file lacks.
pub fn random_kinds(file: &GgufFile, spec: &ModelSpec) -> Result<Vec<AdapterWeights>, RunError> {
    let base = FileMatrices::new(file, spec);
    let mut random = Small::new(77);
    let mut dora = with_sites(spec, 81, [lora(spec, &mut random, Site::HEAD)]);
    let workers = Workers { isa: Isa::detect(), n_threads: 1 };
    for site in &mut dora.sites {
        let norms = base.with(site.site, |source| source_norms(workers, source, site))?;
        site.magnitude = Some(changed(&mut random, &norms));
    }
    let mut biased = with_sites(spec, 82, [lora(spec, &mut random, Site::HEAD)]);
    for site in &mut biased.sites {
        let (n_out, _) = spec.linear_shape(site.site.module);
        // The head's scale is not one for biases.
        let by = CHANGE / site.lora_scale;
        site.bias = Some(random.values(n_out).into_iter().map(|value| by * value).collect());
    }
    let ends = [Site::EMBEDDING, Site::HEAD].map(|site| lora(spec, &mut random, site));
    let mut own = with_sites(spec, 84, [lora(spec, &mut random, Site::HEAD)]);
    let mut own_matrix = |site| {
        let values = changed(&mut random, &base.with(site, values_of)?);
        Ok::<_, RunError>(Some(OwnMatrix { values, of_base: false }))
    };
    own.embedding = own_matrix(Site::EMBEDDING)?;
    own.head = own_matrix(Site::HEAD)?;
    Ok(vec![dora, biased, with_sites(spec, 83, ends), own])
}

/// A plain adapter with more sites.
fn with_sites<const N: usize>(
    spec: &ModelSpec,
    seed: u32,
    sites: [SiteWeights; N],
) -> AdapterWeights {
    let mut weights = random_adapter(spec, RANK, seed);
    weights.sites.extend(sites);
    weights.sites.sort_by_key(|site| site.site);
    weights
}

/// `LoRA` at an end of the model.
fn lora(spec: &ModelSpec, random: &mut Small, site: Site) -> SiteWeights {
    let (n_out, n_in) = spec.linear_shape(site.module);
    let (a, b) = (random.values(RANK * n_in), random.values(RANK * n_out));
    SiteWeights::lora(site, RANK, SCALE_OF_ENDS, a, b)
}

/// Each value by its own part up or down.
fn changed(random: &mut Small, values: &[f32]) -> Vec<f32> {
    let by = random.values(values.len());
    values.iter().zip(by).map(|(value, by)| value * (1.0 + CHANGE * by)).collect()
}

/// `[n_out, n_in]`, row-major.
fn values_of(source: &MatrixSource<'_>) -> Vec<f32> {
    let mut values = vec![0.0; source.n_out * source.n_in];
    for (n, row) in values.chunks_exact_mut(source.n_in).enumerate() {
        dequantize_row(source.format, (source.row)(n), row);
    }
    values
}
