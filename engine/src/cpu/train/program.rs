//! The operations of a pass in their order.

use std::ops::Range;

use crate::{
    cpu::simd::LANES,
    site::TargetModule as M,
    train::{AdapterShape, ProductPrecision},
};

use super::{
    memory::{BufferId, Memory, Record, VOCAB_CHUNK},
    ops::{Columns, LinearAt, Norm, Op, Side, SiteAt},
};

/// What the programs of a pass depend on.
pub(crate) struct Builder<'a> {
    pub(crate) memory: &'a Memory,
    /// `None` without an adapter.
    pub(crate) shape: Option<&'a AdapterShape>,
    pub(crate) n_layers: usize,
    /// Tiles of the head.
    pub(crate) head_tiles: usize,
    /// Groups of query tiles.
    pub(crate) n_groups: usize,
    pub(crate) has_targets: bool,
    pub(crate) has_features: bool,
    pub(crate) dropout: bool,
    pub(crate) precision: ProductPrecision,
}

const QKV: [M; 3] = [M::QProj, M::KProj, M::VProj];
const GATE_UP: [M; 2] = [M::GateProj, M::UpProj];

impl Builder<'_> {
    /// From tokens to log-probabilities of the targets, and to features.
    pub(crate) fn forward(&self) -> Vec<Op> {
        let memory = self.memory;
        let mut ops = vec![Op::Embed];
        for layer in 0..self.n_layers {
            let (record, out) = (memory.record(layer), memory.residual[layer + 1]);
            self.layer(&mut ops, layer);
            ops.push(Op::SwiGlu { gate_up: record.gate_up });
            ops.push(Op::Copy { from: record.middle, to: out });
            self.linears(&mut ops, layer, &[M::DownProj], memory.product, out, true);
        }
        ops.push(Op::HeadInput);
        self.round(&mut ops, memory.head_input, Side::Head);
        for tiles in self.vocab_chunks() {
            ops.push(Op::Logits { tiles: tiles.clone() });
            ops.push(Op::FoldLogits { tiles });
        }
        ops.push(Op::FinishScores);
        ops
    }

    /// A layer up to its gate and up projections: all that its record holds.
    fn layer(&self, ops: &mut Vec<Op>, layer: usize) {
        let (memory, record) = (self.memory, self.memory.record(layer));
        let x = memory.residual[layer];
        ops.push(Op::Norm { x, norm: Norm::Attention(layer), out: memory.normed });
        self.linears(ops, layer, &QKV, memory.normed, record.qkv, false);
        self.rotate(ops, layer, record);
        ops.push(Op::Attend { record });
        ops.push(Op::Copy { from: x, to: record.middle });
        self.linears(ops, layer, &[M::OProj], record.attended, record.middle, true);
        ops.push(Op::Norm { x: record.middle, norm: Norm::Ffn(layer), out: memory.normed });
        self.linears(ops, layer, &GATE_UP, memory.normed, record.gate_up, false);
    }

    fn rotate(&self, ops: &mut Vec<Op>, layer: usize, record: Record) {
        let memory = self.memory;
        ops.push(Op::Rotate { layer, qkv: record.qkv });
        let keys = Columns { buffer: memory.rotated, column: memory.widths.column(M::KProj) };
        ops.push(Op::Turn { from: keys, to: memory.k_turned });
    }

    /// From slopes of targets and features to gradients of the adapter. Layers below its lowest site have none.
    pub(crate) fn backward(&self) -> Vec<Op> {
        let memory = self.memory;
        let Some(lowest) = self.shape.and_then(|shape| shape.sites.first()) else {
            return Vec::new();
        };
        let mut ops = vec![Op::Zero(memory.d_head_input), Op::Zero(memory.d_residual)];
        for tiles in self.vocab_chunks() {
            if !memory.keeps_logits {
                self.round(&mut ops, memory.head_input, Side::Head);
                ops.push(Op::Logits { tiles: tiles.clone() });
            }
            ops.push(Op::LogitsBack { tiles: tiles.clone() });
            self.round(&mut ops, memory.logits(tiles.start), Side::Logits(tiles.len()));
            ops.push(Op::HeadBack { tiles });
        }
        if self.has_features {
            ops.push(Op::FeaturesBack);
        }
        ops.push(Op::HeadInputBack);
        for layer in (lowest.0.layer..self.n_layers).rev() {
            if !memory.keeps(layer) {
                self.layer(&mut ops, layer);
            }
            self.ffn_back(&mut ops, layer);
            self.attention_back(&mut ops, layer, layer > lowest.0.layer);
        }
        ops
    }

    fn ffn_back(&self, ops: &mut Vec<Op>, layer: usize) {
        let (memory, record) = (self.memory, self.memory.record(layer));
        let d_residual = memory.d_residual;
        ops.push(Op::SwiGlu { gate_up: record.gate_up });
        if !memory.keeps(layer) {
            // All of the layer but its last linear was computed again.
            let at = LinearAt { layer, module: M::DownProj };
            self.shrink(ops, at, self.site(layer, M::DownProj, 0), memory.product, false);
        }
        // The gradient of the product takes its place.
        let (x, dx) = (memory.product, Some(memory.product));
        self.linears_back(ops, layer, &[M::DownProj], x, d_residual, dx);
        ops.push(Op::SwiGluBack { gate_up: record.gate_up });
        let norm = Norm::Ffn(layer);
        ops.push(Op::Norm { x: record.middle, norm, out: memory.normed });
        let (x, dx) = (memory.normed, Some(memory.normed));
        self.linears_back(ops, layer, &GATE_UP, x, record.gate_up, dx);
        ops.push(Op::NormBack { x: record.middle, norm, dy: memory.normed, dx: d_residual });
    }

    /// `below`: something below the layer is trained too.
    fn attention_back(&self, ops: &mut Vec<Op>, layer: usize, below: bool) {
        let (memory, record) = (self.memory, self.memory.record(layer));
        let (x, d_residual) = (memory.residual[layer], memory.d_residual);
        let d_attended = Some(memory.d_attended);
        self.linears_back(ops, layer, &[M::OProj], record.attended, d_residual, d_attended);
        self.rotate(ops, layer, record);
        let values = Columns { buffer: record.qkv, column: memory.widths.column(M::VProj) };
        ops.push(Op::Turn { from: values, to: memory.v_turned });
        ops.push(Op::Zero(memory.d_qkv));
        for group in 0..self.n_groups {
            ops.push(Op::AttendBackRows { record, group });
            ops.push(Op::AttendBackKeys { group });
        }
        ops.push(Op::RotateBack { layer, qkv: record.qkv });
        let norm = Norm::Attention(layer);
        ops.push(Op::Norm { x, norm, out: memory.normed });
        let dx = below.then_some(memory.normed);
        self.linears_back(ops, layer, &QKV, memory.normed, memory.d_qkv, dx);
        if below {
            ops.push(Op::NormBack { x, norm, dy: memory.normed, dx: d_residual });
        }
    }

    /// Linears that share an input, each into its columns of `out`.
    fn linears(
        &self,
        ops: &mut Vec<Op>,
        layer: usize,
        modules: &[M],
        x: BufferId,
        out: BufferId,
        accumulate: bool,
    ) {
        let mut is_rounded = false;
        for (part, &module) in modules.iter().enumerate() {
            let (at, site) = (LinearAt { layer, module }, self.site(layer, module, part));
            is_rounded = self.shrink(ops, at, site, x, is_rounded);
            if !is_rounded {
                self.round(ops, x, Side::In(at));
                is_rounded = true;
            }
            let out = Columns { buffer: out, column: self.memory.widths.column(module) };
            ops.push(Op::Linear { at, site, x, out, accumulate });
        }
    }

    /// `s A x` of a linear, and what its second half needs. Given whether `x` is what was rounded last, tells whether it
    /// still is.
    fn shrink(
        &self,
        ops: &mut Vec<Op>,
        at: LinearAt,
        site: Option<SiteAt>,
        x: BufferId,
        is_rounded: bool,
    ) -> bool {
        let Some(site) = site else { return is_rounded };
        ops.push(Op::Pack { site, backward: false });
        let seen = self.dropped(ops, site, x);
        if !is_rounded || seen != x {
            self.round(ops, seen, Side::In(at));
        }
        ops.push(Op::Shrink { site, x: seen });
        seen == x
    }

    /// Their gradients; `dx` may be the buffer of `x`.
    fn linears_back(
        &self,
        ops: &mut Vec<Op>,
        layer: usize,
        modules: &[M],
        x: BufferId,
        dy: BufferId,
        dx: Option<BufferId>,
    ) {
        if let Some(&module) = modules.last() {
            self.round(ops, dy, Side::Out(LinearAt { layer, module }));
        }
        let dy = |module| Columns { buffer: dy, column: self.memory.widths.column(module) };
        for (part, &module) in modules.iter().enumerate() {
            let Some(site) = self.site(layer, module, part) else { continue };
            ops.push(Op::Pack { site, backward: true });
            ops.push(Op::ShrinkBack { site, dy: dy(module) });
            self.pair_up(ops, site, site.v);
            ops.push(Op::GradientB { site, dy: dy(module) });
            let x = self.dropped(ops, site, x);
            self.pair_up(ops, site, Columns { buffer: self.memory.dv[part], column: 0 });
            ops.push(Op::GradientA { site, x });
        }
        let Some(dx) = dx else { return };
        for (part, &module) in modules.iter().enumerate() {
            let (at, site) = (LinearAt { layer, module }, self.site(layer, module, part));
            ops.push(Op::LinearBack { at, site, dy: dy(module), dx, accumulate: part > 0 });
        }
    }

    fn round(&self, ops: &mut Vec<Op>, from: BufferId, side: Side) {
        if self.precision == ProductPrecision::Bf16 {
            ops.push(Op::Round { from, side });
        }
    }

    fn pair_up(&self, ops: &mut Vec<Op>, site: SiteAt, v: Columns) {
        if self.precision == ProductPrecision::Bf16 {
            ops.push(Op::PairUp { site, v });
        }
    }

    fn dropped(&self, ops: &mut Vec<Op>, site: SiteAt, x: BufferId) -> BufferId {
        if !self.dropout {
            return x;
        }
        ops.push(Op::Drop { site, x });
        self.memory.dropped
    }

    fn site(&self, layer: usize, module: M, part: usize) -> Option<SiteAt> {
        let sites = &self.shape?.sites;
        let index =
            sites.iter().position(|(site, _)| (site.layer, site.module) == (layer, module))?;
        let before = sites[..index].iter().rev().take_while(|(site, _)| site.layer == layer);
        let column = before.map(|(_, rank)| super::lora::padded(*rank)).sum();
        let v = Columns { buffer: self.memory.record(layer).v, column };
        Some(SiteAt { index, part, v })
    }

    /// Tiles of the head, as many at a time as there is memory for logits; none where no token's logit is wanted.
    fn vocab_chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let n = if self.has_targets { self.head_tiles } else { 0 };
        let tiles = VOCAB_CHUNK / LANES;
        (0..n).step_by(tiles).map(move |first| first..n.min(first + tiles))
    }
}
