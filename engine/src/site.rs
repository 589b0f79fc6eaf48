//! Where an adapter may act.

use std::fmt;

/// A linear projection of a decoder layer, or one of the two ends of the model, named as PEFT and Hugging Face name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetModule {
    /// `self_attn.q_proj`, `[heads * head_dim, hidden]`.
    QProj,
    /// `self_attn.k_proj`, `[kv_heads * head_dim, hidden]`.
    KProj,
    /// `self_attn.v_proj`, `[kv_heads * head_dim, hidden]`.
    VProj,
    /// `self_attn.o_proj`, `[hidden, heads * head_dim]`.
    OProj,
    /// `mlp.gate_proj`, `[ffn, hidden]`.
    GateProj,
    /// `mlp.up_proj`, `[ffn, hidden]`.
    UpProj,
    /// `mlp.down_proj`, `[hidden, ffn]`.
    DownProj,
    /// `embed_tokens`, the embedding. As a linear it maps a token to its row: `[hidden, vocab]`.
    EmbedTokens,
    /// `lm_head`, `[vocab, hidden]`.
    LmHead,
}

impl TargetModule {
    /// Every module of a layer, in the order in which it computes them; without the ends of the model.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The embedding and the head: once in a model, not in every layer.
    pub const ENDS: [Self; 2] = [Self::EmbedTokens, Self::LmHead];

    /// Whether it is one of [`Self::ENDS`].
    pub const fn is_end(self) -> bool {
        matches!(self, Self::EmbedTokens | Self::LmHead)
    }

    /// The last component of the Hugging Face module path, `q_proj` … `down_proj`, `embed_tokens`, `lm_head`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
            Self::EmbedTokens => "embed_tokens",
            Self::LmHead => "lm_head",
        }
    }

    /// The component before the name in a layer: `self_attn` or `mlp`; `None` for the ends of the model.
    pub const fn parent(self) -> Option<&'static str> {
        match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => Some("self_attn"),
            Self::GateProj | Self::UpProj | Self::DownProj => Some("mlp"),
            Self::EmbedTokens | Self::LmHead => None,
        }
    }

    /// The module of a layer with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// Position in [`Self::ALL`]; the ends of the model follow.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One place where an adapter may act: a linear of one layer, or an end of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Decoder layer, from 0; 0 for the ends of the model.
    pub layer: usize,
    /// Which linear of that layer.
    pub module: TargetModule,
}

impl Site {
    /// The embedding.
    pub const EMBEDDING: Self = Self { layer: 0, module: TargetModule::EmbedTokens };
    /// The head.
    pub const HEAD: Self = Self { layer: 0, module: TargetModule::LmHead };

    /// The module path in a Hugging Face causal language model, `model.layers.3.self_attn.q_proj`.
    pub fn path(self) -> String {
        let name = self.module.name();
        match self.module.parent() {
            Some(parent) => format!("model.layers.{}.{parent}.{name}", self.layer),
            None if self.module == TargetModule::EmbedTokens => format!("model.{name}"),
            None => name.to_owned(),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}
