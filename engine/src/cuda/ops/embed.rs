//! Rows of the embedding, and what adapters make of them.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{GRID_ROWS_MAX, want, want_stride};

const THREADS: u32 = 256;

kernel_params! {
    /// `x[t, i] = table[token_ids[t], i]`, bit-equal to the CPU's values; see `cuda/embed.cu`.
    pub struct EmbedParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// `[vocab][width]`, a repacked matrix.
        pub table: DevicePtr,
        /// u32 `[T]`; an id from `vocab` on gives zeros.
        pub token_ids: DevicePtr,
        /// f32 `[T][x_stride]`; columns from `width` on are not written.
        pub x: DevicePtr,
        /// Rows of the table.
        pub vocab: u32,
        /// Columns of the table.
        pub width: u32,
        /// The table's `n_in_padded`.
        pub width_padded: u32,
        /// Distance of rows of `x`.
        pub x_stride: u32,
        /// The table's `format.ggml_type()`.
        pub format: u32,
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<EmbedParams>() == 56);

impl EmbedParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "embed";
        want_stride(kernel, "padded width", self.width_padded, 64, self.width)?;
        want_stride(kernel, "distance of rows of x", self.x_stride, 1, self.width)?;
        let grid = (self.width.div_ceil(THREADS), max_rows.min(GRID_ROWS_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }
}

kernel_params! {
    /// `x[t] = own[slot[t]][token_ids[t]]` where the adapter has an embedding of its own, then
    /// `x[t, i] += lora_scale Σ_r b[i, r] a[token_ids[t], r]` where it has `LoRA` there; see `cuda/embed.cu`.
    pub struct EmbedAdaptersParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// u32 `[T]`; an id from `vocab` on is left out.
        pub token_ids: DevicePtr,
        /// u32 `[T]`, slot of each row or [`super::NO_SLOT`].
        pub slots: DevicePtr,
        /// [`super::LoraSite`] `[slots][n_sites]`.
        pub sites: DevicePtr,
        /// [`super::OwnMatrices`] `[slots]`.
        pub own: DevicePtr,
        /// f32 `[T][x_stride]`, what [`EmbedParams`] wrote; columns from `width` on are not touched.
        pub x: DevicePtr,
        /// Tokens.
        pub vocab: u32,
        /// Columns of the embedding.
        pub width: u32,
        /// Distance of rows of an adapter's own embedding.
        pub own_stride: u32,
        /// Distance of rows of `x`.
        pub x_stride: u32,
        /// Sites of a slot.
        pub n_sites: u32,
        /// The embedding's among them.
        pub site: u32,
    }
}
const _: () = assert!(size_of::<EmbedAdaptersParams>() == 72);

impl EmbedAdaptersParams {
    /// Enqueues it for up to `max_rows` rows, behind [`EmbedParams::launch`].
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "embed_adapters";
        want_stride(kernel, "distance of rows of an embedding", self.own_stride, 64, self.width)?;
        want_stride(kernel, "distance of rows of x", self.x_stride, 1, self.width)?;
        let n_sites = self.n_sites;
        want(kernel, "site", self.site, self.site < n_sites, format_args!("below {n_sites}"))?;
        let grid = (self.width.div_ceil(THREADS), max_rows.min(GRID_ROWS_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }
}
