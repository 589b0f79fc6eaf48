//! What kernels read from device memory, because it varies from step to step. C++: `cuda/common/step.cuh`.

use crate::{
    adapter_weights::LORA_RANK_MAX,
    cuda::{DevicePtr, launch::kernel_params},
};

/// A row without an adapter, in `slots`.
pub const NO_SLOT: u32 = u32::MAX;

/// Linears that read the same input: q, k and v.
pub const PARTS_MAX: usize = 3;

/// Values of a row of `v`, the output of `lora_shrink`: part `i` begins at `i * LORA_RANK_MAX`.
pub const V_STRIDE: usize = PARTS_MAX * LORA_RANK_MAX;

kernel_params! {
    /// Counts of one step.
    pub struct StepHeader {
        /// Rows, `T`.
        pub n_rows: u32,
        /// Sequences, `S`.
        pub n_sequences: u32,
        /// Rows whose logits are wanted.
        pub n_sample_rows: u32,
        /// Tiles of rows with the same adapter, or none; 0 in steps of few rows, which take rows one by one. In the header
        /// of the head, whose rows are those whose logits are wanted: tiles of rows with a head of their adapter's own.
        pub n_adapter_tiles: u32,
        /// Rows that attend one by one.
        pub n_single_rows: u32,
        /// Tiles of rows that attend together.
        pub n_tiles: u32,
        /// Zero.
        pub reserved: [u32; 2],
    }
}

kernel_params! {
    /// One site of one resident adapter, an entry of the slot table `[slots][n_sites]`.
    pub struct LoraSite {
        /// `A`, f16 `[R][a_stride]`, stride a multiple of 8, zero beyond `K`; of the embedding transposed,
        /// `[V][R rounded up to 8]`, zero beyond `R`.
        pub a: DevicePtr,
        /// `B`, f16 `[N][R rounded up to 8]`, zero beyond `R`.
        pub b: DevicePtr,
        /// `DoRA`'s `m[n] / ||W[n] + lora_scale (B A)[n]||`, f32 `[N rounded up to 4]`; null: 1.
        pub gain: DevicePtr,
        /// `lora_scale` times the bias of `lora_B`, f32 `[N rounded up to 4]`; null: 0.
        pub shift: DevicePtr,
        /// `R`; 0: the adapter does not act here.
        pub rank: u32,
        /// alpha / R.
        pub lora_scale: f32,
    }
}

impl LoraSite {
    /// Where no adapter acts.
    pub const NONE: Self = Self {
        a: DevicePtr::NULL,
        b: DevicePtr::NULL,
        gain: DevicePtr::NULL,
        shift: DevicePtr::NULL,
        rank: 0,
        lora_scale: 0.0,
    };
}

kernel_params! {
    /// Matrices of an adapter's own, f16 `[V][hidden rounded up to 64]`, zero beyond the width: an entry of a table by
    /// slot. Null: the base's.
    pub struct OwnMatrices {
        /// Instead of the embedding.
        pub embedding: DevicePtr,
        /// Instead of the head.
        pub head: DevicePtr,
    }
}

impl OwnMatrices {
    /// Of an adapter that has none.
    pub const NONE: Self = Self { embedding: DevicePtr::NULL, head: DevicePtr::NULL };
}

kernel_params! {
    /// Rows of one sequence that attend together: consecutive rows and positions.
    pub struct AttentionTile {
        /// Index of its block table.
        pub sequence: u32,
        /// First row of the step.
        pub first_row: u32,
        /// At most [`super::rows_of_tile`].
        pub n_rows: u32,
        /// Position of the first row.
        pub first_position: u32,
    }
}

/// Most rows of an [`AdapterTile`].
pub const ADAPTER_TILE_ROWS: usize = 64;

kernel_params! {
    /// Consecutive rows of one adapter, or of none.
    pub struct AdapterTile {
        /// Slot, or [`NO_SLOT`].
        pub slot: u32,
        /// First row of the step.
        pub first_row: u32,
        /// At most [`ADAPTER_TILE_ROWS`].
        pub n_rows: u32,
        /// Zero.
        pub reserved: u32,
    }
}

const _: () = assert!(
    size_of::<AdapterTile>() == 16
        && size_of::<StepHeader>() == 32
        && size_of::<LoraSite>() == 40
        && size_of::<OwnMatrices>() == 16
        && size_of::<AttentionTile>() == 16
);
