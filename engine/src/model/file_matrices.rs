//! The matrices of a model file, by name while loading and by site afterwards.

use crate::{
    backend::{MatrixSource, RunError},
    gguf::GgufFile,
    site::{Site, TargetModule},
    spec::{Architecture, ModelSpec},
};

use super::{LoadError, load::tensor_name, read_spec::missing};

/// The base as the file has it, for packers of devices whose own copy the host cannot read. Nothing is copied: the file
/// stays mapped, and its pages are the system's to keep or drop.
#[derive(Clone, Debug)]
pub(crate) struct FileMatrices {
    file: GgufFile,
    spec: ModelSpec,
}

impl FileMatrices {
    pub(crate) fn new(file: &GgufFile, spec: &ModelSpec) -> Self {
        Self { file: file.clone(), spec: spec.clone() }
    }

    /// Whether the head is the embedding.
    pub(crate) fn is_tied(&self) -> bool {
        self.file.tensor(HEAD).is_none()
    }

    /// Lends the matrix of a linear of a layer, rows in Hugging Face order, or an end of the model, `[vocab, hidden]`.
    ///
    /// # Errors
    /// [`RunError::Device`] naming a tensor that is not there, which loading would have found.
    pub(crate) fn with<T>(
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
