//! The matrices of a model file, by name while loading and by site afterwards.

use std::collections::HashSet;

use crate::{
    backend::{MatrixSource, RunError},
    gguf::GgufFile,
    site::{Site, TargetModule},
    spec::{Architecture, ModelSpec},
};

use super::{LoadError, load, load::tensor_name, read_spec, read_spec::missing};

/// The base as the file has it: for packers of devices whose own copy the host cannot read, and for exports. Nothing is
/// copied: the file stays mapped, and its pages are the system's to keep or drop.
#[derive(Clone, Debug)]
pub struct FileMatrices {
    file: GgufFile,
    spec: ModelSpec,
}

impl FileMatrices {
    pub(crate) fn new(file: &GgufFile, spec: &ModelSpec) -> Self {
        Self { file: file.clone(), spec: spec.clone() }
    }

    /// The weights of a file that no device has loaded; refuses what loading would refuse by name.
    ///
    /// # Errors
    /// What the metadata lacks or what is not supported, and tensors that no part of the model takes.
    pub fn open(file: &GgufFile) -> Result<Self, LoadError> {
        let matrices = Self::new(file, &read_spec::read_spec(file)?);
        let known = matrices.names();
        match file.tensors().iter().find(|tensor| !known.contains(&tensor.name)) {
            Some(tensor) => Err(LoadError::UnknownTensor(tensor.name.clone())),
            None => Ok(matrices),
        }
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Every name that a tensor of this model may have.
    fn names(&self) -> HashSet<String> {
        let of_layer = |layer| {
            let linears = TargetModule::ALL.into_iter().flat_map(move |module| {
                ["weight", "bias"].map(|what| linear_name(layer, module, what))
            });
            let has_head_norms = self.spec.architecture == Architecture::Qwen3;
            let norms = NormKind::OF_LAYERS.into_iter();
            let norms = norms.filter(move |kind| has_head_norms || !kind.is_of_head());
            linears.chain(norms.map(move |kind| kind.tensor_name(layer)))
        };
        let ends = [EMBEDDING, HEAD, "rope_freqs.weight"].map(str::to_owned);
        (0..self.spec.n_layers)
            .flat_map(of_layer)
            .chain(ends)
            .chain([NormKind::Final.tensor_name(0)])
            .collect()
    }

    /// The weight of a norm: `[hidden]`, of a head `[head_dim]`.
    ///
    /// # Errors
    /// If it is missing or of another length.
    pub fn norm(&self, layer: usize, kind: NormKind) -> Result<Vec<f32>, LoadError> {
        let len = if kind.is_of_head() { self.spec.head_dim } else { self.spec.hidden };
        let name = kind.tensor_name(layer);
        self.vector(&name, len)?.ok_or_else(|| missing(&name))
    }

    /// The bias of a linear, in Hugging Face order, if it has one.
    ///
    /// # Errors
    /// If it is of another length.
    pub fn bias(&self, site: Site) -> Result<Option<Vec<f32>>, LoadError> {
        if site.module.is_end() {
            return Ok(None);
        }
        let (len, _) = self.spec.linear_shape(site.module);
        let values = self.vector(&linear_name(site.layer, site.module, "bias"), len)?;
        Ok(match (values, interleaved(&self.spec, site.module)) {
            (Some(values), Some(head_dim)) => {
                Some((0..len).map(|row| values[interleaved_row(row, head_dim)]).collect())
            }
            (values, _) => values,
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(tensor) = self.file.tensor(name) else { return Ok(None) };
        let values = load::floats(&self.file, tensor)?;
        if values.len() == len {
            return Ok(Some(values));
        }
        let problem = format!("has {} values, expected {len}", values.len());
        Err(LoadError::Tensor { tensor: name.to_owned(), problem })
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.file.tensor(HEAD).is_none()
    }

    /// Lends the matrix of a linear of a layer, rows in Hugging Face order, or an end of the model, `[vocab, hidden]`.
    ///
    /// # Errors
    /// [`RunError::Device`] naming a tensor that is not there, which loading would have found.
    pub fn with<T>(
        &self,
        site: Site,
        read: impl FnOnce(&MatrixSource<'_>) -> T,
    ) -> Result<T, RunError> {
        let Self { file, spec } = self;
        let module = site.module;
        let lent = if module.is_end() {
            let is_head = site == Site::HEAD && !self.is_tied();
            let name = if is_head { HEAD } else { EMBEDDING };
            with_matrix(file, name, (spec.vocab, spec.hidden), None, read)
        } else {
            let name = linear_name(site.layer, module, "weight");
            let shape = spec.linear_shape(module);
            with_matrix(file, &name, shape, interleaved(spec, module), read)
        };
        lent.map_err(|error| RunError::Device(error.to_string()))
    }
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Before attention.
    Attention,
    /// Of the heads of q (Qwen3).
    QHead,
    /// Of the heads of k (Qwen3).
    KHead,
    /// Before the feed-forward part.
    Ffn,
    /// Before the head of the model; its layer is not read.
    Final,
}

impl NormKind {
    const OF_LAYERS: [Self; 4] = [Self::Attention, Self::QHead, Self::KHead, Self::Ffn];

    const fn is_of_head(self) -> bool {
        matches!(self, Self::QHead | Self::KHead)
    }

    fn tensor_name(self, layer: usize) -> String {
        let name = match self {
            Self::Attention => "attn_norm",
            Self::QHead => "attn_q_norm",
            Self::KHead => "attn_k_norm",
            Self::Ffn => "ffn_norm",
            Self::Final => return "output_norm.weight".to_owned(),
        };
        format!("blk.{layer}.{name}.weight")
    }
}

/// Name of the embedding.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// Name of the head, where it is not the embedding.
pub(super) const HEAD: &str = "output.weight";

/// Name of a tensor of a linear of a layer.
pub(super) fn linear_name(layer: usize, module: TargetModule, what: &str) -> String {
    format!("blk.{layer}.{}.{what}", tensor_name(module))
}

/// The size of a head whose rows the file has in another order, if it has: those of q and k in architecture `llama`.
pub(super) fn interleaved(spec: &ModelSpec, module: TargetModule) -> Option<usize> {
    let rotated = matches!(module, TargetModule::QProj | TargetModule::KProj);
    (rotated && spec.architecture == Architecture::Llama).then_some(spec.head_dim)
}

/// Where row `row` of q or k (Hugging Face order, halves of a head rotate together) lies in a GGUF file of
/// architecture `llama` (neighbours rotate together): `h*D + j*D/2 + i` is at `h*D + 2*i + j`.
pub(super) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (j, i) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * i + j
}

/// Lends a matrix of the file; `head_dim` is given when its rows are interleaved.
pub(super) fn with_matrix<T>(
    file: &GgufFile,
    name: &str,
    shape: (usize, usize),
    head_dim: Option<usize>,
    read: impl FnOnce(&MatrixSource<'_>) -> T,
) -> Result<T, LoadError> {
    let tensor = file.tensor(name).ok_or_else(|| missing(name))?;
    let found = tensor.shape2()?;
    if found != shape {
        return Err(LoadError::Tensor {
            tensor: name.to_owned(),
            problem: format!("has shape {found:?}, expected {shape:?}"),
        });
    }
    let (n_out, n_in) = shape;
    let bytes = file.bytes(tensor);
    let row_bytes = bytes.len() / n_out;
    let row = |row: usize| {
        let at = head_dim.map_or(row, |head_dim| interleaved_row(row, head_dim));
        &bytes[at * row_bytes..(at + 1) * row_bytes]
    };
    Ok(read(&MatrixSource { name, format: tensor.format, n_out, n_in, row: &row }))
}
