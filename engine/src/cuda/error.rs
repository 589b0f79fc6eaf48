//! What can go wrong between the engine and a GPU.

use crate::backend::RunError;

/// Why the device did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// `libcuda` cannot be loaded.
    #[error("no NVIDIA driver: libcuda is not here")]
    NoDriver,
    /// The driver lacks functions that are called.
    #[error(
        "the NVIDIA driver is too old: it offers CUDA {}.{}, at least {}.{} is needed",
        .found / 1000, .found % 1000 / 10, .needed / 1000, .needed % 1000 / 10
    )]
    DriverTooOld {
        /// As `cuDriverGetVersion` says it: 1000 × major + 10 × minor.
        found: u32,
        /// Likewise.
        needed: u32,
    },
    /// There are fewer devices.
    #[error("there is no GPU {ordinal}: {count} found")]
    NoSuchDevice {
        /// Asked for, from 0.
        ordinal: usize,
        /// Devices that the driver sees.
        count: usize,
    },
    /// No tensor cores as the kernels need them.
    #[error("{name} has compute capability {}.{}, at least 8.0 is needed", .compute_capability.0, .compute_capability.1)]
    DeviceTooOld {
        /// The device.
        name: String,
        /// Major and minor.
        compute_capability: (u32, u32),
    },
    /// Built without nvcc.
    #[error("this binary was built without kernels")]
    NoKernels,
    /// The driver refused a call.
    #[error("{call} failed: {reason}")]
    Call {
        /// What was called, and for what.
        call: String,
        /// Name and text of the driver's error.
        reason: String,
    },
    /// No embedded kernel has this name.
    #[error("no kernel is called {0}")]
    UnknownKernel(String),
    /// The kernel is not what the wrapper was written for, or the launch is beyond the device.
    #[error("kernel {kernel}: {what}: {given}, {expected}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// Which quantity.
        what: &'static str,
        /// What the launch has.
        given: usize,
        /// What it should be.
        expected: String,
    },
    /// A copy would leave the memory that was given out.
    #[error("{what} of {bytes} bytes at {at:#x} leaves the arena's {begin:#x}..{end:#x}")]
    OutOfRange {
        /// Which operation.
        what: &'static str,
        /// First byte.
        at: u64,
        /// How many.
        bytes: usize,
        /// Arena, first byte.
        begin: u64,
        /// Arena, end of what was given out.
        end: u64,
    },
    /// The arena is laid out once.
    #[error("the arena has been reserved already")]
    ArenaReserved,
}

impl From<CudaError> for RunError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.to_string())
    }
}
