//! Which kernels are launched for which shapes, and which shapes are refused.

use std::cell::RefCell;

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink};

use super::{
    AttentionParams, AttentionRows, EmbedAdaptersParams, EmbedParams, EpilogueParams, EpiloguePart,
    LoraShrinkParams, OwnHeadParams, PARTS_MAX, RmsNormParams, rows_of_tile, tile_split_columns,
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

/// Three parts over one input of 576.
fn shrink() -> LoraShrinkParams {
    LoraShrinkParams {
        step: DevicePtr::NULL,
        x: DevicePtr::NULL,
        slots: DevicePtr::NULL,
        tiles: DevicePtr::NULL,
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
    }
}

/// Parts of these widths over an input with (or without) adapters.
fn epilogue(widths: &[u32], with_adapters: bool) -> EpilogueParams {
    let ptr = if with_adapters { DevicePtr(256) } else { DevicePtr::NULL };
    let mut parts = [EpiloguePart::NONE; PARTS_MAX];
    let (mut plane_row, mut out_stride) = (0, 0);
    for (index, (part, &n_out)) in parts.iter_mut().zip(widths).enumerate() {
        let site = u32::try_from(index).unwrap();
        *part = EpiloguePart { plane_column: plane_row, out_column: out_stride, n_out, site };
        plane_row += n_out.next_multiple_of(64);
        out_stride += n_out.next_multiple_of(16);
    }
    EpilogueParams {
        step: DevicePtr::NULL,
        planes: DevicePtr::NULL,
        v_planes: ptr,
        slots: DevicePtr::NULL,
        tiles: ptr,
        sites: DevicePtr::NULL,
        out: DevicePtr::NULL,
        saturations: DevicePtr::NULL,
        bias: [DevicePtr::NULL; PARTS_MAX],
        plane_stride: 0,
        v_plane_stride: 0,
        parts,
        n_parts: u32::try_from(widths.len()).unwrap(),
        n_planes: 1,
        plane_row,
        n_v_planes: u32::from(with_adapters),
        n_sites: 7,
        out_stride,
        accumulate: 0,
        reserved: 0,
    }
}

#[test]
fn many_rows_are_finished_in_tiles() {
    let widths = [4096, 1024, 1000];
    for (with_adapters, rows, tiles, expected) in [
        // 256 columns a CTA of one row.
        (false, 1, 0, ("epilogue_1", (24, 1, 1))),
        (true, 64, 0, ("epilogue_1", (24, 64, 1))),
        (true, 256, 0, ("epilogue_1", (24, 256, 1))),
        // 64 columns while CTAs are few, 256 when tiles are many.
        (false, 130, 0, ("epilogue_tiles", (96, 3, 1))),
        (false, 2048, 0, ("epilogue_tiles", (24, 32, 1))),
        (true, 130, 5, ("epilogue_adapter_tiles", (96, 5, 1))),
        (true, 2048, 100, ("epilogue_adapter_tiles", (24, 100, 1))),
    ] {
        let sink = Recorder::default();
        epilogue(&widths, with_adapters).launch(&sink, rows, tiles).unwrap();
        assert_eq!(*sink.0.borrow(), [(expected.0.to_owned(), expected.1)]);
    }
    for (with_adapters, rows, tiles, expected) in [
        (true, 64, 0, ("epilogue_swiglu_1", (2, 64, 1))),
        (false, 130, 0, ("epilogue_swiglu_tiles", (5, 3, 1))),
        (true, 130, 5, ("epilogue_swiglu_adapter_tiles", (5, 5, 1))),
    ] {
        let sink = Recorder::default();
        let params = EpilogueParams { out_stride: 320, ..epilogue(&[300, 300], with_adapters) };
        params.launch_swiglu(&sink, rows, tiles).unwrap();
        assert_eq!(*sink.0.borrow(), [(expected.0.to_owned(), expected.1)]);
    }
}

#[test]
fn tiles_of_adapters_are_split_so_that_there_are_enough() {
    let splits = |n_in: u32, n_tiles, planes_max| {
        let split_columns = tile_split_columns(n_in, n_tiles, planes_max);
        let params =
            LoraShrinkParams { split_columns, n_in, x_stride: n_in, a_stride: n_in, ..shrink() };
        let sink = Recorder::default();
        params.launch_tiles(&sink, n_tiles).unwrap();
        let expected = (n_tiles, params.n_splits(), 2);
        assert_eq!(*sink.0.borrow(), [("lora_shrink_tiles".to_owned(), expected)]);
        params.n_splits()
    };
    assert_eq!(splits(4096, 32, 16), 3);
    assert_eq!(splits(4096, 2, 16), 8, "not more than a reader should sum up");
    assert_eq!(splits(4096, 2, 5), 5, "not more than there is room for");
    assert_eq!(splits(576, 2, 16), 2, "not less than a CTA's worth");
    assert_eq!(splits(72, 2, 16), 1);
    assert_eq!(splits(14_336, 500, 16), 1);
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
    let (shrink, epilogue, gated) =
        (shrink(), epilogue(&[576, 192], true), epilogue(&[576, 576], true));
    let at =
        |column, n_out| [EpiloguePart { plane_column: column, n_out, ..EpiloguePart::NONE }; 3];
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
        (
            LoraShrinkParams { split_columns: 72, ..shrink }.launch_tiles(&sink, 1),
            "columns of a split",
        ),
        (LoraShrinkParams { n_parts: 4, ..shrink }.launch(&sink, 1), "parts"),
        (EpilogueParams { parts: at(32, 64), ..epilogue }.launch(&sink, 1, 1), "in the planes"),
        (EpilogueParams { parts: at(64, 960), ..epilogue }.launch(&sink, 1, 1), "in the planes"),
        (EpilogueParams { plane_row: 800, ..epilogue }.launch(&sink, 1, 1), "rows of the planes"),
        (EpilogueParams { out_stride: 767, ..epilogue }.launch(&sink, 1, 1), "rows of out"),
        (EpilogueParams { out_stride: 764, ..epilogue }.launch(&sink, 1, 1), "part in out"),
        (EpilogueParams { v_plane_stride: 770, ..epilogue }.launch(&sink, 1, 1), "planes"),
        (EpilogueParams { tiles: DevicePtr::NULL, ..epilogue }.launch(&sink, 1, 1), "tiles"),
        (EpilogueParams { n_sites: 1, ..epilogue }.launch(&sink, 1, 1), "site"),
        (EpilogueParams { out_stride: 572, ..gated }.launch_swiglu(&sink, 1, 1), "rows of out"),
        (epilogue.launch_swiglu(&sink, 1, 1), "features of up"),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
    assert_eq!(sink.0.borrow().len(), 3, "nothing that was refused is launched");
}

/// Logits of 1,000 tokens in rows of 1,024, over themselves.
fn logits() -> EpilogueParams {
    EpilogueParams { out: DevicePtr::NULL, out_stride: 1024, ..epilogue(&[1000], true) }
}

fn own_head() -> OwnHeadParams {
    OwnHeadParams {
        step: DevicePtr::NULL,
        x: DevicePtr::NULL,
        tiles: DevicePtr::NULL,
        rows: DevicePtr::NULL,
        own: DevicePtr::NULL,
        logits: DevicePtr::NULL,
        x_stride: 576,
        n_units: 9,
        n_out: 1000,
        stride: 1024,
    }
}

fn embed_adapters() -> EmbedAdaptersParams {
    EmbedAdaptersParams {
        step: DevicePtr::NULL,
        token_ids: DevicePtr::NULL,
        slots: DevicePtr::NULL,
        sites: DevicePtr::NULL,
        own: DevicePtr::NULL,
        x: DevicePtr::NULL,
        vocab: 1000,
        width: 570,
        own_stride: 576,
        x_stride: 576,
        n_sites: 9,
        site: 8,
    }
}

#[test]
fn adapters_at_the_ends_of_a_model_have_kernels_of_their_own() {
    let sink = Recorder::default();
    logits().launch_in_place(&sink, 64).unwrap();
    // Few CTAs that find nothing, however many rows there are.
    own_head().launch(&sink, 1).unwrap();
    own_head().launch(&sink, 256).unwrap();
    embed_adapters().launch(&sink, 64).unwrap();
    let expected = [
        ("epilogue_in_place_1", (4, 64, 1)),
        ("own_head", (16, 1, 1)),
        ("own_head", (16, 4, 1)),
        ("embed_adapters", (3, 64, 1)),
    ];
    assert_eq!(*sink.0.borrow(), expected.map(|(name, grid)| (name.to_owned(), grid)));
    for (refused, what) in [
        (EpilogueParams { out: DevicePtr(512), ..logits() }.launch_in_place(&sink, 1), "of out"),
        (EpilogueParams { out_stride: 1088, ..logits() }.launch_in_place(&sink, 1), "of out"),
        (EpilogueParams { n_planes: 2, ..logits() }.launch_in_place(&sink, 1), "planes"),
        (OwnHeadParams { x_stride: 512, ..own_head() }.launch(&sink, 1), "rows of x"),
        (OwnHeadParams { n_units: 0, ..own_head() }.launch(&sink, 1), "units"),
        (OwnHeadParams { stride: 999, ..own_head() }.launch(&sink, 1), "rows of the logits"),
        (EmbedAdaptersParams { own_stride: 570, ..embed_adapters() }.launch(&sink, 1), "embedding"),
        (EmbedAdaptersParams { x_stride: 569, ..embed_adapters() }.launch(&sink, 1), "rows of x"),
        (EmbedAdaptersParams { site: 9, ..embed_adapters() }.launch(&sink, 1), "site"),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
    assert_eq!(sink.0.borrow().len(), 4, "nothing that was refused is launched");
}
