//! What varies from one micro-batch to the next: positions, query tiles, and which of them share a backward group.

use std::ops::Range;

use crate::{
    cpu::simd::LANES,
    spec::ModelSpec,
    train::{MicroBatch, Target},
};

use super::{
    attention::{QUERY_ROWS, QueryTile},
    memory::tile_values,
};

/// Keys of one task of the backward half of attention.
const KEYS: usize = 48;

/// Some keys of one sequence, and the tiles of a group that see them.
#[derive(Clone, Debug)]
pub(crate) struct KeyTask {
    /// Of the group's tiles.
    pub(crate) tiles: Range<usize>,
    /// Rows of the batch.
    pub(crate) keys: Range<usize>,
}

/// Query tiles whose weights are in memory together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) tiles: Range<usize>,
    /// Where each tile's weights begin.
    pub(crate) starts: Vec<usize>,
    pub(crate) key_tasks: Vec<KeyTask>,
}

/// One micro-batch, planned.
#[derive(Debug, Default)]
pub(crate) struct BatchPlan {
    pub(crate) batch: MicroBatch,
    /// Rows of each sequence.
    pub(crate) sequences: Vec<Range<usize>>,
    /// Position and dropout stream of every row.
    pub(crate) places: Vec<(u32, u32)>,
    pub(crate) tiles: Vec<QueryTile>,
    pub(crate) groups: Vec<Group>,
}

impl BatchPlan {
    /// `group_values` is the room for attention weights; one tile always fits.
    pub(crate) fn new(batch: MicroBatch, spec: &ModelSpec, group_values: usize) -> Self {
        let (mut places, mut tiles) = (Vec::with_capacity(batch.n_rows()), Vec::new());
        for (rows, &stream) in batch.sequences().zip(batch.streams()) {
            places.extend((0..).take(rows.len()).map(|position| (position, stream)));
            tiles.extend(rows.clone().step_by(QUERY_ROWS).map(|start| QueryTile {
                start,
                n_rows: QUERY_ROWS.min(rows.end - start),
                sequence_start: rows.start,
            }));
        }
        let groups = groups(&tiles, spec, group_values);
        let sequences = batch.sequences().collect();
        Self { batch, sequences, places, tiles, groups }
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn targets(&self) -> &[Target] {
        self.batch.targets()
    }

    pub(crate) fn head_rows(&self) -> &[usize] {
        self.batch.head_rows()
    }
}

/// Tiles in order, as many at a time as there is room for.
fn groups(tiles: &[QueryTile], spec: &ModelSpec, room: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut used = usize::MAX;
    for (index, tile) in tiles.iter().enumerate() {
        let values = tile_values(spec, tile.n_keys());
        if groups.is_empty() || values > room - used {
            groups.push(Group { tiles: index..index, ..Group::default() });
            used = 0;
        }
        let Some(group) = groups.last_mut() else { continue };
        group.tiles.end = index + 1;
        group.starts.push(used);
        used += values;
    }
    for group in &mut groups {
        group.key_tasks = key_tasks(tiles, group.tiles.clone());
    }
    groups
}

fn key_tasks(tiles: &[QueryTile], group: Range<usize>) -> Vec<KeyTask> {
    let mut tasks = Vec::new();
    let mut first = group.start;
    let of_group = &tiles[group];
    for of_sequence in of_group.chunk_by(|a, b| a.sequence_start == b.sequence_start) {
        let (start, end) = (of_sequence[0].sequence_start, first + of_sequence.len());
        let last = &tiles[end - 1];
        for key in (start..last.start + last.n_rows).step_by(KEYS) {
            let keys = key..(key + KEYS).min(last.start + last.n_rows);
            // Tiles that end before the first key see none of these.
            let seeing = of_sequence.partition_point(|tile| tile.start + tile.n_rows <= key);
            tasks.push(KeyTask { tiles: first + seeing..end, keys });
        }
        first = end;
    }
    tasks
}

/// Values of a row of weights of a tile in a group: `[heads, 2, QUERY_ROWS, span]`.
pub(crate) fn head_values(tile: &QueryTile) -> usize {
    QUERY_ROWS * tile.n_keys().next_multiple_of(LANES)
}
