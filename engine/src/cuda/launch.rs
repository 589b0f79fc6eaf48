//! One launch of one kernel.
//!
//! Every kernel is `extern "C"` and takes exactly one struct by value (`const __grid_constant__ Params p`). Its Rust
//! twin is declared with [`kernel_params!`], which refuses padding; its size is compared with the kernel's own
//! parameter before every launch, so that a struct changed on one side only is an error and not a wrong read.

use std::fmt;

use super::{CudaError, Plain, plain::bytes_of};

/// Most bytes of parameters: the limit of compute capability 8.0.
pub const PARAMS_BYTES_MAX: usize = 4096;
/// Most threads of a CTA.
pub const BLOCK_THREADS_MAX: u32 = 1024;
/// Most CTAs along y and z.
const GRID_YZ_MAX: u32 = 65_535;

/// A struct that a kernel takes. Declared by [`kernel_params!`].
pub trait Params: Plain + fmt::Debug {}

/// Declares the struct that a kernel takes: `#[repr(C)]`, fields of [`Plain`] types, no padding, at most
/// [`PARAMS_BYTES_MAX`] bytes; all checked while compiling. Fields in order of falling size need no padding in between;
/// a last `_pad: u32` fills up to 8 bytes.
///
/// ```ignore
/// kernel_params! {
///     /// What `rms_norm` takes.
///     pub(crate) struct RmsNormParams {
///         x: DevicePtr,
///         weight: DevicePtr,
///         out: DevicePtr,
///         width: u32,
///         eps: f32,
///     }
/// }
/// ```
macro_rules! kernel_params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $ty),* }

        const _: () = {
            const fn plain_bytes<T: $crate::cuda::Plain>() -> usize {
                ::std::mem::size_of::<T>()
            }
            let fields = 0 $(+ plain_bytes::<$ty>())*;
            assert!(fields == ::std::mem::size_of::<$name>(), "a struct for a kernel has no padding");
            assert!(fields > 0 && fields <= $crate::cuda::launch::PARAMS_BYTES_MAX);
        };

        #[allow(unsafe_code, reason = "the assertions above are its proof")]
        // SAFETY: all fields are `Plain`, and their sizes sum up to the struct's, so there is no padding.
        unsafe impl $crate::cuda::Plain for $name {}

        impl $crate::cuda::launch::Params for $name {}
    };
}
pub(crate) use kernel_params;

/// One launch, complete.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the entry point.
    pub kernel: &'a str,
    /// CTAs along x, y, z.
    pub grid: (u32, u32, u32),
    /// Threads of a CTA.
    pub block: u32,
    /// Dynamic shared memory of a CTA, bytes.
    pub shared_bytes: u32,
    /// CTAs of a cluster along x; 1 = no clusters.
    pub cluster: u32,
    /// Whether it may begin before its predecessor's end (programmatic dependent launch, from compute capability 9.0).
    /// The kernel then waits with `griddepcontrol.wait` before it touches anything that another kernel writes.
    pub early: bool,
    /// The struct that the kernel takes.
    pub params: &'a [u8],
}

impl<'a> Launch<'a> {
    /// Without clusters, after its predecessor's end.
    pub fn new<P: Params>(
        kernel: &'a str,
        grid: (u32, u32, u32),
        block: u32,
        shared_bytes: u32,
        params: &'a P,
    ) -> Self {
        Self {
            kernel,
            grid,
            block,
            shared_bytes,
            cluster: 1,
            early: false,
            params: bytes_of(params),
        }
    }

    /// Checks what holds on every device.
    ///
    /// # Errors
    /// [`CudaError::Launch`] with the quantity.
    pub fn check(&self) -> Result<(), CudaError> {
        let (x, y, z) = self.grid;
        self.want(
            "blocks along x",
            x as usize,
            x >= 1 && i32::try_from(x).is_ok(),
            "1 to 2147483647",
        )?;
        for (what, n) in [("blocks along y", y), ("blocks along z", z)] {
            self.want(what, n as usize, (1..=GRID_YZ_MAX).contains(&n), "1 to 65535")?;
        }
        self.want(
            "threads",
            self.block as usize,
            (1..=BLOCK_THREADS_MAX).contains(&self.block),
            "1 to 1024",
        )?;
        let in_clusters = (1..=8).contains(&self.cluster) && x.is_multiple_of(self.cluster);
        self.want(
            "blocks of a cluster",
            self.cluster as usize,
            in_clusters,
            "1 to 8, a divisor of the blocks along x",
        )?;
        let n = self.params.len();
        self.want("bytes of parameters", n, (1..=PARAMS_BYTES_MAX).contains(&n), "1 to 4096")
    }

    /// `Ok` if `fits`, else an error that says what is wanted.
    pub(super) fn want(
        &self,
        what: &'static str,
        given: usize,
        fits: bool,
        expected: impl fmt::Display,
    ) -> Result<(), CudaError> {
        if fits {
            return Ok(());
        }
        Err(CudaError::Launch {
            kernel: self.kernel.to_owned(),
            what,
            given,
            expected: format!("expected {expected}"),
        })
    }
}

/// Takes launches: the device, or a list of them in tests.
///
/// Launching is safe for the host: parameters are compared in size with the kernel's and copied during the call. A wrong
/// address in them is the wrapper's fault and ends in a device error or in wrong numbers; no host memory is ever
/// mapped for kernels.
pub trait LaunchSink {
    /// Enqueues a launch.
    ///
    /// # Errors
    /// [`CudaError::UnknownKernel`], [`CudaError::Launch`] if it does not fit, [`CudaError::Call`] if the driver refuses.
    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError>;

    /// [`Self::submit`] of a plain launch.
    ///
    /// # Errors
    /// As there.
    fn launch<P: Params>(
        &self,
        kernel: &str,
        grid: (u32, u32, u32),
        block: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<(), CudaError>
    where
        Self: Sized,
    {
        self.submit(&Launch::new(kernel, grid, block, shared_bytes, params))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::DevicePtr, *};

    kernel_params! {
        struct ProbeParams { x: DevicePtr, n: u32, scale: f32 }
    }

    #[test]
    fn parameters_are_their_fields_side_by_side() {
        let params = ProbeParams { x: DevicePtr(0x0102_0304_0506_0708), n: 9, scale: 1.0 };
        let launch = Launch::new("probe", (1, 1, 1), 32, 0, &params);
        assert_eq!(launch.params, [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0x80, 0x3f]);
        launch.check().unwrap();
    }

    #[test]
    fn a_launch_beyond_any_device_is_refused_by_name() {
        let params = ProbeParams { x: DevicePtr::NULL, n: 0, scale: 0.0 };
        let good = Launch::new("probe", (4, 2, 1), 256, 0, &params);
        for (bad, what) in [
            (Launch { grid: (0, 1, 1), ..good }, "blocks along x"),
            (Launch { grid: (1 << 31, 1, 1), ..good }, "blocks along x"),
            (Launch { grid: (1, 65_536, 1), ..good }, "blocks along y"),
            (Launch { grid: (1, 1, 0), ..good }, "blocks along z"),
            (Launch { block: 1025, ..good }, "threads"),
            (Launch { block: 0, ..good }, "threads"),
            (Launch { cluster: 3, ..good }, "blocks of a cluster"),
            (Launch { params: &[], ..good }, "bytes of parameters"),
            (Launch { params: &[0; 4097], ..good }, "bytes of parameters"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.starts_with("kernel probe: ") && message.contains(what), "{message}");
        }
    }
}
