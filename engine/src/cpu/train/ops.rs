//! The operations of a pass. Each is chunks of independent work; a unit is some chunks of one of them.

use std::ops::Range;

use crate::site::TargetModule;

use super::memory::{BufferId, Record};

/// Which norm.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Norm {
    Attention(usize),
    Ffn(usize),
}

/// Some columns of a buffer, from `column` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) buffer: BufferId,
    pub(crate) column: usize,
}

/// A site of the adapter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SiteAt {
    /// In the adapter's list.
    pub(crate) index: usize,
    /// Which of the linears that share an input: chooses the buffers for packed factors.
    pub(crate) part: usize,
    /// `s A x`.
    pub(crate) v: Columns,
}

/// A linear of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearAt {
    pub(crate) layer: usize,
    pub(crate) module: TargetModule,
}

/// What a product with frozen weights reads: its width, and whether its rows are those of the head.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// Inputs of a linear, and of those that share them.
    In(LinearAt),
    /// Gradients of its outputs, and of those before it in their buffer.
    Out(LinearAt),
    /// Inputs of the head.
    Head,
    /// Gradients of the logits of so many tiles.
    Logits(usize),
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// `residual[0] = embedding[token]`.
    Embed,
    Copy {
        from: BufferId,
        to: BufferId,
    },
    Zero(BufferId),
    Norm {
        x: BufferId,
        norm: Norm,
        out: BufferId,
    },
    /// Adds to `dx`.
    NormBack {
        x: BufferId,
        norm: Norm,
        dy: BufferId,
        dx: BufferId,
    },
    /// Rounds to bf16 what the products that follow read.
    Round {
        from: BufferId,
        side: Side,
    },
    /// `out (+)= W x + bias + B v`.
    Linear {
        at: LinearAt,
        site: Option<SiteAt>,
        x: BufferId,
        out: Columns,
        accumulate: bool,
    },
    /// `dx (+)= Wᵀ dy + Aᵀ dv`.
    LinearBack {
        at: LinearAt,
        site: Option<SiteAt>,
        dy: Columns,
        dx: BufferId,
        accumulate: bool,
    },
    /// Copies of `A` and `B` as [`Op::Shrink`] and [`Op::Linear`] read them, or their backward halves.
    Pack {
        site: SiteAt,
        backward: bool,
    },
    /// `dropped = dropout(x)`.
    Drop {
        site: SiteAt,
        x: BufferId,
    },
    /// `v = s A x`.
    Shrink {
        site: SiteAt,
        x: BufferId,
    },
    /// `dv = s Bᵀ dy`.
    ShrinkBack {
        site: SiteAt,
        dy: Columns,
    },
    /// Two rows at a time what the next gradient multiplies, in bf16.
    PairUp {
        site: SiteAt,
        v: Columns,
    },
    /// `dA += dvᵀ x`.
    GradientA {
        site: SiteAt,
        x: BufferId,
    },
    /// `dB += dyᵀ v`.
    GradientB {
        site: SiteAt,
        dy: Columns,
    },
    /// Head norms and rotation of q and k.
    Rotate {
        layer: usize,
        qkv: BufferId,
    },
    /// Keys or values turned round.
    Turn {
        from: Columns,
        to: BufferId,
    },
    /// From gradients of rotated q and k to those of the projection's output, in place.
    RotateBack {
        layer: usize,
        qkv: BufferId,
    },
    Attend {
        record: Record,
    },
    /// Weights and gradients of queries, for a group of tiles.
    AttendBackRows {
        record: Record,
        group: usize,
    },
    /// Gradients of keys and values from the same group.
    AttendBackKeys {
        group: usize,
    },
    SwiGlu {
        gate_up: BufferId,
    },
    SwiGluBack {
        gate_up: BufferId,
    },
    /// Final norm of the head rows.
    HeadInput,
    /// Logits of some tiles of the vocabulary.
    Logits {
        tiles: Range<usize>,
    },
    /// Takes them into the head rows' sums.
    FoldLogits {
        tiles: Range<usize>,
    },
    /// Log-probabilities from the sums.
    FinishScores,
    /// From logits to their gradients.
    LogitsBack {
        tiles: Range<usize>,
    },
    /// `d_head_input += Wᵀ dlogits`.
    HeadBack {
        tiles: Range<usize>,
    },
    /// Adds the slopes of features to `d_head_input`.
    FeaturesBack,
    /// Back through the final norm, to the head rows.
    HeadInputBack,
}
