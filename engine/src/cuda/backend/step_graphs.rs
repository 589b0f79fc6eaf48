//! Decode steps as CUDA graphs: one for each bucket of rows, captured when it is first needed.
//!
//! A graph bakes in addresses, grids and the bucket; whatever else varies (rows, positions, block tables, adapters, what
//! to sample) its kernels read from [`super::step_inputs::StepInputs`]. So a graph that was captured with one mix of
//! adapters serves every other.

use std::collections::BTreeMap;

use crate::{cuda::Graph, step_batch::StepBatch};

/// Rows that graphs are made for. Steps of more rows, and steps with prefill, are launched one kernel at a time: their
/// kernels are long enough to hide it.
pub(super) const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// What distinguishes one graph from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GraphKey {
    /// Rows, one of [`BUCKETS`].
    pub(super) rows: usize,
    /// The adapters' kernels in it; rows that need none do not pay for them.
    pub(super) adapters: AdapterKernels,
}

/// Which kernels of adapters a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AdapterKernels {
    /// No row has an adapter.
    None,
    /// Those of linears of layers.
    Linears,
    /// Those of the embedding and the head, too.
    WithEnds,
}

/// How the step at hand is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepMode {
    /// Kernel by kernel.
    Launch,
    /// Its launches are collected into a graph of this key, which then runs.
    Capture(GraphKey),
    /// The graph of this key.
    Replay(GraphKey),
}

/// The graphs captured so far.
#[derive(Debug)]
pub(super) struct StepGraphs {
    /// Whether steps run as graphs.
    pub(super) is_on: bool,
    graphs: BTreeMap<GraphKey, Graph>,
}

impl StepGraphs {
    pub(super) fn new() -> Self {
        Self { is_on: true, graphs: BTreeMap::new() }
    }

    /// How to run a step of at most `max_rows` rows, of which all attend one by one.
    pub(super) fn mode(
        &self,
        batch: &StepBatch,
        adapters: AdapterKernels,
        max_rows: usize,
    ) -> StepMode {
        let Some(rows) = bucket(batch, max_rows).filter(|_| self.is_on) else {
            return StepMode::Launch;
        };
        let key = GraphKey { rows, adapters };
        if self.graphs.contains_key(&key) { StepMode::Replay(key) } else { StepMode::Capture(key) }
    }

    pub(super) fn insert(&mut self, key: GraphKey, graph: Graph) {
        self.graphs.insert(key, graph);
    }

    pub(super) fn get(&self, key: GraphKey) -> Option<&Graph> {
        self.graphs.get(&key)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.graphs.len()
    }
}

/// The bucket of a step in which every sequence has one row and something is sampled.
fn bucket(batch: &StepBatch, max_rows: usize) -> Option<usize> {
    let n_rows = batch.n_rows();
    let decodes = batch.sequences.len() == n_rows && !batch.sample_rows.is_empty();
    BUCKETS
        .into_iter()
        .find(|&rows| decodes && n_rows <= rows)
        .map(|rows| rows.min(max_rows))
        .filter(|&rows| batch.sample_rows.len() <= rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        kv::KvBlockId,
        step_batch::{SampleRow, StepSequence},
    };

    fn batch(lengths: &[usize], n_sampled: usize) -> StepBatch {
        let mut batch = StepBatch::default();
        for &length in lengths {
            let first = batch.n_rows();
            batch.token_ids.extend(std::iter::repeat_n(0, length));
            batch.positions.extend(0..length);
            batch.sequences.push(StepSequence {
                rows: first..first + length,
                block_table: vec![KvBlockId(0)],
                adapter: None,
            });
        }
        for row in 0..n_sampled {
            batch.sample_rows.push(SampleRow {
                row,
                params: Arc::default(),
                sample_index: 0,
                history: Arc::default(),
                n_prompt: 0,
                banned: Vec::new(),
                forced: None,
            });
        }
        batch
    }

    #[test]
    fn only_decode_steps_have_graphs() {
        let graphs = StepGraphs::new();
        let adapters = AdapterKernels::Linears;
        let mode =
            |lengths: &[usize], sampled| graphs.mode(&batch(lengths, sampled), adapters, 256);
        let capture = |rows| StepMode::Capture(GraphKey { rows, adapters });
        assert_eq!(mode(&[1], 1), capture(1));
        assert_eq!(mode(&[1; 3], 3), capture(4));
        assert_eq!(mode(&[1; 65], 65), capture(96));
        assert_eq!(mode(&[1; 256], 256), capture(256));
        assert_eq!(mode(&[1; 257], 257), StepMode::Launch);
        assert_eq!(mode(&[1, 2], 2), StepMode::Launch, "prefill");
        assert_eq!(mode(&[1], 0), StepMode::Launch, "nothing sampled");
        assert_eq!(
            graphs.mode(&batch(&[1; 40], 40), AdapterKernels::WithEnds, 44),
            StepMode::Capture(GraphKey { rows: 44, adapters: AdapterKernels::WithEnds })
        );
    }
}
