//! Rotation, mask, cache and attention.

use pleach_engine::rope::RopeTable;

use crate::{
    error::ExportError,
    onnx::{Node, Tensor, proto::DataType},
};

use super::{Decoder, Form, cache_names};

/// Names of what every layer's attention reads.
#[derive(Debug, Default)]
pub(super) struct Shared {
    cos: String,
    sin: String,
    /// `genai`: the position of the last token of each sequence, and the length of the longest.
    lengths: [String; 2],
    /// `standard`: `[batch, 1, rows, total]`, true where a row sees a token.
    mask: String,
}

impl Decoder<'_, '_> {
    pub(super) fn shared_of_layers(&mut self) -> Result<Shared, ExportError> {
        let (cos, sin) = (self.angles("cos_cache", true)?, self.angles("sin_cache", false)?);
        let mut shared = Shared { cos, sin, ..Shared::default() };
        match self.plan.form {
            Form::Genai => shared.lengths = self.lengths(),
            Form::Standard => shared.mask = self.mask(),
        }
        Ok(shared)
    }

    /// Cos or sin of every position up to the context's end, `[context, head_dim / 2]`, with the scaling's factor.
    fn angles(&mut self, name: &str, is_cos: bool) -> Result<String, ExportError> {
        let table = RopeTable::new(self.spec);
        let half = self.spec.head_dim / 2;
        let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
        self.graph.data.begin()?;
        for position in 0..self.spec.context {
            table.angles(position, &mut cos, &mut sin);
            self.graph.data.floats(if is_cos { &cos } else { &sin })?;
        }
        let slice = self.graph.data.end();
        let dims = &[self.spec.context, half];
        self.graph.external(Tensor { name, data_type: DataType::Float, dims }, slice);
        Ok(name.to_owned())
    }

    /// From the mask, as the field's builder has it.
    fn lengths(&mut self) -> [String; 2] {
        let graph = &mut self.graph;
        let one = graph.int64s(&[1], &[1]);
        let tokens = Node::new("ReduceSum", ["attention_mask", &one]).int("keepdims", 0);
        let tokens = graph.add("/model/mask/tokens", tokens);
        let last = graph.add("/model/mask/last", Node::new("Sub", [tokens, one]));
        let to_int32 = |x: String| Node::new("Cast", [x]).signed("to", DataType::Int32.into_i64());
        let last = graph.add("/model/mask/last_int32", to_int32(last));
        let shape = graph.add("/model/mask/shape", Node::new("Shape", ["attention_mask"]));
        let index = graph.int64s(&[], &[1]);
        let total = graph.add("/model/mask/total", Node::new("Gather", [shape, index]));
        let total = graph.add("/model/mask/total_int32", to_int32(total));
        [last, total]
    }

    /// A row sees the tokens up to its own that the attention mask lets through, and itself in any case: so no row sees
    /// nothing, which would be a division by zero.
    fn mask(&mut self) -> String {
        let graph = &mut self.graph;
        let path = |name: &str| format!("/model/mask/{name}");
        let size_of = |graph: &mut crate::onnx::Graph<'_>, input: &str| {
            let shape = graph.add(&path(&format!("{input}_shape")), Node::new("Shape", [input]));
            let index = graph.int64s(&[], &[1]);
            graph.add(&path(&format!("{input}_size")), Node::new("Gather", [shape, index]))
        };
        let total = size_of(graph, "attention_mask");
        let rows = size_of(graph, "input_ids");
        let [zero, one] = [0, 1].map(|value| graph.int64s(&[], &[value]));
        let past = graph.add(&path("past"), Node::new("Sub", [&total, &rows]));
        let row = graph.add(&path("row"), Node::new("Range", [&past, &total, &one]));
        let token = graph.add(&path("token"), Node::new("Range", [&zero, &total, &one]));
        let last = graph.int64s(&[1], &[1]);
        let row = graph.add(&path("row_column"), Node::new("Unsqueeze", [row, last]));
        let is_past = graph.add(&path("is_past"), Node::new("GreaterOrEqual", [&row, &token]));
        let is_self = graph.add(&path("is_self"), Node::new("Equal", [&row, &token]));
        let given = Node::new("Cast", ["attention_mask"]).signed("to", DataType::Bool.into_i64());
        let given = graph.add(&path("given"), given);
        let heads_and_rows = graph.int64s(&[2], &[1, 2]);
        let given = Node::new("Unsqueeze", [given, heads_and_rows]);
        let given = graph.add(&path("given_of_rows"), given);
        let allowed = graph.add(&path("allowed"), Node::new("Or", [given, is_self]));
        graph.add(&path("visible"), Node::new("And", [allowed, is_past]))
    }

    /// `[batch, rows, heads * head_dim]` of q, k and v.
    pub(super) fn attend(&mut self, layer: usize, qkv: [String; 3]) -> String {
        let path = format!("/model/layers/{layer}/self_attn/attention");
        let [(past_key, key), (past_value, value)] = cache_names(layer);
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let scale = (1.0 / (self.spec.head_dim as f64).sqrt()) as f32;
        let (heads, kv_heads) = (self.spec.n_heads, self.spec.n_kv_heads);
        let node = match self.plan.form {
            Form::Genai => {
                let [q, k, v] = qkv;
                let [last, total] = self.shared.lengths.clone();
                let (cos, sin) = (self.shared.cos.clone(), self.shared.sin.clone());
                let inputs = [q, k, v, past_key, past_value, last, total, cos, sin];
                Node::new("GroupQueryAttention", inputs)
                    .microsoft()
                    .int("num_heads", heads)
                    .int("kv_num_heads", kv_heads)
                    .int("do_rotary", 1)
                    .int("rotary_interleaved", 0)
            }
            Form::Standard => {
                let [q, k, v] = qkv;
                let q = self.rotate(&format!("{path}/rotate_q"), q, heads);
                let k = self.rotate(&format!("{path}/rotate_k"), k, kv_heads);
                let mask = self.shared.mask.clone();
                Node::new("Attention", [q, k, v, mask, past_key, past_value])
                    .int("q_num_heads", heads)
                    .int("kv_num_heads", kv_heads)
            }
        };
        let output = format!("{path}/output");
        self.graph.add_to(&path, node.float("scale", scale), vec![output.clone(), key, value]);
        output
    }

    fn rotate(&mut self, path: &str, x: String, heads: usize) -> String {
        let (cos, sin) = (self.shared.cos.clone(), self.shared.sin.clone());
        let inputs = [x, cos, sin, "position_ids".to_owned()];
        self.graph.add(path, Node::new("RotaryEmbedding", inputs).int("num_heads", heads))
    }
}
