//! Where an adapter may act.

use std::fmt;

/// A linear projection of a decoder layer, named as PEFT and Hugging Face name it.
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
}

impl TargetModule {
    /// Every module, in the order in which a layer computes them.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The last component of the Hugging Face module path, `q_proj` … `down_proj`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The component before the name: `self_attn` or `mlp`.
    pub const fn parent(self) -> &'static str {
        match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
        }
    }

    /// The module with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// Position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One place where an adapter may act: a linear of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Decoder layer, from 0.
    pub layer: usize,
    /// Which linear of that layer.
    pub module: TargetModule,
}

impl Site {
    /// The module path in a Hugging Face causal language model, `model.layers.3.self_attn.q_proj`.
    pub fn path(self) -> String {
        format!("model.layers.{}.{}.{}", self.layer, self.module.parent(), self.module.name())
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}
