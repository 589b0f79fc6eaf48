//! The CUDA side: the device, its memory and its launches, and the layout of weights on it.
//!
//! cudarc loads `libcuda` at run time, so this is compiled in always and the binary starts where no CUDA is. Kernels
//! are embedded when the build found nvcc (see `build.rs`); [`has_kernels`] says whether.
//!
//! | file | what |
//! |---|---|
//! | `probe` | which GPUs are here, with or without kernels |
//! | `device`, `handles` | the safe device: an arena, copies, launches, events, graphs; all ranges are checked |
//! | `upload` | copies from other threads, beside launches |
//! | `gpu`, `driver`, `fake` | what it stands on: libcuda, or host memory and a list of launches for tests |
//! | `launch`, `plain` | one launch, and the structs that kernels take |
//! | `arena` | the one allocation and its account |
//! | `ops` | a wrapper for each kernel |
//! | `sample_plan` | what the sampling kernel is told, from the rows' parameters and histories |
//! | `backend` | `Backend` over all of this |
//! | `check` | every kernel against its definition |
//! | `tile`, `repack`, `decode` | weights in tiles and planes, as the tensor cores read them |

pub mod arena;
mod backend;
pub mod check;
mod decode;
mod device;
mod driver;
mod error;
mod fake;
mod gpu;
mod handles;
pub mod launch;
pub mod ops;
pub mod plain;
pub mod probe;
pub mod repack;
mod sample_plan;
pub mod tile;
mod upload;

pub use arena::{Arena, ArenaLine, DevicePtr};
pub use backend::{
    ADAPTER_SLOTS_MAX, CudaBackend, CudaBuffer, CudaMatrix, CudaOptions, CudaVector,
};
pub use device::{Device, DeviceInfo, KernelTime};
pub use error::CudaError;
pub use fake::RecordedLaunch;
pub use handles::{Event, Graph, PinnedBuffer};
pub use launch::{Launch, LaunchSink, Params};
pub use plain::Plain;
pub use sample_plan::{EDITS_MAX, SamplePlan};
pub use upload::UploadLane;

#[cfg(test)]
mod tests;

/// What ptxas says of one kernel on one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelResources {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// `sm_80` or `sm_90a`.
    pub arch: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a CTA, bytes.
    pub shared_bytes: u32,
}

/// What `build.rs` wrote; empty tables if it found no nvcc.
pub mod embedded {
    use super::KernelResources;

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Whether kernels are embedded in this binary.
pub const fn has_kernels() -> bool {
    cfg!(pleach_kernels)
}
