//! Which kernels are launched for which shapes, and which shapes are refused.

use std::cell::RefCell;

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink};

use super::{
    AttentionParams, AttentionRows, EmbedParams, LoraShrinkParams, RmsNormParams, rows_of_tile,
};

/// Name and grid.
type Recorded = (String, (u32, u32, u32));

/// Keeps what is launched.
#[derive(Default)]
struct Recorder(RefCell<Vec<Recorded>>);

impl LaunchSink for Recorder {
    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        launch.check()?;
        self.0.borrow_mut().push((launch.kernel.to_owned(), launch.grid));
        Ok(())
    }
}

fn attention(n_heads: u32, n_kv_heads: u32, head_dim: u32, max_chunks: u32) -> AttentionParams {
    let stride = (n_heads * head_dim).next_multiple_of(64);
    AttentionParams {
        step: DevicePtr::NULL,
        q: DevicePtr::NULL,
        kv: DevicePtr::NULL,
        out: DevicePtr::NULL,
        partials: DevicePtr::NULL,
        single_rows: DevicePtr::NULL,
        tiles: DevicePtr::NULL,
        positions: DevicePtr::NULL,
        row_sequence: DevicePtr::NULL,
        block_tables: DevicePtr::NULL,
        q_stride: stride,
        out_stride: stride,
        n_heads,
        n_kv_heads,
        head_dim,
        max_blocks: 32,
        chunk_tokens: 512,
        max_chunks,
    }
}

#[test]
fn attention_takes_the_kernels_of_its_heads() {
    let both = AttentionRows { max_single: 64, max_tiles: 9 };
    for (params, kernels) in [
        (
            attention(9, 3, 64, 1),
            [("attention_l8_h4", (64, 3, 1)), ("attention_tiles_64", (9, 3, 1))],
        ),
        (
            attention(32, 8, 128, 1),
            [("attention_l16_h4", (64, 8, 1)), ("attention_tiles_128", (9, 8, 1))],
        ),
        (
            attention(20, 2, 80, 1),
            [("attention_l16_h8", (64, 4, 1)), ("attention_tiles_128", (9, 2, 1))],
        ),
        (
            attention(4, 4, 256, 1),
            [("attention_l32_h1", (64, 4, 1)), ("attention_tiles_256", (9, 4, 1))],
        ),
    ] {
        let sink = Recorder::default();
        params.launch(&sink, both).unwrap();
        let expected = kernels.map(|(name, grid)| (name.to_owned(), grid));
        assert_eq!(*sink.0.borrow(), expected);
    }
}

#[test]
fn long_contexts_are_shared_and_merged() {
    let sink = Recorder::default();
    attention(32, 8, 128, 16).launch(&sink, AttentionRows { max_single: 1, max_tiles: 0 }).unwrap();
    let expected = [("attention_l16_h4", (1, 8, 16)), ("attention_merge", (1, 32, 1))];
    assert_eq!(*sink.0.borrow(), expected.map(|(name, grid)| (name.to_owned(), grid)));
}

#[test]
fn a_tile_holds_rows_times_heads() {
    assert_eq!(rows_of_tile(9, 3), Some(21));
    assert_eq!(rows_of_tile(32, 32), Some(64));
    assert_eq!(rows_of_tile(65, 1), None);
    assert_eq!(rows_of_tile(8, 0), None);
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_name() {
    let sink = Recorder::default();
    let single = AttentionRows { max_single: 1, max_tiles: 0 };
    let tiles = AttentionRows { max_single: 0, max_tiles: 1 };
    let norm = RmsNormParams {
        step: DevicePtr::NULL,
        x: DevicePtr::NULL,
        rows: DevicePtr::NULL,
        weight: DevicePtr::NULL,
        out: DevicePtr::NULL,
        saturations: DevicePtr::NULL,
        x_stride: 576,
        out_stride: 576,
        width: 576,
        eps: 1e-5,
    };
    let embed = EmbedParams {
        step: DevicePtr::NULL,
        table: DevicePtr::NULL,
        token_ids: DevicePtr::NULL,
        x: DevicePtr::NULL,
        vocab: 100,
        width: 576,
        width_padded: 576,
        x_stride: 576,
        format: 2,
        reserved: 0,
    };
    let shrink = LoraShrinkParams {
        step: DevicePtr::NULL,
        x: DevicePtr::NULL,
        slots: DevicePtr::NULL,
        sites: DevicePtr::NULL,
        v: DevicePtr::NULL,
        v_plane_stride: 0,
        x_stride: 576,
        a_stride: 576,
        n_in: 576,
        split_columns: 576,
        n_sites: 7,
        n_parts: 3,
        site: [0, 1, 2],
        reserved: 0,
    };
    norm.launch(&sink, 1).unwrap();
    embed.launch(&sink, 1).unwrap();
    shrink.launch(&sink, 1).unwrap();
    for (refused, what) in [
        (attention(4, 4, 24, 1).launch(&sink, single), "head size"),
        (attention(4, 4, 272, 1).launch(&sink, single), "head size"),
        (attention(4, 3, 64, 1).launch(&sink, single), "query heads"),
        (attention(4, 0, 64, 1).launch(&sink, single), "query heads"),
        (attention(130, 2, 64, 1).launch(&sink, tiles), "query heads of a kv head"),
        (
            AttentionParams { q_stride: 60, ..attention(1, 1, 64, 1) }.launch(&sink, single),
            "rows of q",
        ),
        (RmsNormParams { x_stride: 578, ..norm }.launch(&sink, 1), "rows of x"),
        (RmsNormParams { out_stride: 512, ..norm }.launch(&sink, 1), "rows of out"),
        (EmbedParams { width_padded: 600, ..embed }.launch(&sink, 1), "padded width"),
        (LoraShrinkParams { site: [0, 1, 7], ..shrink }.launch(&sink, 1), "site"),
        (LoraShrinkParams { split_columns: 12, ..shrink }.launch(&sink, 1), "columns of a split"),
        (LoraShrinkParams { n_parts: 4, ..shrink }.launch(&sink, 1), "parts"),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
    assert_eq!(sink.0.borrow().len(), 3, "nothing that was refused is launched");
}
