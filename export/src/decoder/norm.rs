//! RMS norms, alone and with the addition before them.

use pleach_engine::model::NormKind;

use crate::{error::ExportError, onnx::Node};

use super::{Decoder, Form};

impl Decoder<'_, '_> {
    pub(super) fn norm(
        &mut self,
        x: &str,
        layer: usize,
        kind: NormKind,
    ) -> Result<String, ExportError> {
        let (path, weight) = self.norm_weight(layer, kind)?;
        let node = self.plain_norm(x, &weight);
        Ok(self.graph.add(&path, node))
    }

    /// The sum of both, and its norm.
    pub(super) fn add_and_norm(
        &mut self,
        residual: &str,
        x: &str,
        layer: usize,
        kind: NormKind,
    ) -> Result<(String, String), ExportError> {
        let (path, weight) = self.norm_weight(layer, kind)?;
        if self.plan.form == Form::Standard {
            let sum = self.graph.add(&format!("{path}/add"), Node::new("Add", [residual, x]));
            let node = self.plain_norm(&sum, &weight);
            return Ok((sum, self.graph.add(&path, node)));
        }
        let node = Node::new("SkipSimplifiedLayerNormalization", [residual, x, &weight])
            .microsoft()
            .float("epsilon", self.spec.rms_eps);
        let (sum, normed) = (format!("{path}/sum"), format!("{path}/output"));
        // Mean and variance are not wanted.
        let outputs = vec![normed.clone(), String::new(), String::new(), sum.clone()];
        self.graph.add_to(&path, node, outputs);
        Ok((sum, normed))
    }

    /// Of every head of q or k, `[batch, rows, heads * head_dim]`.
    pub(super) fn head_norm(
        &mut self,
        x: &str,
        layer: usize,
        kind: NormKind,
    ) -> Result<String, ExportError> {
        let (path, weight) = self.norm_weight(layer, kind)?;
        let head_dim = crate::onnx::int64(self.spec.head_dim);
        let heads = self.graph.int64s(&[4], &[0, 0, -1, head_dim]);
        let split = self.graph.add(&format!("{path}/split"), Node::new("Reshape", [x, &heads]));
        let node = self.plain_norm(&split, &weight);
        let normed = self.graph.add(&path, node);
        let n_heads =
            if kind == NormKind::QHead { self.spec.n_heads } else { self.spec.n_kv_heads };
        let width = crate::onnx::int64(n_heads * self.spec.head_dim);
        let flat = self.graph.int64s(&[3], &[0, 0, width]);
        Ok(self.graph.add(&format!("{path}/join"), Node::new("Reshape", [normed, flat])))
    }

    fn plain_norm(&self, x: &str, weight: &str) -> Node {
        // The first is in ONNX's own domain without being in its schema: ONNX Runtime registers it so.
        let op = match self.plan.form {
            Form::Genai => "SimplifiedLayerNormalization",
            Form::Standard => "RMSNormalization",
        };
        Node::new(op, [x, weight])
            .signed("axis", -1)
            .float("epsilon", self.spec.rms_eps)
            .int("stash_type", 1)
    }

    /// Path of the node and name of the weight.
    fn norm_weight(
        &mut self,
        layer: usize,
        kind: NormKind,
    ) -> Result<(String, String), ExportError> {
        let module = match kind {
            NormKind::Attention => format!("model.layers.{layer}.input_layernorm"),
            NormKind::QHead => format!("model.layers.{layer}.self_attn.q_norm"),
            NormKind::KHead => format!("model.layers.{layer}.self_attn.k_norm"),
            NormKind::Ffn => format!("model.layers.{layer}.post_attention_layernorm"),
            NormKind::Final => "model.norm".to_owned(),
        };
        let values = self.plan.base.norm(layer, kind)?;
        let weight = self.graph.floats(&format!("{module}.weight"), &[values.len()], &values)?;
        Ok((format!("/{}", module.replace('.', "/")), weight))
    }
}
