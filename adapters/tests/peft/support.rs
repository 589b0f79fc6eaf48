//! Small models, and adapters for them that a test can spoil.

use std::{collections::BTreeMap, path::PathBuf};

use pleach_adapters::{
    AdapterConfig, AdapterError, LoadedAdapter,
    peft::{TreeRoot, load_peft_bytes},
};
use pleach_engine::{
    site::Site,
    spec::{Architecture, ModelSpec, RopeScaling},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// A committed fixture.
pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/adapters").join(path)
}

/// `n_layers` layers with sides that all differ: q 8, k and v 4, hidden 6, ffn 10.
pub(crate) fn toy_spec(n_layers: usize) -> ModelSpec {
    ModelSpec {
        architecture: Architecture::Llama,
        name: "toy".to_owned(),
        n_layers,
        hidden: 6,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 2,
        ffn: 10,
        vocab: 32,
        context: 64,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
    }
}

/// The default model's shape.
pub(crate) fn smollm2_spec() -> ModelSpec {
    ModelSpec {
        name: "SmolLM2-135M-Instruct".to_owned(),
        n_layers: 30,
        hidden: 576,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocab: 49_152,
        context: 8192,
        rope_theta: 100_000.0,
        ..toy_spec(30)
    }
}

/// What PEFT writes for `{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}`.
pub(crate) fn config() -> Value {
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.21.2", "inference_mode": true,
        "base_model_name_or_path": "toy/base", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", "down_proj"], "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": false,
        "use_dora": false, "modules_to_save": null, "init_lora_weights": true, "loftq_config": {},
        "megatron_core": "megatron.core", "qalora_group_size": 16, "layers_to_transform": null,
    })
}

/// [`config`] with keys replaced or added.
pub(crate) fn config_with(edits: Value) -> Value {
    let mut config = config();
    let Value::Object(edits) = edits else { panic!("edits are an object") };
    config.as_object_mut().unwrap().extend(edits);
    config
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(shape: &[usize], values: impl Iterator<Item = f32>) -> Self {
        let bytes: Vec<u8> =
            values.take(shape.iter().product()).flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// The same values in another type.
    pub(crate) fn cast(&self, dtype: Dtype) -> Self {
        let values = self.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        #[expect(clippy::wildcard_enum_match_arm, reason = "the list of types is another crate's")]
        let bytes = match dtype {
            Dtype::F16 => {
                values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect()
            }
            Dtype::BF16 => {
                values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
            }
            Dtype::F64 => values.flat_map(|value| f64::from(value).to_le_bytes()).collect(),
            _ => panic!("no cast to {dtype:?}"),
        };
        Self { dtype, shape: self.shape.clone(), bytes }
    }
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A name as PEFT writes it: `layers.` of `rest` below the usual prefix.
pub(crate) fn name(rest: &str) -> String {
    format!("base_model.model.model.layers.{rest}")
}

/// Tensors that fit a config and model: small eighths, exact in every type.
pub(crate) fn tensors_for(config: &Value, spec: &ModelSpec) -> Tensors {
    let config = AdapterConfig::from_json(config.to_string().as_bytes()).unwrap();
    let mut tensors = Tensors::new();
    for (site, settings) in config.sites(spec, TreeRoot::CausalLm).unwrap() {
        let (n_out, n_in) = spec.linear_shape(site.module);
        let path = TreeRoot::CausalLm.path(site);
        let start = u16::try_from(site.layer * 7 + site.module.index()).unwrap();
        let values = move || (start..).map(|i| f32::from(i % 17) / 8.0 - 1.0);
        let embedding = site == Site::EMBEDDING;
        let [a, b] = if embedding {
            ["lora_embedding_A", "lora_embedding_B"]
        } else {
            ["lora_A.weight", "lora_B.weight"]
        };
        for (matrix, shape) in [(a, [settings.rank, n_in]), (b, [n_out, settings.rank])] {
            let tensor = Tensor::f32(&shape, values());
            tensors.insert(format!("base_model.model.{path}.{matrix}"), tensor);
        }
    }
    tensors
}

/// The file, written by the `safetensors` crate.
pub(crate) fn to_file(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A file with a header of one's own.
pub(crate) fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Loads for the toy model of two layers.
pub(crate) fn load(config: &Value, tensors: &Tensors) -> Result<LoadedAdapter, AdapterError> {
    load_peft_bytes(config.to_string().as_bytes(), &to_file(tensors), &toy_spec(2))
}

/// The usual adapter of the toy model, spoiled by `edit`, must be refused with this message.
pub(crate) fn check_refused(edit: impl FnOnce(&mut Tensors), message: &str) {
    let mut tensors = tensors_for(&config(), &toy_spec(2));
    edit(&mut tensors);
    assert_eq!(load(&config(), &tensors).unwrap_err().to_string(), message);
}
