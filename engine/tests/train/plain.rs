//! The decoder in f64, plain loops over [`pleach_engine::reference`]: what gradients are compared with, by finite
//! differences.

use std::collections::HashMap;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    gguf::GgufFile,
    model::read_spec,
    quant::dequantize_row,
    reference::{attention::attention, matmul::matmul, norm::rms_norm, rope, swiglu::swiglu},
    site::{Site, TargetModule as M},
    spec::{Architecture, ModelSpec},
};

/// Low-rank factors of one site, in f64, `s` taken into `b`.
pub(crate) struct PlainSite {
    pub(crate) site: Site,
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    pub(crate) a: Vec<f64>,
    pub(crate) b: Vec<f64>,
}

pub(crate) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub(crate) fn plain_sites(weights: &AdapterWeights) -> Vec<PlainSite> {
    let of_site = |site: &pleach_engine::adapter_weights::SiteWeights| PlainSite {
        site: site.site,
        rank: site.rank,
        scale: f64::from(site.lora_scale),
        a: widen(&site.a),
        b: widen(&site.b),
    };
    weights.sites.iter().map(of_site).collect()
}

/// A model's values.
pub(crate) struct Plain {
    pub(crate) spec: ModelSpec,
    tensors: HashMap<String, Vec<f64>>,
}

impl Plain {
    pub(crate) fn open(path: &std::path::Path) -> Self {
        let file = GgufFile::open(path).unwrap();
        let spec = read_spec(&file).unwrap();
        let mut tensors = HashMap::new();
        for tensor in file.tensors() {
            let bytes = file.bytes(tensor);
            let (n_out, n_in) = tensor.shape2().unwrap_or_else(|_| (1, tensor.shape1().unwrap()));
            let row_bytes = bytes.len() / n_out;
            let mut values = vec![0f32; n_out * n_in];
            for (row, out) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(n_in)) {
                dequantize_row(tensor.format, row, out);
            }
            let mut values = widen(&values);
            let rotated = tensor.name.contains("attn_q.") || tensor.name.contains("attn_k.");
            if rotated && spec.architecture == Architecture::Llama {
                values = half_split(&values, n_in, spec.head_dim);
            }
            tensors.insert(tensor.name.clone(), values);
        }
        Self { spec, tensors }
    }

    fn linear(&self, sites: &[PlainSite], layer: usize, module: M, x: &[f64]) -> Vec<f64> {
        let name = match module {
            M::QProj => "attn_q",
            M::KProj => "attn_k",
            M::VProj => "attn_v",
            M::OProj => "attn_output",
            M::GateProj => "ffn_gate",
            M::UpProj => "ffn_up",
            M::DownProj => "ffn_down",
            M::EmbedTokens | M::LmHead => unreachable!("no linear of a layer"),
        };
        let (n_out, n_in) = self.spec.linear_shape(module);
        let mut y = matmul(&self.tensors[&format!("blk.{layer}.{name}.weight")], x, n_in);
        if let Some(bias) = self.tensors.get(&format!("blk.{layer}.{name}.bias")) {
            for row in y.chunks_exact_mut(n_out) {
                row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        if let Some(site) = sites.iter().find(|site| site.site == Site { layer, module }) {
            let delta = matmul(&site.b, &matmul(&site.a, x, n_in), site.rank);
            y.iter_mut().zip(delta).for_each(|(y, delta)| *y += site.scale * delta);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.tensors[name];
        let eps = f64::from(self.spec.rms_eps);
        x.chunks_exact(weight.len()).flat_map(|x| rms_norm(x, weight, eps)).collect()
    }

    /// Head norms and rotation of `[T, heads * head_dim]`.
    fn rotate(&self, norm: &str, x: &[f64], n_heads: usize) -> Vec<f64> {
        let spec = &self.spec;
        let dim = spec.head_dim;
        let normed = if self.tensors.contains_key(norm) { self.norm(norm, x) } else { x.to_vec() };
        let factor = rope::attention_factor(&spec.rope_scaling);
        let frequency = |i| {
            // Rounded to f32 like the kernels' (an angle error of f32 is no error of a gradient).
            rope::frequency(&spec.rope_scaling, f64::from(spec.rope_theta), dim, i)
        };
        let frequencies: Vec<f64> = (0..dim / 2).map(frequency).collect();
        let heads = normed.chunks_exact(dim).enumerate();
        let rotated = heads.flat_map(|(index, head)| {
            let position = (index / n_heads) as f64;
            let angles: Vec<f64> = frequencies.iter().map(|f| f * position).collect();
            rope::rope(head, &angles, factor)
        });
        rotated.collect()
    }

    /// Log-probabilities of `tokens[i]`, `i >= 1`, given those before it, of one sequence.
    pub(crate) fn logps(&self, sites: &[PlainSite], tokens: &[u32]) -> Vec<f64> {
        let spec = &self.spec;
        let (hidden, dim) = (spec.hidden, spec.head_dim);
        let table = &self.tensors["token_embd.weight"];
        let inputs = &tokens[..tokens.len() - 1];
        let row = |&token: &u32| table[token as usize * hidden..][..hidden].to_vec();
        let mut x: Vec<f64> = inputs.iter().flat_map(row).collect();
        let add = |x: &mut [f64], y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        for layer in 0..spec.n_layers {
            let normed = self.norm(&format!("blk.{layer}.attn_norm.weight"), &x);
            let [q, k, v] = [M::QProj, M::KProj, M::VProj]
                .map(|module| self.linear(sites, layer, module, &normed));
            let q = self.rotate(&format!("blk.{layer}.attn_q_norm.weight"), &q, spec.n_heads);
            let k = self.rotate(&format!("blk.{layer}.attn_k_norm.weight"), &k, spec.n_kv_heads);
            let mut attended = Vec::new();
            let of_head = |values: &[f64], head: usize, n_rows: usize| -> Vec<f64> {
                let rows = values.chunks_exact(spec.n_kv_heads * dim).take(n_rows);
                rows.flat_map(|row| row[head * dim..][..dim].to_vec()).collect()
            };
            for (index, q) in q.chunks_exact(dim).enumerate() {
                let (row, head) = (index / spec.n_heads, index % spec.n_heads);
                let kv_head = head / (spec.n_heads / spec.n_kv_heads);
                let [k, v] = [&k, &v].map(|values| of_head(values, kv_head, row + 1));
                attended.extend(attention(q, &k, &v, 1.0 / (dim as f64).sqrt()));
            }
            add(&mut x, self.linear(sites, layer, M::OProj, &attended));
            let normed = self.norm(&format!("blk.{layer}.ffn_norm.weight"), &x);
            let [gate, up] =
                [M::GateProj, M::UpProj].map(|module| self.linear(sites, layer, module, &normed));
            let product: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| swiglu(*g, *u)).collect();
            add(&mut x, self.linear(sites, layer, M::DownProj, &product));
        }
        let normed = self.norm("output_norm.weight", &x);
        let head = self.tensors.get("output.weight").unwrap_or(table);
        let logits = matmul(head, &normed, hidden);
        let rows = logits.chunks_exact(spec.vocab).zip(&tokens[1..]);
        rows.map(|(logits, &token)| {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            logits[token as usize] - largest - sum.ln()
        })
        .collect()
    }
}

/// From rows whose neighbours rotate together to rows whose halves do.
fn half_split(values: &[f64], n_in: usize, head_dim: usize) -> Vec<f64> {
    let n_rows = values.len() / n_in;
    let from = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (within % (head_dim / 2)) + within / (head_dim / 2)
    };
    (0..n_rows).flat_map(|row| values[from(row) * n_in..][..n_in].to_vec()).collect()
}
