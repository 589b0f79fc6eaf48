//! A PEFT folder: `adapter_config.json`, a zero byte, `adapter_model.safetensors`, for a small model.

use pleach_adapters::{GenerationDigest, peft::load_peft_bytes};
use pleach_engine::spec::{Architecture, ModelSpec, RopeScaling};

use super::halves;

/// Two layers with sides that all differ: q 8, k and v 4, hidden 6, ffn 10, vocabulary 12.
fn spec() -> ModelSpec {
    ModelSpec {
        architecture: Architecture::Llama,
        name: "toy".to_owned(),
        n_layers: 2,
        hidden: 6,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 2,
        ffn: 10,
        vocab: 12,
        context: 64,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    }
}

/// Takes the bytes as an adapter's two files.
///
/// # Panics
/// When an adapter that was taken could not be served.
pub fn run(data: &[u8]) -> bool {
    let Some((config, tensors)) = halves(data) else { return false };
    let spec = spec();
    match load_peft_bytes(config, tensors, &spec) {
        Ok(adapter) => {
            assert_eq!(adapter.weights.check(&spec), Ok(()));
            assert_eq!(adapter.digest, GenerationDigest::of(&adapter.weights));
            assert!(adapter.tensor_bytes <= tensors.len() as u64);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
