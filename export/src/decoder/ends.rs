//! The embedding and the head, which may be one matrix.

use pleach_engine::{
    adapter_weights::{OwnMatrix, SiteWeights},
    site::Site,
};

use crate::{
    error::ExportError,
    onnx::{Node, int64, proto::DataType},
    weights::{Blocks, Encoding, Loss, Matrix, MatrixRows, write_blocks, write_floats},
};

use super::{Decoder, Form, linear::node_path};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// What a merged adapter does to an end of the model.
#[derive(Clone, Copy, Debug, Default)]
struct Change<'a> {
    own: Option<&'a OwnMatrix>,
    weights: Option<&'a SiteWeights>,
}

impl Change<'_> {
    fn is_none(&self) -> bool {
        self.own.is_none() && self.weights.is_none()
    }
}

impl<'a> Decoder<'a, '_> {
    /// Of the embedding and of the head.
    fn changes(&self) -> Result<[Change<'a>; 2], ExportError> {
        let Some(adapter) = self.plan.merged else { return Ok([Change::default(); 2]) };
        let [embedding, head] = adapter.own_ends(self.plan.base.is_tied())?;
        let of = |site| adapter.sites.iter().find(|weights| weights.site == site);
        Ok([
            Change { own: embedding, weights: of(Site::EMBEDDING) },
            Change { own: head, weights: of(Site::HEAD) },
        ])
    }

    /// Lends the matrix of an end.
    fn with_end<T>(
        &mut self,
        site: Site,
        change: Change<'_>,
        read: impl FnOnce(&mut Self, &Matrix<'_, '_>) -> Result<T, ExportError>,
    ) -> Result<T, ExportError> {
        let shape = (self.spec.vocab, self.spec.hidden);
        if let Some(own) = change.own {
            let matrix = Matrix::new(shape, MatrixRows::Own(&own.values), change.weights);
            return read(self, &matrix);
        }
        let base = self.plan.base;
        base.with(site, |source| {
            read(self, &Matrix::new(shape, MatrixRows::File(source), change.weights))
        })?
    }

    /// The rows of the tokens, `[batch, rows, hidden]`.
    pub(super) fn embedding(&mut self) -> Result<String, ExportError> {
        let [change, _] = self.changes()?;
        let encoding = self.with_end(Site::EMBEDDING, change, |this, matrix| {
            let encoding = Encoding::of(matrix, this.plan.precision, true);
            let loss = match encoding {
                Encoding::Floats => {
                    write_floats(&mut this.graph, EMBEDDING, matrix)?;
                    Loss::default()
                }
                Encoding::Blocks(blocks) => {
                    write_blocks(&mut this.graph, EMBEDDING, matrix, blocks)?
                }
            };
            this.tally.add(matrix, encoding, loss);
            Ok(encoding)
        })?;
        let path = node_path(Site::EMBEDDING);
        Ok(match encoding {
            Encoding::Floats => {
                self.graph.add(&path, Node::new("Gather", [EMBEDDING, "input_ids"]))
            }
            Encoding::Blocks(blocks) => self.embedding_of_blocks(&path, blocks)?,
        })
    }

    /// The blocks of the tokens, dequantized in the graph: `(code - zero point) * scale + minimum`.
    fn embedding_of_blocks(&mut self, path: &str, blocks: Blocks) -> Result<String, ExportError> {
        let (hidden, size) = (self.spec.hidden, blocks.size);
        let graph = &mut self.graph;
        let node = |name: &str| format!("{path}/{name}");
        let codes = format!("{EMBEDDING}.codes");
        let codes = graph.add(&node("codes"), Node::new("Gather", [&codes, "input_ids"]));
        let cast = Node::new("Cast", [codes]).signed("to", DataType::Float.into_i64());
        let mut codes = graph.add(&node("cast"), cast);
        let cut = graph.int64s(&[4], &[0, 0, int64(hidden / size), int64(size)]);
        if blocks.bits == 4 {
            // A byte is two codes: high * 16 + low.
            let sixteen = graph.floats(&node("sixteen"), &[], &[16.0])?;
            let shifted = graph.add(&node("shifted"), Node::new("Div", [&codes, &sixteen]));
            let high = graph.add(&node("high"), Node::new("Floor", [shifted]));
            let above = graph.add(&node("above"), Node::new("Mul", [&high, &sixteen]));
            let low = graph.add(&node("low"), Node::new("Sub", [codes, above]));
            let last = graph.int64s(&[1], &[-1]);
            let [low, high] = [("low", low), ("high", high)].map(|(name, half)| {
                let node = Node::new("Unsqueeze", [&half, &last]);
                graph.add(&format!("{path}/{name}_column"), node)
            });
            let pairs = Node::new("Concat", [low, high]).signed("axis", -1);
            let pairs = graph.add(&node("pairs"), pairs);
            codes = graph.add(&node("unpacked"), Node::new("Reshape", [&pairs, &cut]));
        }
        let zero = graph.floats(&node("zero_point"), &[], &[blocks.zero_point().into()])?;
        let mut values = graph.add(&node("signed"), Node::new("Sub", [codes, zero]));
        let last = graph.int64s(&[1], &[-1]);
        let minima = blocks.has_min.then_some(("minima", "Add"));
        for (name, op) in [("scales", "Mul")].into_iter().chain(minima) {
            let table = format!("{EMBEDDING}.{name}");
            let rows = graph.add(&node(name), Node::new("Gather", [&table, "input_ids"]));
            let column = Node::new("Unsqueeze", [&rows, &last]);
            let column = graph.add(&node(&format!("{name}_column")), column);
            values = graph.add(&node(&format!("with_{name}")), Node::new(op, [values, column]));
        }
        let flat = graph.int64s(&[3], &[0, 0, int64(hidden)]);
        Ok(graph.add(path, Node::new("Reshape", [values, flat])))
    }

    /// Adds the nodes of the logits; the last one's output is theirs.
    pub(super) fn head(&mut self, x: &str) -> Result<(), ExportError> {
        let [of_embedding, of_head] = self.changes()?;
        let (path, shape) = (node_path(Site::HEAD), (self.spec.vocab, self.spec.hidden));
        let is_shared = self.plan.base.is_tied() && of_embedding.is_none() && of_head.is_none();
        if is_shared {
            let precision = self.plan.precision;
            let encoding = self.with_end(Site::EMBEDDING, of_head, |_, matrix| {
                Ok(Encoding::of(matrix, precision, true))
            })?;
            match (encoding, self.plan.form) {
                (Encoding::Floats, Form::Genai) => {
                    let node = Node::new("FusedMatMul", [x, EMBEDDING]).microsoft();
                    self.graph.add(&path, node.int("transB", 1));
                    return Ok(());
                }
                (Encoding::Floats, Form::Standard) => {
                    let node = Node::new("Transpose", [EMBEDDING]).ints("perm", vec![1, 0]);
                    let weight = self.graph.add(&format!("{path}/transpose"), node);
                    self.graph.add(&path, Node::new("MatMul", [x, &weight]));
                    return Ok(());
                }
                (Encoding::Blocks(blocks), Form::Genai) => {
                    self.block_product(Site::HEAD, x, EMBEDDING, shape, blocks);
                    return Ok(());
                }
                // `DequantizeLinear` wants them in another order: they are written again.
                (Encoding::Blocks(_), Form::Standard) => {}
            }
        }
        let encoding = self.with_end(Site::HEAD, of_head, |this, matrix| {
            this.write_linear(HEAD, matrix, Site::HEAD)
        })?;
        let logits = self.product(Site::HEAD, x, HEAD, shape, encoding);
        // The base's head has no bias; an adapter's `lora_bias` gives it one.
        if let Some((weights, bias)) = of_head.weights.and_then(|w| Some((w, w.bias.as_ref()?))) {
            let bias: Vec<f32> = bias.iter().map(|value| weights.lora_scale * value).collect();
            let bias = self.graph.floats("lm_head.bias", &[bias.len()], &bias)?;
            self.graph.add(&format!("{path}/bias"), Node::new("Add", [logits, bias]));
        }
        Ok(())
    }
}
