//! What model adapters fit, as far as they tell, for work that needs no model.

use pleach_engine::{
    site::TargetModule,
    spec::{Architecture, ModelSpec, RopeScaling},
};

use super::{
    error::AdapterError,
    files::PeftFiles,
    tensor_file,
    tensor_name::{Matrix, TensorName},
};

/// Most layers that are believed: the number decides how many names of sites are made.
const LAYERS_MAX: usize = 512;

/// Sides of the matrices of a model, learned from its adapters. What is learned first holds: an adapter of another shape
/// is refused when it is loaded, with its tensor named.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    sides: [Option<usize>; 5],
    n_layers: usize,
}

/// A side that several linears share, the index into [`Shapes::sides`].
#[derive(Clone, Copy)]
enum Side {
    Hidden,
    Queries,
    KeysOrValues,
    Ffn,
    Vocab,
}

/// Out and in, as [`ModelSpec::linear_shape`] has them.
fn sides(module: TargetModule) -> (Side, Side) {
    match module {
        TargetModule::QProj => (Side::Queries, Side::Hidden),
        TargetModule::KProj | TargetModule::VProj => (Side::KeysOrValues, Side::Hidden),
        TargetModule::OProj => (Side::Hidden, Side::Queries),
        TargetModule::GateProj | TargetModule::UpProj => (Side::Ffn, Side::Hidden),
        TargetModule::DownProj => (Side::Hidden, Side::Ffn),
        TargetModule::EmbedTokens => (Side::Hidden, Side::Vocab),
        TargetModule::LmHead => (Side::Vocab, Side::Hidden),
    }
}

impl Shapes {
    /// Takes in what the tensors of an adapter tell.
    ///
    /// # Errors
    /// A tensor file that is none. Names and shapes are judged when the adapter is loaded.
    pub fn learn(&mut self, files: &PeftFiles) -> Result<(), AdapterError> {
        for tensor in tensor_file::parse(&files.tensors)? {
            let Some(name) = TensorName::parse(&tensor.name) else { continue };
            if name.site.layer < LAYERS_MAX && !name.site.module.is_end() {
                self.n_layers = self.n_layers.max(name.site.layer + 1);
            }
            let (out, into) = sides(name.site.module);
            match (name.matrix, tensor.shape.as_slice()) {
                (Matrix::A, [_, n_in]) => self.set(into, *n_in),
                (Matrix::B, [n_out, _]) | (Matrix::Bias | Matrix::Magnitude, [n_out]) => {
                    self.set(out, *n_out);
                }
                (Matrix::Saved | Matrix::Base, [vocab, hidden]) => {
                    self.set(Side::Vocab, *vocab);
                    self.set(Side::Hidden, *hidden);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, side: Side, values: usize) {
        self.sides[side as usize].get_or_insert(values);
    }

    /// A model of these shapes, and nothing else that means anything. A side that no adapter told is 1.
    pub fn spec(&self) -> ModelSpec {
        let side = |side: Side| self.sides[side as usize].unwrap_or(1);
        ModelSpec {
            architecture: Architecture::Llama,
            name: String::new(),
            n_layers: self.n_layers,
            hidden: side(Side::Hidden),
            n_heads: side(Side::Queries),
            n_kv_heads: side(Side::KeysOrValues),
            head_dim: 1,
            ffn: side(Side::Ffn),
            vocab: side(Side::Vocab),
            context: 1,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
        }
    }
}
