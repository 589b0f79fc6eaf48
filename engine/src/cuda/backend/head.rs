//! Adapters that act on the head: which rows they are, and their part of the logits.
//!
//! The kernels of a layer's adapters do it, too: they read a header of the head, whose rows are those that are sampled,
//! and those rows' slots. Rows with a head of their adapter's own lie side by side in a list of their own, in tiles of one
//! adapter. Steps without such adapters have none of this (see [`super::step_graphs::AdapterKernels`]).

use crate::{
    cuda::{
        CudaError, DevicePtr,
        ops::{
            AdapterTile, EpilogueParams, EpiloguePart, LoraShrinkParams, NO_SLOT,
            OWN_HEAD_TILE_ROWS, OwnHeadParams, PARTS_MAX, V_STRIDE,
        },
    },
    site::Site,
    step_batch::{SampleRow, StepBatch},
};

use super::{
    CudaBackend, CudaMatrix, ROW_ALIGN,
    products::SHRINK_COLUMNS,
    residents::{Ends, Residents},
    site_index, word,
};

/// A row that is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadRow {
    /// Of the step.
    pub(super) row: u32,
    /// Its slot, if its adapter has `LoRA` on the head; else [`NO_SLOT`].
    pub(super) lora: u32,
    /// Its slot, if its adapter has a head of its own; else [`NO_SLOT`].
    pub(super) own: u32,
}

/// What the head does with rows of the batch.
pub(super) fn head_rows(
    batch: &StepBatch,
    rows: &[SampleRow],
    residents: &Residents,
) -> Vec<HeadRow> {
    let head_row = |sampled: &SampleRow| {
        let row = sampled.row;
        let sequence = batch.sequences.partition_point(|sequence| sequence.rows.end <= row);
        let adapter = batch.sequences.get(sequence).and_then(|sequence| sequence.adapter);
        let (slot, ends) =
            adapter.map_or((NO_SLOT, Ends::default()), |slot| (slot.0, residents.ends(slot)));
        let only_if = |acts: bool| if acts { slot } else { NO_SLOT };
        HeadRow { row: word(row), lora: only_if(ends.head), own: only_if(ends.own_head) }
    };
    rows.iter().map(head_row).collect()
}

/// Rows with a head of their adapter's own.
#[derive(Debug, Default)]
pub(super) struct OwnHeads {
    /// Indices of the sampled rows, those of one adapter side by side.
    pub(super) rows: Vec<u32>,
    /// Of `rows`.
    pub(super) tiles: Vec<AdapterTile>,
}

impl OwnHeads {
    pub(super) fn list(&mut self, rows: &[HeadRow]) {
        let own = |index: &u32| rows[*index as usize].own;
        self.rows.clear();
        self.rows.extend((0..word(rows.len())).filter(|index| own(index) != NO_SLOT));
        self.rows.sort_by_key(own);
        self.tiles.clear();
        let mut first_row = 0;
        for run in self.rows.chunk_by(|a, b| own(a) == own(b)) {
            for tile in run.chunks(OWN_HEAD_TILE_ROWS) {
                let n_rows = word(tile.len());
                self.tiles.push(AdapterTile {
                    slot: own(&tile[0]),
                    first_row,
                    n_rows,
                    reserved: 0,
                });
                first_row += n_rows;
            }
        }
    }
}

impl CudaBackend {
    /// First half of the adapters on the head, for up to `n_rows` rows of `x`, f16 `[n_rows][x_stride]`.
    fn shrink_head(&self, x: DevicePtr, x_stride: usize, n_rows: u32) -> Result<u32, CudaError> {
        let width = word(self.spec.hidden.next_multiple_of(8));
        let mut site = [0; PARTS_MAX];
        site[0] = word(site_index(&self.spec, Site::HEAD));
        let params = LoraShrinkParams {
            step: self.inputs().head_header,
            x,
            slots: self.inputs().sample_slots,
            tiles: DevicePtr::NULL,
            sites: self.residents.sites,
            v: self.v,
            v_plane_stride: u64::from(n_rows) * V_STRIDE as u64,
            x_stride: word(x_stride),
            a_stride: width,
            n_in: width,
            split_columns: word(SHRINK_COLUMNS),
            n_sites: word(self.n_sites()),
            n_parts: 1,
            site,
            reserved: 0,
        };
        params.launch(&self.device, n_rows)?;
        Ok(params.n_splits())
    }

    /// What adapters make of the logits that `head` gave, for up to `n_rows` rows of its input `x`.
    pub(super) fn adapt_logits(
        &self,
        head: &CudaMatrix,
        x: DevicePtr,
        x_stride: usize,
        n_rows: u32,
    ) -> Result<(), CudaError> {
        let (inputs, stride) = (self.inputs(), word(head.n_out_padded));
        OwnHeadParams {
            step: inputs.head_header,
            x,
            tiles: inputs.own_tiles,
            rows: inputs.own_rows,
            own: self.residents.own,
            logits: self.planes,
            x_stride: word(x_stride),
            n_units: word(self.spec.hidden.div_ceil(ROW_ALIGN)),
            n_out: word(self.spec.vocab),
            stride,
        }
        .launch(&self.device, n_rows)?;
        let n_v_planes = self.shrink_head(x, x_stride, n_rows)?;
        let mut parts = [EpiloguePart::NONE; PARTS_MAX];
        parts[0].n_out = word(self.spec.vocab);
        parts[0].site = word(site_index(&self.spec, Site::HEAD));
        EpilogueParams {
            step: inputs.head_header,
            planes: self.planes,
            v_planes: self.v,
            slots: inputs.sample_slots,
            tiles: DevicePtr::NULL,
            sites: self.residents.sites,
            out: self.planes,
            saturations: self.saturations,
            bias: [DevicePtr::NULL; PARTS_MAX],
            plane_stride: 0,
            v_plane_stride: u64::from(n_rows) * V_STRIDE as u64,
            parts,
            n_parts: 1,
            n_planes: 1,
            plane_row: stride,
            n_v_planes,
            n_sites: word(self.n_sites()),
            out_stride: stride,
            accumulate: 0,
            reserved: 0,
        }
        .launch_in_place(&self.device, n_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_one_head_lie_side_by_side_in_tiles() {
        let row = |own| HeadRow { row: 0, lora: NO_SLOT, own };
        let mut rows: Vec<HeadRow> = [NO_SLOT, 7, 2, 7, NO_SLOT, 2].into_iter().map(row).collect();
        let mut own = OwnHeads::default();
        let tiles = |own: &OwnHeads| -> Vec<_> {
            own.tiles.iter().map(|tile| (tile.slot, tile.first_row, tile.n_rows)).collect()
        };
        own.list(&rows);
        assert_eq!(own.rows, [2, 5, 1, 3]);
        assert_eq!(tiles(&own), [(2, 0, 2), (7, 2, 2)]);
        rows.extend([row(2); 32]);
        own.list(&rows);
        assert_eq!(own.rows.len(), 36);
        assert_eq!(tiles(&own), [(2, 0, 32), (2, 32, 2), (7, 34, 2)]);
        own.list(&[row(NO_SLOT)]);
        assert!(own.rows.is_empty() && own.tiles.is_empty());
    }
}
