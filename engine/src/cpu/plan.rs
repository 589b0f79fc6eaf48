//! What a step looks like to the kernels: made once a step, read by every layer.

use std::ops::Range;

use crate::{rope::RopeTable, spec::ModelSpec, step_batch::StepBatch};

use super::{attention::VECTORS_MAX, lora::NO_SLOT};

/// Query vectors that one task of attention computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttentionTask {
    /// Index into the batch's sequences.
    pub(crate) sequence: usize,
    pub(crate) kv_head: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) heads: Range<usize>,
}

/// Rows of one adapter.
#[derive(Debug, Default)]
pub(crate) struct SlotRows {
    pub(crate) slot: u32,
    pub(crate) rows: Vec<u32>,
}

/// The plan. Vectors keep their memory from step to step.
#[derive(Debug, Default)]
pub(crate) struct StepPlan {
    pub(crate) n_rows: usize,
    /// Slot of each row, or [`NO_SLOT`].
    pub(crate) slots: Vec<u32>,
    /// Rows by adapter; the first `n_slots` are in use.
    groups: Vec<SlotRows>,
    n_groups: usize,
    /// `[T, head_dim / 2]`.
    pub(crate) cos: Vec<f32>,
    /// `[T, head_dim / 2]`.
    pub(crate) sin: Vec<f32>,
    /// In descending order of work, nearly.
    pub(crate) attention: Vec<AttentionTask>,
}

impl StepPlan {
    /// Plans a step for `n_threads` threads.
    pub(crate) fn begin(
        &mut self,
        batch: &StepBatch,
        spec: &ModelSpec,
        rope: &RopeTable,
        n_threads: usize,
    ) {
        self.n_rows = batch.n_rows();
        self.plan_slots(batch);
        let half = spec.head_dim / 2;
        self.cos.resize(self.n_rows * half, 0.0);
        self.sin.resize(self.n_rows * half, 0.0);
        let angles = self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half));
        for (&position, (cos, sin)) in batch.positions.iter().zip(angles) {
            rope.angles(position, cos, sin);
        }
        self.plan_attention(batch, spec, n_threads);
    }

    /// Rows by adapter, one entry for each adapter of the step.
    pub(crate) fn groups(&self) -> &[SlotRows] {
        &self.groups[..self.n_groups]
    }

    fn plan_slots(&mut self, batch: &StepBatch) {
        self.slots.clear();
        self.slots.resize(self.n_rows, NO_SLOT);
        self.n_groups = 0;
        for sequence in &batch.sequences {
            let Some(slot) = sequence.adapter else { continue };
            let found = self.groups[..self.n_groups].iter().position(|group| group.slot == slot.0);
            let index = found.unwrap_or_else(|| {
                if self.n_groups == self.groups.len() {
                    self.groups.push(SlotRows::default());
                }
                self.groups[self.n_groups].slot = slot.0;
                self.groups[self.n_groups].rows.clear();
                self.n_groups += 1;
                self.n_groups - 1
            });
            for row in sequence.rows.clone() {
                self.slots[row] = slot.0;
                self.groups[index].rows.push(u32::try_from(row).unwrap_or(u32::MAX));
            }
        }
    }

    fn plan_attention(&mut self, batch: &StepBatch, spec: &ModelSpec, n_threads: usize) {
        let group = spec.n_heads / spec.n_kv_heads;
        // A few single rows would leave threads idle if all heads of a kv head went to one task.
        let few = batch.sequences.len() * spec.n_kv_heads < 2 * n_threads;
        self.attention.clear();
        for (sequence, step) in batch.sequences.iter().enumerate() {
            let heads_per_task =
                if few && step.rows.len() == 1 { 1 } else { group.min(VECTORS_MAX) };
            let rows_per_task = VECTORS_MAX / heads_per_task;
            // Later rows see more tokens: longest tasks first.
            for first in step.rows.clone().step_by(rows_per_task).rev() {
                let rows = first..step.rows.end.min(first + rows_per_task);
                for kv_head in 0..spec.n_kv_heads {
                    for head in (0..group).step_by(heads_per_task) {
                        let start = kv_head * group + head;
                        let heads = start..(start + heads_per_task).min((kv_head + 1) * group);
                        self.attention.push(AttentionTask {
                            sequence,
                            kv_head,
                            rows: rows.clone(),
                            heads,
                        });
                    }
                }
            }
        }
    }
}
