//! Hyper-parameters of one architecture.

use crate::site::TargetModule;

/// Which family of decoder the weights belong to. All are one decoder with parts switched on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1–3, `SmolLM2`, Mistral. GGUF files hold the rows of q and k permuted for interleaved `RoPE`.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms over the heads of q and k, no biases.
    Qwen3,
}

/// How rotary frequencies are changed for contexts longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Every frequency divided by `factor` (arXiv 2306.15595).
    Linear {
        /// Ratio of the new context to the original one.
        factor: f32,
    },
    /// `YaRN` (arXiv 2309.00071).
    Yarn {
        /// Ratio of the new context to the original one.
        factor: f32,
        /// Context of the first training, tokens.
        original_context: u32,
        /// Rotations above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which a frequency is divided by `factor`.
        beta_slow: f32,
        /// Multiplies cos and sin; `0.1 ln(factor) + 1` unless the file says otherwise.
        attention_factor: f32,
    },
    /// One divisor per frequency, as GGUF files of Llama 3.1 and later carry (`rope_freqs.weight`), `[head_dim / 2]`.
    Divisors(Vec<f32>),
}

/// Shape and constants of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Family.
    pub architecture: Architecture,
    /// Name from the file's metadata (`general.name`), or the family's.
    pub name: String,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward product.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence, tokens.
    pub context: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// `RoPE` base.
    pub rope_theta: f32,
    /// `RoPE` scaling.
    pub rope_scaling: RopeScaling,
}

impl ModelSpec {
    /// `(out_features, in_features)` of a linear of every layer, or of an end of the model.
    pub fn linear_shape(&self, module: TargetModule) -> (usize, usize) {
        let q_width = self.n_heads * self.head_dim;
        let kv_width = self.n_kv_heads * self.head_dim;
        match module {
            TargetModule::QProj => (q_width, self.hidden),
            TargetModule::KProj | TargetModule::VProj => (kv_width, self.hidden),
            TargetModule::OProj => (self.hidden, q_width),
            TargetModule::GateProj | TargetModule::UpProj => (self.ffn, self.hidden),
            TargetModule::DownProj => (self.hidden, self.ffn),
            TargetModule::EmbedTokens => (self.hidden, self.vocab),
            TargetModule::LmHead => (self.vocab, self.hidden),
        }
    }
}
