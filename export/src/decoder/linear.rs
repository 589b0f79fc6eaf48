//! Linears: the base's product, its bias, and an adapter's part.

use pleach_engine::site::Site;

use crate::{
    error::ExportError,
    onnx::{Dim, Node, Tensor, int64, proto::DataType},
    weights::{
        Blocks, Encoding, Matrix, MatrixRows, write_blocks, write_blocks_transposed,
        write_floats_transposed,
    },
};

use super::{Decoder, Form, factor_names};

impl Decoder<'_, '_> {
    /// A linear of a layer.
    pub(super) fn linear(&mut self, site: Site, x: &str) -> Result<String, ExportError> {
        let merged = self
            .plan
            .merged
            .and_then(|weights| weights.sites.iter().find(|weights| weights.site == site));
        let shape = self.spec.linear_shape(site.module);
        let (path, name) = (node_path(site), format!("{}.weight", site.path()));
        let base = self.plan.base;
        let encoding = base.with(site, |source| {
            let matrix = Matrix::new(shape, MatrixRows::File(source), merged);
            self.write_linear(&name, &matrix, site)
        })??;
        let mut y = self.product(site, x, &name, shape, encoding);
        let mut bias = base.bias(site)?;
        if let Some((lora_bias, weights)) = merged.and_then(|w| Some((w.bias.as_ref()?, w))) {
            let sum = bias.get_or_insert_with(|| vec![0.0; shape.0]);
            for (sum, value) in sum.iter_mut().zip(lora_bias) {
                *sum += weights.lora_scale * value;
            }
        }
        if let Some(bias) = bias {
            let bias = self.graph.floats(&format!("{}.bias", site.path()), &[shape.0], &bias)?;
            y = self.graph.add(&format!("{path}/bias"), Node::new("Add", [y, bias]));
        }
        if self.plan.slots.contains(&site) {
            y = self.adapter(site, shape, x, y);
        }
        Ok(y)
    }

    /// A matrix that is multiplied with, in the form's order.
    pub(super) fn write_linear(
        &mut self,
        name: &str,
        matrix: &Matrix<'_, '_>,
        site: Site,
    ) -> Result<Encoding, ExportError> {
        let encoding = if self.plan.needs_floats(site) {
            Encoding::Floats
        } else {
            Encoding::of(matrix, self.plan.precision, site.module.is_end())
        };
        let graph = &mut self.graph;
        let loss = match (encoding, self.plan.form) {
            (Encoding::Floats, _) => {
                write_floats_transposed(graph, name, matrix)?;
                crate::weights::Loss::default()
            }
            (Encoding::Blocks(blocks), Form::Genai) => write_blocks(graph, name, matrix, blocks)?,
            (Encoding::Blocks(blocks), Form::Standard) => {
                write_blocks_transposed(graph, name, matrix, blocks)?
            }
        };
        self.tally.add(matrix, encoding, loss);
        Ok(encoding)
    }

    /// `x` times a matrix that [`Self::write_linear`] wrote, `[n_out, n_in]`.
    pub(super) fn product(
        &mut self,
        site: Site,
        x: &str,
        name: &str,
        shape: (usize, usize),
        encoding: Encoding,
    ) -> String {
        let path = &node_path(site);
        match (encoding, self.plan.form) {
            (Encoding::Floats, _) => self.graph.add(path, Node::new("MatMul", [x, name])),
            (Encoding::Blocks(blocks), Form::Genai) => {
                self.block_product(site, x, name, shape, blocks)
            }
            (Encoding::Blocks(blocks), Form::Standard) => {
                let [codes, scales] = ["codes", "scales"].map(|what| format!("{name}.{what}"));
                let node = Node::new("DequantizeLinear", [codes, scales])
                    .int("axis", 0)
                    .int("block_size", blocks.size);
                let weight = self.graph.add(&format!("{path}/dequantize"), node);
                let y = self.graph.add(path, Node::new("MatMul", [x.to_owned(), weight]));
                self.add_minima(path, x, y, name, shape, blocks, |sums, minima| {
                    Node::new("MatMul", [sums, minima])
                })
            }
        }
    }

    /// `x` times blocks in the order of rows.
    pub(super) fn block_product(
        &mut self,
        site: Site,
        x: &str,
        name: &str,
        shape: (usize, usize),
        blocks: Blocks,
    ) -> String {
        let path = &node_path(site);
        let [codes, scales] = ["codes", "scales"].map(|what| format!("{name}.{what}"));
        let node = Node::new("MatMulNBits", [x, &codes, &scales])
            .microsoft()
            .int("K", shape.1)
            .int("N", shape.0)
            .int("bits", blocks.bits as usize)
            .int("block_size", blocks.size)
            .int("accuracy_level", self.plan.accuracy_level(site).into());
        let y = self.graph.add(path, node);
        self.add_minima(path, x, y, name, shape, blocks, |sums, minima| {
            Node::new("FusedMatMul", [sums, minima]).microsoft().int("transB", 1)
        })
    }

    /// Every value of a block has its minimum, so their part is the block's sum of `x` times the minimum: exact, and a
    /// thirty-second of the work.
    #[expect(clippy::too_many_arguments, reason = "one product's names and shape")]
    fn add_minima(
        &mut self,
        path: &str,
        x: &str,
        y: String,
        name: &str,
        (_, n_in): (usize, usize),
        blocks: Blocks,
        product: impl FnOnce(String, String) -> Node,
    ) -> String {
        if !blocks.has_min {
            return y;
        }
        let key = (x.to_owned(), blocks.size);
        let sums = if let Some(sums) = self.block_sums.get(&key) {
            sums.clone()
        } else {
            let (size, n_blocks) = (int64(blocks.size), int64(n_in / blocks.size));
            let cut = self.graph.int64s(&[4], &[0, 0, n_blocks, size]);
            let path = format!("{x}/blocks_of_{size}");
            let cut = self.graph.add(&path, Node::new("Reshape", [x, &cut]));
            let last = self.graph.int64s(&[1], &[-1]);
            let node = Node::new("ReduceSum", [cut, last]).int("keepdims", 0);
            let sums = self.graph.add(&format!("{path}/sums"), node);
            self.block_sums.insert(key, sums.clone());
            sums
        };
        let part = product(sums, format!("{name}.minima"));
        let part = self.graph.add(&format!("{path}/minima"), part);
        self.graph.add(&format!("{path}/add_minima"), Node::new("Add", [y, part]))
    }

    /// `y + (x A) B`; both factors are inputs, of rank 0 unless they are given. Each site has a rank of its own: one for
    /// all would make ONNX Runtime reuse a buffer of the wrong size under an adapter on some sites only.
    fn adapter(&mut self, site: Site, (n_out, n_in): (usize, usize), x: &str, y: String) -> String {
        let [a, b] = factor_names(site);
        let rank = Dim::Named(format!("{}.rank", site.path()));
        self.graph.input(&a, DataType::Float, &[n_in.into(), rank.clone()]);
        self.graph.input(&b, DataType::Float, &[rank, n_out.into()]);
        for (name, dims) in [(&a, [n_in, 0]), (&b, [0, n_out])] {
            let tensor = Tensor { name, data_type: DataType::Float, dims: &dims };
            self.graph.inline(tensor, Vec::new());
        }
        let path = node_path(site);
        let v = self.graph.add(&format!("{path}/lora_A"), Node::new("MatMul", [x, &a]));
        let delta = self.graph.add(&format!("{path}/lora_B"), Node::new("MatMul", [v, b]));
        self.graph.add(&format!("{path}/add_lora"), Node::new("Add", [y, delta]))
    }
}

pub(super) fn node_path(site: Site) -> String {
    format!("/{}", site.path().replace('.', "/"))
}
