//! One wrapper per kernel: the struct that it takes, and `launch`, which checks shapes and makes the grid.
//!
//! | file | kernels (in `engine/cuda/`) |
//! |---|---|
//! | `step` | none: what varies from step to step and is read from device memory |
//! | `embed` | `embed`, `embed_adapters`: rows of the embedding, and what adapters make of them |
//! | `norm` | `rms_norm`, of all rows or of the rows whose logits are wanted |
//! | `gemm` | `gemm_1`, `_2`, `_4`, `_8`, `gemm_dense`: products with weights |
//! | `gemm_wide` | `x_tiles`, `gemm_wide`: the same for many rows on compute capability 9.0 |
//! | `lora` | `lora_shrink`, of rows and of tiles: first half of the adapters |
//! | `epilogue` | `epilogue`, `epilogue_swiglu`, `epilogue_in_place`: planes, second half of the adapters, bias |
//! | `own_head` | `own_head`: logits of adapters with a head of their own |
//! | `rope_kv` | `rope_store` |
//! | `attention` | `attention`, `attention_merge`, `attention_tiles` |
//! | `sample` | `sample` |
//!
//! Every `launch` takes the most rows that the launch is for (a bucket): the grid is made for them, and the kernel does
//! as many as the [`StepHeader`] on the device says. So a captured launch serves every step of its bucket. Launches of
//! one op that differ in the bucket give a row the same bits.
//!
//! What cannot be checked here is what lies in device memory: ids, positions, slots and tables are the host's plan.

mod attention;
mod embed;
mod epilogue;
mod gemm;
mod gemm_wide;
mod lora;
mod norm;
mod own_head;
mod rope_kv;
mod sample;
mod step;
#[cfg(test)]
mod tests;

pub use attention::{AttentionParams, AttentionRows, rows_of_tile};
pub use embed::{EmbedAdaptersParams, EmbedParams};
pub(super) use epilogue::Rows as EpilogueRows;
pub use epilogue::{EpilogueParams, EpiloguePart};
pub use gemm::{GemmParams, GemmPart};
pub use gemm_wide::XTilesParams;
pub use lora::{LoraShrinkParams, tile_split_columns};
pub use norm::RmsNormParams;
pub use own_head::{OWN_HEAD_TILE_ROWS, OwnHeadParams};
pub use rope_kv::RopeStoreParams;
pub use sample::{LogitEdit, SAMPLE_VOCAB_MAX, SampleParams, SampleResult, SampleSpec, TOP_MAX};
pub use step::{
    ADAPTER_TILE_ROWS, AdapterTile, AttentionTile, LoraSite, NO_SLOT, OwnMatrices, PARTS_MAX,
    StepHeader, V_STRIDE,
};

use std::fmt;

use super::CudaError;

/// Most CTAs along y, where rows are; kernels loop over what is beyond.
const GRID_ROWS_MAX: u32 = 65_535;

/// Rows from which on tiles of several rows of one adapter pay more than more CTAs do.
pub(super) const TILED_ROWS_MIN: u32 = 128;

/// `Ok` if `fits`, else an error that names the kernel and the quantity.
fn want(
    kernel: &str,
    what: &'static str,
    given: u32,
    fits: bool,
    expected: impl fmt::Display,
) -> Result<(), CudaError> {
    if fits {
        return Ok(());
    }
    Err(CudaError::Launch {
        kernel: kernel.to_owned(),
        what,
        given: given as usize,
        expected: format!("expected {expected}"),
    })
}

/// A stride or column of 16-byte accesses: `multiple` values, and room for `width`.
fn want_stride(
    kernel: &str,
    what: &'static str,
    stride: u32,
    multiple: u32,
    width: u32,
) -> Result<(), CudaError> {
    let fits = stride.is_multiple_of(multiple) && stride >= width;
    want(kernel, what, stride, fits, format_args!("a multiple of {multiple} from {width} on"))
}
