//! An exported graph in ONNX Runtime.

use std::{borrow::Cow, fs, path::Path};

use ort::{
    session::{
        Adapter, IoBinding, RunOptions, Session, SessionInputValue, builder::SessionBuilder,
    },
    value::{DynValue, Tensor},
};
use prost::Message as _;

use super::{
    Subject,
    error::{VerifyError, onnx},
};
use crate::{
    decoder::{Form, cache_names},
    export::NamedAdapter,
    folder::MODEL_FILE,
    lora::factors,
    onnx::{int64, proto::ModelProto},
};

/// An open graph.
pub(super) struct OnnxModel {
    session: Session,
    form: Form,
    n_layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Keys and values of a batch; they grow from run to run.
pub(super) struct Cache {
    values: Vec<(String, DynValue)>,
    n_tokens: usize,
}

/// A batch of rows: sequences of one length, filled up at the end where they are shorter.
pub(super) struct Rows<'a> {
    /// `[batch][rows]`.
    pub(super) tokens: &'a [Vec<u32>],
    /// Tokens of each sequence that count, of the past too.
    pub(super) lengths: &'a [usize],
}

impl OnnxModel {
    /// Opens the graph of a folder. With another accuracy level than the exported one it is changed in memory.
    pub(super) fn open(
        subject: &Subject<'_>,
        folder: &Path,
        accuracy_level: u8,
    ) -> Result<Self, VerifyError> {
        let path = folder.join(MODEL_FILE);
        let action = || format!("opening {}", path.display());
        let mut builder = builder(subject, accuracy_level)?;
        let manifest = subject.manifest;
        let is_changed = accuracy_level != manifest.accuracy_level && manifest.form == Form::Genai;
        let session = if is_changed {
            let bytes = fs::read(&path).map_err(onnx(action()))?;
            let mut model = ModelProto::decode(bytes.as_slice()).map_err(onnx(action()))?;
            set_accuracy_level(&mut model, accuracy_level);
            builder
                .with_config_entry(
                    "session.model_external_initializers_file_folder_path",
                    folder.to_string_lossy(),
                )
                .map_err(onnx(action()))?
                .commit_from_memory(&model.encode_to_vec())
        } else {
            builder.commit_from_file(&path)
        };
        let session = session.map_err(onnx(action()))?;
        let found = session.metadata().ok().and_then(|data| data.custom("pleach.base.sha256"));
        if found.as_ref() != Some(&manifest.base.sha256) {
            let found = found.unwrap_or_else(|| "none".to_owned());
            return Err(VerifyError::OtherGraph { path, found });
        }
        let spec = subject.spec;
        Ok(Self {
            session,
            form: manifest.form,
            n_layers: spec.n_layers,
            kv_heads: spec.n_kv_heads,
            head_dim: spec.head_dim,
        })
    }

    /// An empty one.
    pub(super) fn cache(&self, batch: usize) -> Result<Cache, VerifyError> {
        let names = (0..self.n_layers).flat_map(cache_names);
        let values = names.map(|(past, _)| Ok((past, self.memory(batch, 0)?.into_dyn())));
        Ok(Cache { values: values.collect::<Result<_, VerifyError>>()?, n_tokens: 0 })
    }

    fn memory(&self, batch: usize, tokens: usize) -> Result<Tensor<f32>, VerifyError> {
        let dims = [batch, self.kv_heads, tokens, self.head_dim].map(int64);
        Tensor::new(self.session.allocator(), dims).map_err(onnx("making room for keys"))
    }

    /// Reads rows behind those of the cache; logits of all, `[batch, rows, vocab]`.
    pub(super) fn run(
        &mut self,
        rows: &Rows<'_>,
        cache: &mut Cache,
        options: &RunOptions,
    ) -> Result<Vec<f32>, VerifyError> {
        let action = "running";
        let past = cache.n_tokens;
        let n_rows = rows.tokens[0].len();
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in row_inputs(rows, past, self.form)? {
            inputs.push((name.into(), tensor.into()));
        }
        for (name, value) in cache.values.drain(..) {
            inputs.push((name.into(), value.into()));
        }
        let mut outputs = self.session.run_with_options(inputs, options).map_err(onnx(action))?;
        for (past, present) in (0..self.n_layers).flat_map(cache_names) {
            let value = outputs.remove(&present).ok_or_else(|| VerifyError::Onnx {
                action: action.to_owned(),
                problem: format!("there is no output {present}"),
            })?;
            cache.values.push((past, value));
        }
        cache.n_tokens = past + n_rows;
        let logits = outputs["logits"].try_extract_tensor::<f32>().map_err(onnx(action))?;
        Ok(logits.1.to_vec())
    }

    /// Keys and values in place, where the graph's attention can do that: what onnxruntime-genai does too. `None` where
    /// it cannot.
    pub(super) fn bound(
        &self,
        subject: &Subject<'_>,
        batch: usize,
        tokens_max: usize,
        adapter: Option<&NamedAdapter>,
    ) -> Result<Option<Bound>, VerifyError> {
        if self.form != Form::Genai {
            return Ok(None);
        }
        let action = || onnx("binding memory");
        let mut binding = self.session.create_binding().map_err(action())?;
        for (past, present) in (0..self.n_layers).flat_map(cache_names) {
            let memory = self.memory(batch, tokens_max)?;
            binding.bind_input(past, &memory).map_err(onnx("binding memory"))?;
            binding.bind_output(present, memory).map_err(onnx("binding memory"))?;
        }
        let weights = adapter.map(|named| factors(&named.adapter.weights, subject.spec));
        for factor in weights.into_iter().flatten() {
            // A run with bound memory knows no adapter file: the factors are inputs like others.
            let values = Tensor::from_array((factor.dims, factor.values())).map_err(action())?;
            binding.bind_input(factor.name, &values).map_err(onnx("binding memory"))?;
        }
        Ok(Some(Bound { binding, vocab: subject.spec.vocab, of_rows: 0 }))
    }

    /// Reads rows behind `past` tokens with bound memory; hands all logits on.
    pub(super) fn run_bound<T>(
        &mut self,
        rows: &Rows<'_>,
        past: usize,
        bound: &mut Bound,
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, VerifyError> {
        let (batch, n_rows) = (rows.tokens.len(), rows.tokens[0].len());
        for (name, tensor) in row_inputs(rows, past, self.form)? {
            bound.binding.bind_input(name, &tensor).map_err(onnx("running"))?;
        }
        if bound.of_rows != n_rows {
            let dims = [batch, n_rows, bound.vocab].map(int64);
            let logits = Tensor::<f32>::new(self.session.allocator(), dims);
            let logits = logits.map_err(onnx("making room for logits"))?;
            bound.binding.bind_output("logits", logits).map_err(onnx("binding memory"))?;
            bound.of_rows = n_rows;
        }
        let outputs = self.session.run_binding(&bound.binding).map_err(onnx("running"))?;
        let logits = outputs["logits"].try_extract_tensor::<f32>().map_err(onnx("running"))?;
        Ok(read(logits.1))
    }
}

/// Bound memory of a batch.
pub(super) struct Bound {
    binding: IoBinding,
    vocab: usize,
    /// Rows that there is room for the logits of.
    of_rows: usize,
}

/// The options of a run, with an adapter's file or without.
pub(super) fn run_options(file: Option<&Path>) -> Result<RunOptions, VerifyError> {
    let mut options = RunOptions::new().map_err(onnx("making options"))?;
    if let Some(file) = file {
        // The interface asks for an absolute path.
        let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let action = format!("opening {}", path.display());
        let adapter = Adapter::from_file(&path, None).map_err(onnx(action.clone()))?;
        options.add_adapter(&adapter).map_err(onnx(action))?;
    }
    Ok(options)
}

fn builder(subject: &Subject<'_>, accuracy_level: u8) -> Result<SessionBuilder, VerifyError> {
    let (options, action) = (subject.options, "setting up a session");
    Session::builder(&subject.runtime.environment)
        .map_err(onnx(action))?
        .with_intra_threads(options.threads)
        .map_err(onnx(action))?
        .with_inter_threads(1)
        .map_err(onnx(action))?
        .with_intra_op_spinning(options.spinning)
        .map_err(onnx(action))?
        // Of blocks that `DequantizeLinear` expresses; fused into products when the graph is opened.
        .with_config_entry("session.qdq_matmulnbits_accuracy_level", accuracy_level.to_string())
        .map_err(onnx(action))
}

fn set_accuracy_level(model: &mut ModelProto, level: u8) {
    let nodes = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
    for attribute in nodes.flat_map(|node| &mut node.attribute) {
        if attribute.name.as_deref() == Some("accuracy_level") {
            attribute.i = Some(level.into());
        }
    }
}

/// Tokens, mask and positions.
fn row_inputs(
    rows: &Rows<'_>,
    past: usize,
    form: Form,
) -> Result<Vec<(&'static str, Tensor<i64>)>, VerifyError> {
    let (batch, n_rows) = (rows.tokens.len(), rows.tokens[0].len());
    let total = past + n_rows;
    let ids = rows.tokens.iter().flatten().map(|&token| i64::from(token)).collect();
    let mask = rows.lengths.iter().flat_map(|&n| (0..total).map(move |at| i64::from(at < n)));
    let mut inputs = vec![
        ("input_ids", [batch, n_rows], ids),
        ("attention_mask", [batch, total], mask.collect()),
    ];
    if form == Form::Standard {
        let positions = (0..batch).flat_map(|_| (past..total).map(int64)).collect();
        inputs.push(("position_ids", [batch, n_rows], positions));
    }
    let tensor = |(name, dims, values): (_, [usize; 2], Vec<i64>)| {
        Ok((name, Tensor::from_array((dims, values)).map_err(onnx("making inputs"))?))
    };
    inputs.into_iter().map(tensor).collect()
}
