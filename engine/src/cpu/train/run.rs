//! How large an operation is, and who runs it.

use std::ops::Range;

use crate::train::ProductPrecision;

use super::{
    lora::GRADIENT_COLUMNS,
    memory::VOCAB_CHUNK,
    ops::{Op, SiteAt},
    panel::PANEL,
    pass::TrainPass,
    plan::head_values,
};

/// Rows of a chunk of a row-wise operation.
pub(super) const ROWS: usize = 16;
/// Rows that share a dequantized panel.
pub(super) const PANEL_ROWS: usize = 512;
/// Rows of a chunk of a shrink.
pub(super) const SHRINK_ROWS: usize = 48;
/// Features of a chunk of a packed factor.
pub(super) const PACK_FEATURES: usize = 256;
/// What a value of a row-wise operation costs, in multiply-adds.
const VALUE_WORK: usize = 8;

impl TrainPass {
    /// Chunks of an operation, and about how many multiply-adds each is.
    pub(super) fn extent(&self, op: &Op) -> (usize, u64) {
        let (input, widths) = (&self.input, &self.memory.widths);
        let (spec, plan) = (&input.base.spec, &input.plan);
        let (rows, n_head_rows) = (plan.n_rows(), plan.head_rows().len());
        let by_rows =
            |rows: usize, width: usize| (rows.div_ceil(ROWS), rows.min(ROWS) * width * VALUE_WORK);
        // Panels of `outer` features by blocks of rows; two products of bf16 take the time of one, or less.
        let at_once = if input.precision == ProductPrecision::Bf16 { 2 } else { 1 };
        let by_panels = |rows: usize, outer: usize, inner: usize| {
            let panels = outer.div_ceil(PANEL);
            let work = (rows.min(PANEL_ROWS) / at_once + 8) * PANEL * inner;
            (panels * rows.div_ceil(PANEL_ROWS), work)
        };
        let shrink = |site: &SiteAt, inner| {
            let rank = super::lora::padded(input.site_weights(*site).rank);
            (rows.div_ceil(SHRINK_ROWS), rows.min(SHRINK_ROWS) / at_once * inner * rank)
        };
        let gradient = |site: &SiteAt, features: usize| {
            let rank = input.site_weights(*site).rank;
            let columns = features.min(GRADIENT_COLUMNS);
            (features.div_ceil(GRADIENT_COLUMNS), (rows / at_once + 8) * columns * rank)
        };
        let attention = |tiles: &[super::attention::QueryTile], products: usize| {
            let keys = tiles.iter().map(head_values).sum::<usize>() / tiles.len().max(1);
            (tiles.len() * spec.n_heads, keys * (spec.head_dim * products + VALUE_WORK))
        };
        let (chunks, work) = match op {
            Op::Embed | Op::Copy { .. } | Op::Norm { .. } | Op::NormBack { .. } => {
                by_rows(rows, spec.hidden)
            }
            Op::Zero(buffer) => by_rows(rows, self.memory[*buffer].stride),
            Op::Round { side, .. } => {
                let (n_rows, width) = self.side(*side);
                by_rows(n_rows, width.div_ceil(VALUE_WORK))
            }
            Op::Linear { at, .. } => {
                let matrix = input.matrix(*at);
                by_panels(rows, matrix.n_out, matrix.n_in)
            }
            Op::LinearBack { at, .. } => {
                let matrix = input.matrix(*at);
                by_panels(rows, matrix.n_in, matrix.n_out)
            }
            Op::Pack { site, .. } => {
                let (n_out, n_in) = input.site_shape(*site);
                let chunks = n_out.max(n_in).div_ceil(PACK_FEATURES);
                (chunks, PACK_FEATURES * input.site_weights(*site).rank * VALUE_WORK)
            }
            Op::Drop { site, .. } => by_rows(rows, 4 * input.site_shape(*site).1),
            Op::Shrink { site, .. } => shrink(site, input.site_shape(*site).1),
            Op::ShrinkBack { site, .. } => shrink(site, input.site_shape(*site).0),
            Op::PairUp { site, .. } => {
                let n_sequences = plan.sequences.len();
                let width = super::lora::padded(input.site_weights(*site).rank);
                (n_sequences, rows.div_ceil(n_sequences.max(1)) * width)
            }
            Op::GradientA { site, .. } => gradient(site, input.site_shape(*site).1),
            Op::GradientB { site, .. } => gradient(site, input.site_shape(*site).0),
            Op::Rotate { .. } | Op::RotateBack { .. } | Op::Turn { .. } => {
                by_rows(rows, widths.q + widths.kv)
            }
            Op::Attend { .. } => attention(&plan.tiles, 2),
            Op::AttendBackRows { group, .. } => {
                attention(&plan.tiles[plan.groups[*group].tiles.clone()], 3)
            }
            Op::AttendBackKeys { group } => {
                let group = &plan.groups[*group];
                let (chunks, work) = attention(&plan.tiles[group.tiles.clone()], 2);
                let tasks = group.key_tasks.len() * spec.n_kv_heads;
                (tasks, chunks * work / tasks.max(1))
            }
            Op::SwiGlu { .. } | Op::SwiGluBack { .. } => by_rows(rows, 4 * widths.ffn),
            Op::HeadInput | Op::HeadInputBack => by_rows(n_head_rows, spec.hidden),
            Op::Logits { .. } => by_panels(n_head_rows, VOCAB_CHUNK, spec.hidden),
            Op::HeadBack { .. } => by_panels(n_head_rows, spec.hidden, VOCAB_CHUNK),
            Op::FoldLogits { .. } | Op::LogitsBack { .. } => by_rows(n_head_rows, 2 * VOCAB_CHUNK),
            Op::FinishScores => {
                (1, (n_head_rows * (1 + self.top_k) + plan.targets().len()) * VALUE_WORK)
            }
            Op::FeaturesBack => (1, plan.batch.features().len() * spec.hidden),
        };
        (chunks, work as u64)
    }

    /// Runs some chunks of an operation.
    pub(super) fn run_op(&mut self, op: &Op, chunks: Range<usize>) {
        match *op {
            Op::Embed => self.embed(chunks),
            Op::Copy { from, to } => self.copy(chunks, from, to),
            Op::Zero(buffer) => self.zero(chunks, buffer),
            Op::Norm { x, norm, out } => self.norm(chunks, x, norm, out),
            Op::NormBack { x, norm, dy, dx } => self.norm_back(chunks, x, norm, dy, dx),
            Op::Round { from, side } => self.round(chunks, from, side),
            Op::Linear { at, site, x, out, accumulate } => {
                self.linear(chunks, at, site, x, out, accumulate);
            }
            Op::LinearBack { at, site, dy, dx, accumulate } => {
                self.linear_back(chunks, at, site, dy, dx, accumulate);
            }
            Op::Pack { site, backward } => self.pack(chunks, site, backward),
            Op::Drop { site, x } => self.drop_inputs(chunks, site, x),
            Op::Shrink { site, x } => self.shrink(chunks, site, x),
            Op::ShrinkBack { site, dy } => self.shrink_back(chunks, site, dy),
            Op::PairUp { site, v } => self.pair_up(chunks, site, v),
            Op::GradientA { site, x } => self.gradient_a(chunks, site, x),
            Op::GradientB { site, dy } => self.gradient_b(chunks, site, dy),
            Op::Rotate { layer, qkv } => self.rotate(chunks, layer, qkv),
            Op::Turn { from, to } => self.turn(chunks, from, to),
            Op::RotateBack { layer, qkv } => self.rotate_back(chunks, layer, qkv),
            Op::Attend { record } => self.attend(chunks, record),
            Op::AttendBackRows { record, group } => self.attend_back_rows(chunks, record, group),
            Op::AttendBackKeys { group } => self.attend_back_keys(chunks, group),
            Op::SwiGlu { gate_up } => self.swiglu(chunks, gate_up),
            Op::SwiGluBack { gate_up } => self.swiglu_back(chunks, gate_up),
            Op::HeadInput => self.head_input(chunks),
            Op::Logits { ref tiles } => self.logits(chunks, tiles.clone()),
            Op::FoldLogits { ref tiles } => self.fold_logits(chunks, tiles),
            Op::FinishScores => self.finish_scores(),
            Op::LogitsBack { ref tiles } => self.logits_back(chunks, tiles),
            Op::HeadBack { ref tiles } => self.head_back(chunks, tiles.clone()),
            Op::FeaturesBack => self.features_back(),
            Op::HeadInputBack => self.head_input_back(chunks),
        }
    }
}
