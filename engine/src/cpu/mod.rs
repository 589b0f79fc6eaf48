//! The CPU backend.
//!
//! | file | what |
//! |---|---|
//! | `isa`, `simd` | instruction sets, and the vectors that kernels are written over |
//! | `threads` | the team that shares an operation's chunks |
//! | `packed` | frozen matrices in tiles of sixteen output features |
//! | `int8_rows`, `matmul_int8`, `matmul_f32`, `epilogue`, `lora`, `project`, `head`, `embed` | products |
//! | `resident`, `residents`, `dora` | adapters as the kernels read them |
//! | `kv_cache`, `attention`, `elementwise` | the rest of a layer |
//! | `plan`, `backend` | a step |
//! | `train` | training of adapters through the same weights |
#![allow(
    clippy::inline_always,
    clippy::multiple_unsafe_ops_per_block,
    clippy::cast_ptr_alignment,
    clippy::similar_names,
    reason = "kernels must end up in the function that has the target features (see `simd`), are chains of vector operations \
              under one proof, and read packed bytes with unaligned loads; names follow formulas"
)]

mod attention;
mod backend;
pub(crate) mod dora;
mod elementwise;
mod embed;
mod epilogue;
mod head;
mod int8_rows;
pub mod isa;
mod kv_cache;
mod lora;
mod matmul_f32;
mod matmul_int8;
mod memory;
mod packed;
mod plan;
mod project;
mod resident;
mod residents;
mod simd;
mod threads;
mod train;

#[cfg(test)]
mod tests;

pub use backend::{CpuBackend, CpuBuffer, CpuError, CpuMatrix, CpuVector};
pub use head::HEAD_ROWS_MAX;
pub use isa::Isa;
pub use residents::ADAPTER_SLOTS_MAX;
pub use train::{FrozenBase, TrainPass};
