//! Every kernel against its definition: random inputs, outputs filled with NaN beforehand, guard bytes around them.
//!
//! [`all`] runs on a [`super::Device`] (`pleach gpu-check`) and on the emulator of the kernels (a test). Definitions are those of
//! [`crate::reference`], in f64, on exactly the values that a kernel sees. Every row of the result is one shape.

mod attention;
mod bench;
mod compare;
mod embed;
mod epilogue;
mod gemm;
mod lora;
mod norm;
mod own_head;
mod random;
mod rope_kv;
mod sample;

pub use bench::{Bench, CheckDevice, CheckError};

use super::ops::StepHeader;

/// What one shape gave.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckRow {
    /// Which kernel.
    pub name: &'static str,
    /// Sizes, in words.
    pub shape: String,
    /// Largest `|found − expected| / tolerance`; infinite for NaN, for a wrong exact value, or for a write where none
    /// belongs.
    pub worst_ratio: f64,
    /// Where it was, and both values.
    pub worst: String,
    /// Whether `worst_ratio` is at most 1.
    pub pass: bool,
}

/// How many shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// What an emulator does in seconds.
    Small,
    /// Real models' too.
    Full,
}

/// Bytes of device memory that [`all`] needs.
pub const REGION_BYTES: usize = 1 << 30;

/// Checks every kernel of [`super::ops`].
///
/// # Errors
/// [`CheckError`]: a launch failed or memory is short. A wrong value is no error but a row that does not pass.
pub fn all(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let mut rows = Vec::new();
    for check in [
        embed::embed,
        embed::embed_adapters,
        gemm::gemm,
        gemm::gemm_wide,
        norm::rms_norm,
        lora::lora_shrink,
        lora::lora_shrink_tiles,
        epilogue::epilogue,
        epilogue::epilogue_swiglu,
        epilogue::epilogue_in_place,
        own_head::own_head,
        rope_kv::rope_store,
        attention::single_rows,
        attention::tiles,
        sample::sample,
    ] {
        rows.extend(check(bench, sizes)?);
    }
    Ok(rows)
}

/// A step of some rows; the launch is made for more.
fn header(n_rows: usize, n_sample_rows: usize) -> StepHeader {
    StepHeader {
        n_rows: to_u32(n_rows),
        n_sequences: 1,
        n_sample_rows: to_u32(n_sample_rows),
        n_adapter_tiles: 0,
        n_single_rows: 0,
        n_tiles: 0,
        reserved: [0; 2],
    }
}

/// Rows that a launch is for, beyond those of the step.
const ROWS_BEYOND: usize = 3;

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of checks are small")
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn widen_halves(values: &[half::f16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}
