//! The decoder as a graph: embedding, layers, head; written once, over two forms.
//!
//! | form | operators | attention |
//! |---|---|---|
//! | `genai` | opset 21 and ONNX Runtime's own (`com.microsoft`) | `GroupQueryAttention` rotates, masks and caches |
//! | `standard` | opset 23 alone | `RotaryEmbedding`, a mask of its own, `Attention` |
//!
//! Inputs and outputs have the names that onnxruntime-genai expects: `input_ids`, `attention_mask`, `past_key_values.N.key`,
//! `logits`, `present.N.key`, …; `position_ids` in the standard form only.

mod attention;
mod ends;
mod linear;
mod norm;

use std::collections::{BTreeSet, HashMap};

use pleach_engine::{
    adapter_weights::AdapterWeights,
    model::{FileMatrices, NormKind},
    site::{Site, TargetModule},
    spec::{Architecture, ModelSpec},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::ExportError,
    onnx::{
        DataFile, Dim, Graph, Node,
        proto::{DataType, GraphProto},
    },
    weights::{Precision, Tally, WeightsWritten},
};

/// Which operators a graph is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// What onnxruntime-genai's own builder writes.
    Genai,
    /// ONNX alone; passes its checker.
    Standard,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Genai => "genai",
            Self::Standard => "standard",
        })
    }
}

/// What is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) base: &'a FileMatrices,
    pub(crate) form: Form,
    pub(crate) precision: Precision,
    /// Of products with blocks of codes: 0 keeps activations in f32, 4 rounds them to int8.
    pub(crate) accuracy_level: u8,
    /// Modules whose activations are never rounded.
    pub(crate) f32_activations: &'a BTreeSet<TargetModule>,
    /// Sites with an adapter's factors as inputs.
    pub(crate) slots: &'a BTreeSet<Site>,
    /// An adapter that becomes part of the weights.
    pub(crate) merged: Option<&'a AdapterWeights>,
}

impl Plan<'_> {
    /// Of a site's product.
    fn accuracy_level(&self, site: Site) -> u8 {
        if self.f32_activations.contains(&site.module) { 0 } else { self.accuracy_level }
    }

    /// Whether a site's matrix is written as floats so that its activations stay floats: the standard form has no
    /// accuracy level for each product, the session has one for all.
    fn needs_floats(&self, site: Site) -> bool {
        self.form == Form::Standard && self.accuracy_level(site) != self.accuracy_level
    }
}

/// The dimensions of inputs and outputs that vary.
const BATCH: &str = "batch_size";
const ROWS: &str = "sequence_length";
const PAST: &str = "past_sequence_length";
const TOTAL: &str = "total_sequence_length";

/// A decoder under construction.
struct Decoder<'a, 'g> {
    plan: Plan<'a>,
    spec: &'a ModelSpec,
    graph: Graph<'g>,
    tally: Tally,
    /// Sums of the blocks of an input, by its name and the size of a block: linears of one input share them.
    block_sums: HashMap<(String, usize), String>,
    shared: attention::Shared,
}

/// The graph, its weights in `data`, and what became of them.
pub(crate) fn build(
    plan: Plan<'_>,
    data: &mut DataFile,
    location: &str,
) -> Result<(GraphProto, Vec<WeightsWritten>), ExportError> {
    let mut graph = Graph::new(&plan.base.spec().name, data, location);
    graph.input("input_ids", DataType::Int64, &[BATCH.into(), ROWS.into()]);
    graph.input("attention_mask", DataType::Int64, &[BATCH.into(), TOTAL.into()]);
    let mut decoder = Decoder {
        plan,
        spec: plan.base.spec(),
        graph,
        tally: Tally::default(),
        block_sums: HashMap::new(),
        shared: attention::Shared::default(),
    };
    decoder.inputs_and_outputs();
    decoder.shared = decoder.shared_of_layers()?;
    decoder.run()?;
    Ok((decoder.graph.finish(), decoder.tally.finish()))
}

/// Name of a key or value in the cache, going in or coming out.
pub(crate) fn cache_names(layer: usize) -> [(String, String); 2] {
    ["key", "value"]
        .map(|what| (format!("past_key_values.{layer}.{what}"), format!("present.{layer}.{what}")))
}

/// Names of the two factors of a site's adapter, as `olive convert-adapters` writes them.
pub(crate) fn factor_names(site: Site) -> [String; 2] {
    ["A", "B"].map(|factor| format!("{}.lora_{factor}.weight", site.path()))
}

impl Decoder<'_, '_> {
    fn inputs_and_outputs(&mut self) {
        let spec = self.spec;
        if self.plan.form == Form::Standard {
            self.graph.input("position_ids", DataType::Int64, &[BATCH.into(), ROWS.into()]);
        }
        let logits = [BATCH.into(), ROWS.into(), spec.vocab.into()];
        self.graph.output("logits", DataType::Float, &logits);
        for layer in 0..spec.n_layers {
            for (past, present) in cache_names(layer) {
                let dims = |tokens: &str| -> [Dim; 4] {
                    [BATCH.into(), spec.n_kv_heads.into(), tokens.into(), spec.head_dim.into()]
                };
                self.graph.input(&past, DataType::Float, &dims(PAST));
                self.graph.output(&present, DataType::Float, &dims(TOTAL));
            }
        }
    }

    fn run(&mut self) -> Result<(), ExportError> {
        let mut residual = self.embedding()?;
        let mut normed = self.norm(&residual, 0, NormKind::Attention)?;
        let n_layers = self.spec.n_layers;
        for layer in 0..n_layers {
            let attended = self.attention(layer, &normed)?;
            (residual, normed) = self.add_and_norm(&residual, &attended, layer, NormKind::Ffn)?;
            let product = self.feed_forward(layer, &normed)?;
            let (next, kind) = match layer + 1 {
                next if next < n_layers => (next, NormKind::Attention),
                next => (next, NormKind::Final),
            };
            (residual, normed) = self.add_and_norm(&residual, &product, next, kind)?;
        }
        self.head(&normed)?;
        self.graph.rename_last_output("logits");
        Ok(())
    }

    fn attention(&mut self, layer: usize, x: &str) -> Result<String, ExportError> {
        use TargetModule as M;
        let site = |module| Site { layer, module };
        let mut q = self.linear(site(M::QProj), x)?;
        let mut k = self.linear(site(M::KProj), x)?;
        let v = self.linear(site(M::VProj), x)?;
        if self.spec.architecture == Architecture::Qwen3 {
            q = self.head_norm(&q, layer, NormKind::QHead)?;
            k = self.head_norm(&k, layer, NormKind::KHead)?;
        }
        let attended = self.attend(layer, [q, k, v]);
        self.linear(site(M::OProj), &attended)
    }

    fn feed_forward(&mut self, layer: usize, x: &str) -> Result<String, ExportError> {
        use TargetModule as M;
        let site = |module| Site { layer, module };
        let gate = self.linear(site(M::GateProj), x)?;
        let up = self.linear(site(M::UpProj), x)?;
        let path = |name: &str| format!("/model/layers/{layer}/mlp/{name}");
        let sigmoid = self.graph.add(&path("sigmoid"), Node::new("Sigmoid", [&gate]));
        let silu = self.graph.add(&path("silu"), Node::new("Mul", [gate, sigmoid]));
        let product = self.graph.add(&path("product"), Node::new("Mul", [silu, up]));
        self.linear(site(M::DownProj), &product)
    }
}
