//! All that a run needs to go on after `kill -9` to the same bytes: weights, moments, counters, in one safetensors file.
//!
//! ```text
//! __metadata__.pleach_train_state    JSON: version, counters, and the caller's place in its data
//! <path of the site>.{lora_A, lora_B}          F32 [R, K], [N, R]
//! <path of the site>.{lora_A, lora_B}.{m, v}   F32, the same shapes
//! ```

use std::{collections::HashMap, io, path::Path};

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    spec::ModelSpec,
};
use safetensors::{Dtype, SafeTensorError, SafeTensors, serialize, tensor::TensorView};

use crate::{files::write_atomically, optimizer::Moments};

/// Version of the file.
const VERSION: u32 = 1;
/// Where its metadata is. (One key: a map of several would have no fixed order.)
const KEY: &str = "pleach_train_state";

/// What is not a tensor.
#[derive(serde::Serialize, serde::Deserialize)]
struct Counters {
    version: u32,
    optimizer_steps: u64,
    skipped_steps: u64,
    streams: u64,
    position: String,
}

/// Why a state cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error("cannot read or write {path}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is no safetensors file.
    #[error("the training state is damaged")]
    Format(#[from] SafeTensorError),
    /// Its metadata are not those of a training state of this version.
    #[error("the file is no training state of version {VERSION}")]
    Metadata,
    /// It is of another adapter: a tensor is missing, or has another shape.
    #[error("the training state has no tensor {tensor} of shape {shape:?}")]
    Tensor {
        /// Which one.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
}

/// What a run consists of, at the end of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// The weights.
    pub adapter: AdapterWeights,
    pub(crate) moments: Vec<[Moments; 2]>,
    /// Steps of the optimizer, those that were skipped not among them.
    pub optimizer_steps: u64,
    /// Steps that were skipped because a gradient was not finite.
    pub skipped_steps: u64,
    /// Dropout streams that were used.
    pub streams: u64,
    /// The caller's place in its data, in words of its own.
    pub position: String,
}

/// Name, shape and values of every array of a site.
fn arrays<'a>(
    site: &'a SiteWeights,
    moments: &'a [Moments; 2],
    spec: &ModelSpec,
) -> impl Iterator<Item = (String, Vec<usize>, &'a [f32])> {
    let (n_out, n_in) = spec.linear_shape(site.site.module);
    let (path, rank) = (site.site.path(), site.rank);
    let factors = [("lora_A", &site.a, [rank, n_in]), ("lora_B", &site.b, [n_out, rank])];
    factors.into_iter().zip(moments).flat_map(move |((factor, values, shape), moments)| {
        let name = format!("{path}.{factor}");
        [
            (name.clone(), shape.to_vec(), values.as_slice()),
            (format!("{name}.m"), shape.to_vec(), moments.m.as_slice()),
            (format!("{name}.v"), shape.to_vec(), moments.v.as_slice()),
        ]
    })
}

impl TrainState {
    /// Writes the file as a whole, or leaves the old one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, path: &Path, spec: &ModelSpec) -> Result<(), StateError> {
        let sites = self.adapter.sites.iter().zip(&self.moments);
        let stored: Vec<_> = sites
            .flat_map(|(site, moments)| arrays(site, moments, spec))
            .map(|(name, shape, values)| {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = stored
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, SafeTensorError>>()?;
        let counters = Counters {
            version: VERSION,
            optimizer_steps: self.optimizer_steps,
            skipped_steps: self.skipped_steps,
            streams: self.streams,
            position: self.position.clone(),
        };
        let counters = serde_json::to_string(&counters).map_err(|_| StateError::Metadata)?;
        let metadata = HashMap::from([(KEY.to_owned(), counters)]);
        let bytes = serialize(views, Some(metadata))?;
        write_atomically(path, &bytes).map_err(|source| file_error(path, source))
    }

    /// Reads the state of a run with an adapter of the shape of `like`, whose values do not matter.
    ///
    /// # Errors
    /// [`StateError`], naming what is missing or of another shape.
    pub fn load(path: &Path, spec: &ModelSpec, like: &AdapterWeights) -> Result<Self, StateError> {
        let bytes = std::fs::read(path).map_err(|source| file_error(path, source))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let text = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let counters: Option<Counters> = text.and_then(|text| serde_json::from_str(text).ok());
        let counters = counters.filter(|counters| counters.version == VERSION);
        let counters = counters.ok_or(StateError::Metadata)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let read = |tensor: String, shape: [usize; 2]| -> Result<Vec<f32>, StateError> {
            let found = file
                .tensor(&tensor)
                .ok()
                .filter(|found| found.dtype() == Dtype::F32 && found.shape() == shape);
            let Some(found) = found else {
                return Err(StateError::Tensor { tensor, shape: shape.to_vec() });
            };
            Ok(found.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let (mut adapter, mut moments) = (like.clone(), Vec::with_capacity(like.sites.len()));
        for site in &mut adapter.sites {
            let (n_out, n_in) = spec.linear_shape(site.site.module);
            let path = site.site.path();
            let factor = |name: &str, shape| -> Result<(Vec<f32>, Moments), StateError> {
                let name = format!("{path}.{name}");
                let (m, v) = (format!("{name}.m"), format!("{name}.v"));
                Ok((read(name, shape)?, Moments { m: read(m, shape)?, v: read(v, shape)? }))
            };
            let (a, of_a) = factor("lora_A", [site.rank, n_in])?;
            let (b, of_b) = factor("lora_B", [n_out, site.rank])?;
            (site.a, site.b) = (a, b);
            moments.push([of_a, of_b]);
        }
        Ok(Self {
            adapter,
            moments,
            optimizer_steps: counters.optimizer_steps,
            skipped_steps: counters.skipped_steps,
            streams: counters.streams,
            position: counters.position,
        })
    }
}

fn file_error(path: &Path, source: io::Error) -> StateError {
    StateError::File { path: path.display().to_string(), source }
}
