//! What a step's kernels read that varies from step to step, at fixed addresses: written once a step, before any launch.

use crate::{
    backend::RunError,
    kv::KV_BLOCK_TOKENS,
    step_batch::{SampleRow, StepBatch},
};

use super::{
    Device, DevicePtr,
    ops::{AttentionRows, AttentionTile, NO_SLOT, SampleSpec, StepHeader, TOP_MAX},
};

/// Arrays of the largest step.
#[derive(Debug)]
pub(super) struct StepInputs {
    pub(super) header: DevicePtr,
    pub(super) token_ids: DevicePtr,
    pub(super) positions: DevicePtr,
    pub(super) row_sequence: DevicePtr,
    pub(super) slots: DevicePtr,
    pub(super) block_tables: DevicePtr,
    pub(super) single_rows: DevicePtr,
    pub(super) tiles: DevicePtr,
    pub(super) sample_rows: DevicePtr,
    pub(super) specs: DevicePtr,
    /// Blocks of a block table.
    pub(super) max_blocks: usize,
    /// Rows of a tile of attention; `None`: all rows attend one by one.
    rows_of_tile: Option<usize>,
    /// Of the step begun last.
    counts: StepHeader,
    /// Whether a row of that step has an adapter.
    pub(super) any_adapter: bool,
    /// Host copies, kept to save allocations.
    words: Vec<u32>,
    tile_list: Vec<AttentionTile>,
}

const NO_ROWS: StepHeader = StepHeader {
    n_rows: 0,
    n_sequences: 0,
    n_sample_rows: 0,
    n_segments: 0,
    n_single_rows: 0,
    n_tiles: 0,
    reserved: [0; 2],
};

fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl StepInputs {
    pub(super) fn new(
        device: &mut Device,
        max_rows: usize,
        max_blocks: usize,
        rows_of_tile: Option<usize>,
    ) -> Result<Self, RunError> {
        let mut words = |n: usize| device.alloc("step inputs", n * 4);
        Ok(Self {
            header: words(8)?,
            token_ids: words(max_rows)?,
            positions: words(max_rows)?,
            row_sequence: words(max_rows)?,
            slots: words(max_rows)?,
            block_tables: words(max_rows * max_blocks)?,
            single_rows: words(max_rows)?,
            tiles: words(max_rows * 4)?,
            sample_rows: words(max_rows)?,
            specs: words(max_rows * 2)?,
            max_blocks,
            rows_of_tile,
            counts: NO_ROWS,
            any_adapter: false,
            words: Vec::new(),
            tile_list: Vec::new(),
        })
    }

    /// Rows of the step.
    pub(super) fn n_rows(&self) -> u32 {
        self.counts.n_rows
    }

    /// Rows that attend one by one, and tiles of rows.
    pub(super) fn attention_rows(&self) -> AttentionRows {
        AttentionRows { max_single: self.counts.n_single_rows, max_tiles: self.counts.n_tiles }
    }

    /// Writes everything but the rows to sample.
    pub(super) fn begin(&mut self, device: &Device, batch: &StepBatch) -> Result<(), RunError> {
        self.counts = StepHeader {
            n_rows: word(batch.n_rows()),
            n_sequences: word(batch.sequences.len()),
            ..NO_ROWS
        };
        self.any_adapter = batch.sequences.iter().any(|sequence| sequence.adapter.is_some());
        device.upload(&batch.token_ids, self.token_ids)?;
        self.rows(device, batch, self.positions, |_, row| word(batch.positions[row]))?;
        self.rows(device, batch, self.row_sequence, |sequence, _| word(sequence))?;
        self.rows(device, batch, self.slots, |sequence, _| {
            batch.sequences[sequence].adapter.map_or(NO_SLOT, |slot| slot.0)
        })?;
        self.upload_tables(device, batch)?;
        self.upload_attention(device, batch)?;
        device.upload(&[self.counts], self.header)?;
        Ok(())
    }

    /// Uploads one word per row.
    fn rows(
        &mut self,
        device: &Device,
        batch: &StepBatch,
        to: DevicePtr,
        value: impl Fn(usize, usize) -> u32,
    ) -> Result<(), RunError> {
        self.words.clear();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            self.words.extend(sequence.rows.clone().map(|row| value(index, row)));
        }
        Ok(device.upload(&self.words, to)?)
    }

    fn upload_tables(&mut self, device: &Device, batch: &StepBatch) -> Result<(), RunError> {
        self.words.clear();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let needed = (batch.positions[sequence.rows.end - 1] + 1).div_ceil(KV_BLOCK_TOKENS);
            if needed > self.max_blocks || sequence.block_table.len() < needed {
                return Err(RunError::Device(format!(
                    "a block table of {} for {needed} blocks, at most {}",
                    sequence.block_table.len(),
                    self.max_blocks
                )));
            }
            self.words.extend(sequence.block_table[..needed].iter().map(|block| block.0));
            self.words.resize((index + 1) * self.max_blocks, 0);
        }
        Ok(device.upload(&self.words, self.block_tables)?)
    }

    fn upload_attention(&mut self, device: &Device, batch: &StepBatch) -> Result<(), RunError> {
        self.words.clear();
        self.tile_list.clear();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            match self.rows_of_tile {
                Some(rows_of_tile) if sequence.rows.len() > 1 => {
                    for first in sequence.rows.clone().step_by(rows_of_tile) {
                        self.tile_list.push(AttentionTile {
                            sequence: word(index),
                            first_row: word(first),
                            n_rows: word(rows_of_tile.min(sequence.rows.end - first)),
                            first_position: word(batch.positions[first]),
                        });
                    }
                }
                _ => self.words.extend(sequence.rows.clone().map(word)),
            }
        }
        self.counts.n_single_rows = word(self.words.len());
        self.counts.n_tiles = word(self.tile_list.len());
        device.upload(&self.words, self.single_rows)?;
        device.upload(&self.tile_list, self.tiles)?;
        Ok(())
    }

    /// Writes which rows are sampled next, and what they ask for; says which of them the host must choose for.
    pub(super) fn begin_sampling(
        &mut self,
        device: &Device,
        rows: &[SampleRow],
    ) -> Result<Vec<bool>, RunError> {
        self.words.clear();
        self.words.extend(rows.iter().map(|row| word(row.row)));
        device.upload(&self.words, self.sample_rows)?;
        let on_host: Vec<bool> = rows.iter().map(needs_host).collect();
        let specs: Vec<SampleSpec> = rows
            .iter()
            .zip(&on_host)
            .map(|(row, &on_host)| SampleSpec {
                forced: if on_host {
                    SampleSpec::SKIP
                } else {
                    row.forced.unwrap_or(SampleSpec::CHOOSE)
                },
                n_top: row.params.logprobs.unwrap_or(SampleSpec::NO_LOGPROBS),
            })
            .collect();
        device.upload(&specs, self.specs)?;
        self.counts.n_sample_rows = word(rows.len());
        device.upload(&[self.counts], self.header)?;
        Ok(on_host)
    }
}

/// Whether a row asks for more than the greedy choice under unmodified logits.
fn needs_host(row: &SampleRow) -> bool {
    let params = &row.params;
    let modified =
        params.needs_history() || !params.logit_bias.is_empty() || !row.banned.is_empty();
    let drawn = row.forced.is_none() && (params.temperature > 0.0 || modified);
    drawn || params.logprobs.is_some_and(|n| n as usize > TOP_MAX)
}
