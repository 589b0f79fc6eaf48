//! What a step's kernels read that varies from step to step, at fixed addresses: laid out side by side in pinned memory
//! and sent by one copy, before any launch.

use std::ops::Range;

use crate::{
    backend::RunError,
    cuda::{
        Device, DevicePtr, PinnedBuffer, Plain,
        ops::{
            ADAPTER_TILE_ROWS, AdapterTile, AttentionRows, AttentionTile, NO_SLOT, SampleSpec,
            StepHeader, TILED_ROWS_MIN,
        },
        plain::bytes_of_slice,
    },
    kv::KV_BLOCK_TOKENS,
    step_batch::StepBatch,
};

use super::{
    head::{HeadRow, OwnHeads},
    word,
};

/// Every array begins at a multiple of this.
const ALIGN: usize = 256;

/// How large a step may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) rows: usize,
    /// Rows sampled at a time.
    pub(super) sample_rows: usize,
    /// Blocks of a block table.
    pub(super) blocks: usize,
    /// Rows of a tile of attention; `None`: all rows attend one by one.
    pub(super) rows_of_tile: Option<usize>,
}

/// Arrays of the largest step of one capacity.
#[derive(Debug)]
pub(super) struct StepInputs {
    pub(super) header: DevicePtr,
    pub(super) token_ids: DevicePtr,
    pub(super) positions: DevicePtr,
    pub(super) row_sequence: DevicePtr,
    pub(super) slots: DevicePtr,
    pub(super) single_rows: DevicePtr,
    pub(super) tiles: DevicePtr,
    pub(super) adapter_tiles: DevicePtr,
    pub(super) sample_rows: DevicePtr,
    /// [`StepHeader`] for kernels whose rows are the sampled ones.
    pub(super) head_header: DevicePtr,
    /// Slots of sampled rows whose adapters have `LoRA` on the head.
    pub(super) sample_slots: DevicePtr,
    /// Sampled rows with a head of their adapter's own, and their tiles.
    pub(super) own_rows: DevicePtr,
    pub(super) own_tiles: DevicePtr,
    pub(super) specs: DevicePtr,
    pub(super) block_tables: DevicePtr,
    pub(super) capacity: Capacity,
    /// Of the step begun last.
    counts: StepHeader,
    base: DevicePtr,
    host: PinnedBuffer,
    /// Bytes in front of the block tables.
    head_bytes: usize,
    tile_list: Vec<AttentionTile>,
    adapter_tile_list: Vec<AdapterTile>,
    own_heads: OwnHeads,
}

const NO_ROWS: StepHeader = StepHeader {
    n_rows: 0,
    n_sequences: 0,
    n_sample_rows: 0,
    n_adapter_tiles: 0,
    n_single_rows: 0,
    n_tiles: 0,
    reserved: [0; 2],
};

impl StepInputs {
    pub(super) fn new(device: &mut Device, capacity: Capacity) -> Result<Self, RunError> {
        let Capacity { rows, sample_rows, blocks, .. } = capacity;
        let mut n_bytes = 0;
        let mut place = |bytes: usize| {
            let at = n_bytes;
            n_bytes = (n_bytes + bytes).next_multiple_of(ALIGN);
            at
        };
        let header = place(size_of::<StepHeader>());
        let [token_ids, positions, row_sequence, slots, single_rows] =
            std::array::from_fn(|_| place(rows * 4));
        let tiles = place(rows * size_of::<AttentionTile>());
        let adapter_tiles = place(rows * size_of::<AdapterTile>());
        let head_header = place(size_of::<StepHeader>());
        let [sample_list, sample_slots, own_rows] = std::array::from_fn(|_| place(sample_rows * 4));
        let own_tiles = place(sample_rows * size_of::<AdapterTile>());
        let specs = place(sample_rows * size_of::<SampleSpec>());
        let block_tables = place(rows * blocks * 4);
        let base = device.alloc("step inputs", n_bytes)?;
        Ok(Self {
            header: base.at(header),
            token_ids: base.at(token_ids),
            positions: base.at(positions),
            row_sequence: base.at(row_sequence),
            slots: base.at(slots),
            single_rows: base.at(single_rows),
            tiles: base.at(tiles),
            adapter_tiles: base.at(adapter_tiles),
            sample_rows: base.at(sample_list),
            head_header: base.at(head_header),
            sample_slots: base.at(sample_slots),
            own_rows: base.at(own_rows),
            own_tiles: base.at(own_tiles),
            specs: base.at(specs),
            block_tables: base.at(block_tables),
            capacity,
            counts: NO_ROWS,
            base,
            host: device.pinned(n_bytes)?,
            head_bytes: block_tables,
            tile_list: Vec::new(),
            adapter_tile_list: Vec::new(),
            own_heads: OwnHeads::default(),
        })
    }

    /// Rows of the step.
    pub(super) fn n_rows(&self) -> u32 {
        self.counts.n_rows
    }

    /// Tiles of rows of one adapter; 0: rows are taken one by one.
    pub(super) fn n_adapter_tiles(&self) -> u32 {
        self.counts.n_adapter_tiles
    }

    /// Rows that attend one by one, and tiles of rows.
    pub(super) fn attention_rows(&self) -> AttentionRows {
        AttentionRows { max_single: self.counts.n_single_rows, max_tiles: self.counts.n_tiles }
    }

    /// Writes everything but the rows to sample; nothing is sent yet.
    ///
    /// # Errors
    /// [`RunError::Device`] naming what does not fit the capacity.
    pub(super) fn write(&mut self, batch: &StepBatch) -> Result<(), RunError> {
        self.check(batch)?;
        self.counts = StepHeader {
            n_rows: word(batch.n_rows()),
            n_sequences: word(batch.sequences.len()),
            ..NO_ROWS
        };
        let rows = || {
            let of = |(index, rows): (usize, Range<usize>)| rows.map(move |row| (index, row));
            batch.sequences.iter().map(|sequence| sequence.rows.clone()).enumerate().flat_map(of)
        };
        self.put(self.token_ids, batch.token_ids.iter().copied())?;
        self.put(self.positions, rows().map(|(_, row)| word(batch.positions[row])))?;
        self.put(self.row_sequence, rows().map(|(sequence, _)| word(sequence)))?;
        self.put(
            self.slots,
            rows().map(|(sequence, _)| {
                batch.sequences[sequence].adapter.map_or(NO_SLOT, |slot| slot.0)
            }),
        )?;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let at = self.block_tables.at(index * self.capacity.blocks * 4);
            let needed = blocks_needed(batch, index);
            self.put(at, sequence.block_table[..needed].iter().map(|block| block.0))?;
        }
        self.write_attention(batch)?;
        self.write_adapter_tiles(batch)
    }

    fn check(&self, batch: &StepBatch) -> Result<(), RunError> {
        let Capacity { rows, blocks, .. } = self.capacity;
        if batch.n_rows() > rows {
            return Err(RunError::Device(format!("{} rows in a step of {rows}", batch.n_rows())));
        }
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let needed = blocks_needed(batch, index);
            if needed > blocks || sequence.block_table.len() < needed {
                return Err(RunError::Device(format!(
                    "a block table of {} for {needed} blocks, at most {blocks}",
                    sequence.block_table.len()
                )));
            }
        }
        Ok(())
    }

    fn write_attention(&mut self, batch: &StepBatch) -> Result<(), RunError> {
        let mut tiles = std::mem::take(&mut self.tile_list);
        tiles.clear();
        let rows_of_tile = self.capacity.rows_of_tile;
        let is_tiled = |rows: &Range<usize>| rows_of_tile.is_some() && rows.len() > 1;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let Some(rows_of_tile) = rows_of_tile.filter(|_| is_tiled(&sequence.rows)) else {
                continue;
            };
            tiles.extend(sequence.rows.clone().step_by(rows_of_tile).map(|first| AttentionTile {
                sequence: word(index),
                first_row: word(first),
                n_rows: word(rows_of_tile.min(sequence.rows.end - first)),
                first_position: word(batch.positions[first]),
            }));
        }
        let single = batch
            .sequences
            .iter()
            .map(|sequence| sequence.rows.clone())
            .filter(|rows| !is_tiled(rows))
            .flatten();
        self.counts.n_tiles = word(tiles.len());
        self.counts.n_single_rows = word(self.put(self.single_rows, single.map(word))?);
        self.put_plain(self.tiles, &tiles)?;
        self.tile_list = tiles;
        Ok(())
    }

    /// Rows in runs of one adapter, cut into tiles.
    fn write_adapter_tiles(&mut self, batch: &StepBatch) -> Result<(), RunError> {
        let mut tiles = std::mem::take(&mut self.adapter_tile_list);
        tiles.clear();
        let any_adapter = batch.sequences.iter().any(|sequence| sequence.adapter.is_some());
        if any_adapter && batch.n_rows() >= TILED_ROWS_MIN as usize {
            list_adapter_tiles(batch, &mut tiles);
        }
        self.counts.n_adapter_tiles = word(tiles.len());
        self.put_plain(self.adapter_tiles, &tiles)?;
        self.adapter_tile_list = tiles;
        Ok(())
    }

    /// Writes which rows are sampled next, and what they ask for.
    pub(super) fn write_sampling(
        &mut self,
        rows: &[HeadRow],
        specs: &[SampleSpec],
    ) -> Result<(), RunError> {
        debug_assert!(specs.len() <= self.capacity.sample_rows);
        self.counts.n_sample_rows = word(rows.len());
        self.put(self.sample_rows, rows.iter().map(|row| row.row))?;
        self.put(self.sample_slots, rows.iter().map(|row| row.lora))?;
        let mut own = std::mem::take(&mut self.own_heads);
        own.list(rows);
        self.put(self.own_rows, own.rows.iter().copied())?;
        self.put_plain(self.own_tiles, &own.tiles)?;
        let head = StepHeader {
            n_rows: word(rows.len()),
            n_adapter_tiles: word(own.tiles.len()),
            ..NO_ROWS
        };
        self.own_heads = own;
        self.put_plain(self.head_header, &[head])?;
        self.put_plain(self.specs, specs)
    }

    /// Sends all that was written; later work of the compute stream sees it.
    pub(super) fn send(&mut self, device: &Device) -> Result<(), RunError> {
        let table_bytes = self.counts.n_sequences as usize * self.capacity.blocks * 4;
        self.send_bytes(device, self.head_bytes + table_bytes)
    }

    /// Sends all but the block tables.
    pub(super) fn send_head(&mut self, device: &Device) -> Result<(), RunError> {
        self.send_bytes(device, self.head_bytes)
    }

    fn send_bytes(&mut self, device: &Device, n_bytes: usize) -> Result<(), RunError> {
        self.put_plain(self.header, &[self.counts])?;
        Ok(device.upload_async(&mut self.host, self.base, n_bytes)?)
    }

    /// The bytes that stand for those from `at` on.
    fn bytes_at(&mut self, at: DevicePtr) -> Result<&mut [u8], RunError> {
        let offset = usize::try_from(at.0 - self.base.0).unwrap_or(usize::MAX);
        Ok(&mut self.host.bytes_mut()?[offset..])
    }

    /// Writes words; returns how many.
    fn put(&mut self, at: DevicePtr, words: impl Iterator<Item = u32>) -> Result<usize, RunError> {
        let mut n = 0;
        for (to, value) in self.bytes_at(at)?.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&value.to_le_bytes());
            n += 1;
        }
        Ok(n)
    }

    fn put_plain<T: Plain>(&mut self, at: DevicePtr, values: &[T]) -> Result<(), RunError> {
        let bytes = bytes_of_slice(values);
        self.bytes_at(at)?[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Neighbouring sequences of one adapter share tiles.
fn list_adapter_tiles(batch: &StepBatch, tiles: &mut Vec<AdapterTile>) {
    for run in batch.sequences.chunk_by(|a, b| a.adapter == b.adapter) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let rows = first.rows.start..last.rows.end;
        tiles.extend(rows.clone().step_by(ADAPTER_TILE_ROWS).map(|row| AdapterTile {
            slot: first.adapter.map_or(NO_SLOT, |slot| slot.0),
            first_row: word(row),
            n_rows: word(ADAPTER_TILE_ROWS.min(rows.end - row)),
            reserved: 0,
        }));
    }
}

/// Blocks that a sequence of the step reads and writes.
fn blocks_needed(batch: &StepBatch, sequence: usize) -> usize {
    (batch.positions[batch.sequences[sequence].rows.end - 1] + 1).div_ceil(KV_BLOCK_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step_batch::{AdapterSlot, StepSequence};

    #[test]
    fn adapter_tiles_cover_all_rows_in_runs_of_one_adapter() {
        let lengths =
            [(1, None), (70, Some(3)), (60, Some(3)), (1, Some(4)), (64, None), (2, None)];
        let mut batch = StepBatch::default();
        let mut n_rows = 0;
        for (length, adapter) in lengths {
            batch.sequences.push(StepSequence {
                rows: n_rows..n_rows + length,
                block_table: Vec::new(),
                adapter: adapter.map(AdapterSlot),
            });
            n_rows += length;
        }
        let mut tiles = Vec::new();
        list_adapter_tiles(&batch, &mut tiles);
        let found: Vec<_> = tiles.iter().map(|t| (t.slot, t.first_row, t.n_rows)).collect();
        let expected = [
            (NO_SLOT, 0, 1),
            (3, 1, 64),
            (3, 65, 64),
            (3, 129, 2),
            (4, 131, 1),
            (NO_SLOT, 132, 64),
            (NO_SLOT, 196, 2),
        ];
        assert_eq!(found, expected);
    }
}
