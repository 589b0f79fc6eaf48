//! [`ModelSpec`] from the metadata of a GGUF file (keys: ggml's GGUF specification and llama.cpp's converter).

use crate::{
    gguf::{GgufError, GgufFile},
    spec::{Architecture, ModelSpec, RopeScaling},
};

use super::LoadError;

/// Widest layer taken, values: no real model comes near, and products of two such numbers do not overflow.
const WIDTH_MAX: usize = 1 << 20;
/// Most layers taken.
const LAYERS_MAX: usize = 1 << 10;
/// Longest context taken, tokens.
const CONTEXT_MAX: usize = 1 << 24;

/// Reads and checks the hyper-parameters.
pub(super) fn read_spec(file: &GgufFile) -> Result<ModelSpec, LoadError> {
    let family = file.require_str("general.architecture")?;
    let architecture = match family {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        _ => return Err(LoadError::Architecture(family.to_owned())),
    };
    let keys = Keys { file, family };
    for key in ["expert_count", "attention.causal"] {
        keys.refuse_unless_plain(key)?;
    }
    let hidden = keys.size("embedding_length", WIDTH_MAX)?;
    let n_heads = keys.size("attention.head_count", WIDTH_MAX)?;
    let n_kv_heads = keys.optional_size("attention.head_count_kv", WIDTH_MAX)?.unwrap_or(n_heads);
    let head_dim = match keys.optional_size("attention.key_length", WIDTH_MAX)? {
        Some(dim) => dim,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => {
            return Err(
                keys.invalid("attention.head_count", "does not divide the embedding length")
            );
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.optional_size(key, WIDTH_MAX)?.is_some_and(|dim| dim != head_dim) {
            return Err(
                keys.invalid(key, "differs from the length of a key, which is not supported")
            );
        }
    }
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(keys.invalid("attention.head_count_kv", "does not divide the number of heads"));
    }
    let mut context = keys.size("context_length", CONTEXT_MAX)?;
    // Within the window, sliding attention is full attention: the context ends where they would begin to differ.
    if let Some(window) = keys.optional_size("attention.sliding_window", CONTEXT_MAX)? {
        context = context.min(window);
    }
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let (vocab, _) = embedding.shape2()?;
    Ok(ModelSpec {
        architecture,
        name: file.str("general.name")?.unwrap_or(family).to_owned(),
        n_layers: keys.size("block_count", LAYERS_MAX)?,
        hidden,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn: keys.size("feed_forward_length", WIDTH_MAX)?,
        vocab,
        context,
        rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
        rope_theta: keys.optional_positive("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(&keys, head_dim)?,
    })
}

pub(super) fn missing(tensor: &str) -> LoadError {
    LoadError::MissingTensor(tensor.to_owned())
}

/// Keys under the family's prefix.
struct Keys<'a> {
    file: &'a GgufFile,
    family: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family)
    }

    fn invalid(&self, key: &str, problem: &str) -> LoadError {
        LoadError::Key { key: self.key(key), problem: problem.to_owned() }
    }

    fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>, LoadError> {
        let value = self.file.usize(&self.key(key))?;
        if value.is_some_and(|value| value == 0 || value > max) {
            return Err(self.invalid(key, &format!("is outside 1..={max}")));
        }
        Ok(value)
    }

    fn size(&self, key: &str, max: usize) -> Result<usize, LoadError> {
        self.optional_size(key, max)?
            .ok_or_else(|| GgufError::KeyMissing { key: self.key(key) }.into())
    }

    fn optional_positive(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let value = self.file.f32(&self.key(key))?;
        if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
            return Err(self.invalid(key, "is not a positive number"));
        }
        Ok(value)
    }

    fn positive(&self, key: &str) -> Result<f32, LoadError> {
        self.optional_positive(key)?
            .ok_or_else(|| GgufError::KeyMissing { key: self.key(key) }.into())
    }

    /// Refuses a key that would change the computation: experts, or attention that is not causal.
    fn refuse_unless_plain(&self, key: &str) -> Result<(), LoadError> {
        let name = self.key(key);
        let plain = match key {
            "attention.causal" => self.file.bool(&name)?.unwrap_or(true),
            _ => self.file.u64(&name)?.unwrap_or(0) == 0,
        };
        if plain { Ok(()) } else { Err(self.invalid(key, "asks for what is not supported")) }
    }
}

fn rope_scaling(keys: &Keys<'_>, head_dim: usize) -> Result<RopeScaling, LoadError> {
    let divisors = keys.file.tensor("rope_freqs.weight");
    let factor = match keys.optional_positive("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.optional_positive("rope.scale_linear")?,
    };
    let default = if factor.is_some() { "linear" } else { "none" };
    let kind = keys.file.str(&keys.key("rope.scaling.type"))?.unwrap_or(default);
    let scaling = match kind {
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor.unwrap_or(1.0) },
        "yarn" => yarn(keys, factor)?,
        _ => return Err(keys.invalid("rope.scaling.type", &format!("{kind:?} is not supported"))),
    };
    let Some(tensor) = divisors else { return Ok(scaling) };
    if scaling != RopeScaling::None {
        return Err(keys.invalid("rope.scaling.type", "is set, and so is rope_freqs.weight"));
    }
    let values = super::load::floats(keys.file, tensor)?;
    if values.len() != head_dim / 2 || !values.iter().all(|v| v.is_finite() && *v > 0.0) {
        return Err(LoadError::Tensor {
            tensor: tensor.name.clone(),
            problem: format!("must hold {} positive numbers", head_dim / 2),
        });
    }
    Ok(RopeScaling::Divisors(values))
}

fn yarn(keys: &Keys<'_>, factor: Option<f32>) -> Result<RopeScaling, LoadError> {
    let factor =
        factor.ok_or_else(|| GgufError::KeyMissing { key: keys.key("rope.scaling.factor") })?;
    let context = keys.size("rope.scaling.original_context_length", CONTEXT_MAX)?;
    // The converter writes transformers' `attention_factor`, which replaces the default, under the first name;
    // the second one multiplies the default.
    let default = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
    let attention_factor = match keys.optional_positive("rope.scaling.yarn_attn_factor")? {
        Some(factor) => factor,
        None => default * keys.optional_positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context: u32::try_from(context).unwrap_or(u32::MAX),
        beta_fast: keys.optional_positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.optional_positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor,
    })
}
