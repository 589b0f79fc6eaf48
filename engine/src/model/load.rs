//! Weights of a GGUF file onto a device.

use std::collections::HashSet;

use crate::{
    backend::{Backend, HeadNorms, Linear, Projection},
    gguf::{GgufFile, TensorInfo},
    quant::dequantize_row,
    site::TargetModule,
    spec::{Architecture, ModelSpec},
};

use super::{
    LoadError,
    decoder::{DecoderWeights, Layer},
    file_matrices::{EMBEDDING, HEAD, interleaved, interleaved_row, linear_name, with_matrix},
    read_spec::missing,
};

/// Reads every tensor of the file; one that no part of the model takes is an error.
pub(super) fn load_weights<B: Backend>(
    file: &GgufFile,
    spec: &ModelSpec,
    backend: &mut B,
) -> Result<DecoderWeights<B::Matrix, B::Vector>, LoadError> {
    let mut loader =
        Loader { file, spec, backend, taken: HashSet::from(["rope_freqs.weight".to_owned()]) };
    let embedding = loader.matrix(EMBEDDING, (spec.vocab, spec.hidden), None)?;
    let layers = (0..spec.n_layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
    let final_norm = loader.vector("output_norm.weight", spec.hidden, None)?;
    let head = match file.tensor(HEAD) {
        Some(_) => Some(loader.matrix(HEAD, (spec.vocab, spec.hidden), None)?),
        None => None,
    };
    let taken = loader.taken;
    match file.tensors().iter().find(|tensor| !taken.contains(&tensor.name)) {
        Some(tensor) => Err(LoadError::UnknownTensor(tensor.name.clone())),
        None => Ok(DecoderWeights { embedding, layers, final_norm, head }),
    }
}

/// The values of a vector.
pub(super) fn floats(file: &GgufFile, tensor: &TensorInfo) -> Result<Vec<f32>, LoadError> {
    let mut values = vec![0.0; tensor.shape1()?];
    dequantize_row(tensor.format, file.bytes(tensor), &mut values);
    Ok(values)
}

/// Name of a module's tensors in a GGUF file; within its layer, if it is in one.
pub(super) fn tensor_name(module: TargetModule) -> &'static str {
    match module {
        TargetModule::QProj => "attn_q",
        TargetModule::KProj => "attn_k",
        TargetModule::VProj => "attn_v",
        TargetModule::OProj => "attn_output",
        TargetModule::GateProj => "ffn_gate",
        TargetModule::UpProj => "ffn_up",
        TargetModule::DownProj => "ffn_down",
        TargetModule::EmbedTokens => "token_embd",
        TargetModule::LmHead => "output",
    }
}

struct Loader<'a, B> {
    file: &'a GgufFile,
    spec: &'a ModelSpec,
    backend: &'a mut B,
    taken: HashSet<String>,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, layer: usize) -> Result<Layer<B::Matrix, B::Vector>, LoadError> {
        use TargetModule as M;
        let spec = self.spec;
        let norm = |loader: &mut Self, name: &str, len| {
            loader.vector(&format!("blk.{layer}.{name}.weight"), len, None)
        };
        let head_norms = if spec.architecture == Architecture::Qwen3 {
            let q = norm(self, "attn_q_norm", spec.head_dim)?;
            Some(HeadNorms { q, k: norm(self, "attn_k_norm", spec.head_dim)? })
        } else {
            None
        };
        Ok(Layer {
            attention_norm: norm(self, "attn_norm", spec.hidden)?,
            qkv: self.projection(layer, &[M::QProj, M::KProj, M::VProj])?,
            head_norms,
            attention_out: self.projection(layer, &[M::OProj])?,
            ffn_norm: norm(self, "ffn_norm", spec.hidden)?,
            gate_up: self.projection(layer, &[M::GateProj, M::UpProj])?,
            down: self.projection(layer, &[M::DownProj])?,
        })
    }

    fn projection(
        &mut self,
        layer: usize,
        modules: &[TargetModule],
    ) -> Result<Projection<B::Matrix, B::Vector>, LoadError> {
        let parts =
            modules.iter().map(|&module| self.linear(layer, module)).collect::<Result<_, _>>()?;
        Ok(Projection { layer, parts })
    }

    fn linear(
        &mut self,
        layer: usize,
        module: TargetModule,
    ) -> Result<Linear<B::Matrix, B::Vector>, LoadError> {
        let spec = self.spec;
        let head_dim = interleaved(spec, module);
        let shape = spec.linear_shape(module);
        let matrix = self.matrix(&linear_name(layer, module, "weight"), shape, head_dim)?;
        let bias = linear_name(layer, module, "bias");
        let bias = match self.file.tensor(&bias) {
            Some(_) => Some(self.vector(&bias, shape.0, head_dim)?),
            None => None,
        };
        Ok(Linear { module, matrix, bias })
    }

    fn tensor(&mut self, name: &str) -> Result<&TensorInfo, LoadError> {
        let tensor = self.file.tensor(name).ok_or_else(|| missing(name))?;
        self.taken.insert(name.to_owned());
        Ok(tensor)
    }

    /// `head_dim` is given when the rows are interleaved in the file.
    fn matrix(
        &mut self,
        name: &str,
        shape: (usize, usize),
        head_dim: Option<usize>,
    ) -> Result<B::Matrix, LoadError> {
        self.taken.insert(name.to_owned());
        let backend = &mut *self.backend;
        Ok(with_matrix(self.file, name, shape, head_dim, |source| backend.matrix(source))??)
    }

    fn vector(
        &mut self,
        name: &str,
        len: usize,
        head_dim: Option<usize>,
    ) -> Result<B::Vector, LoadError> {
        let file = self.file;
        let tensor = self.tensor(name)?.clone();
        let values = floats(file, &tensor)?;
        if values.len() != len {
            return Err(LoadError::Tensor {
                tensor: tensor.name,
                problem: format!("has {} values, expected {len}", values.len()),
            });
        }
        let values = match head_dim {
            Some(head_dim) => (0..len).map(|row| values[interleaved_row(row, head_dim)]).collect(),
            None => values,
        };
        Ok(self.backend.vector(&values)?)
    }
}
