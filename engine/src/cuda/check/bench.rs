//! Device memory for one shape after another.

use std::cell::Cell;

use crate::cuda::{CudaError, Device, DevicePtr, LaunchSink, Plain, plain};

use super::random::Random;

/// Bytes before and after every output, which no kernel may touch.
const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xa5;
/// Every output before the launch: NaN as f16 and f32, an impossible value as u32.
pub(super) const FILL: u8 = 0xff;

/// What checks need of a device.
pub trait CheckDevice: LaunchSink {
    /// Copies bytes to the device, after all launches so far.
    ///
    /// # Errors
    /// The device's.
    fn upload_bytes(&self, bytes: &[u8], to: DevicePtr) -> Result<(), CudaError>;

    /// Copies bytes from the device, after all launches so far.
    ///
    /// # Errors
    /// The device's.
    fn download_bytes(&self, from: DevicePtr, bytes: &mut [u8]) -> Result<(), CudaError>;

    /// Whether `gemm_wide` runs here.
    fn has_wide(&self) -> bool;
}

impl CheckDevice for Device {
    fn upload_bytes(&self, bytes: &[u8], to: DevicePtr) -> Result<(), CudaError> {
        self.upload(bytes, to)
    }

    fn download_bytes(&self, from: DevicePtr, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.download(from, bytes)
    }

    fn has_wide(&self) -> bool {
        self.info().compute_capability == (9, 0)
    }
}

/// Why checks could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The device, or a wrapper that refuses a shape.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// The region is too small.
    #[error("a check needs {needed} bytes, {free} are free")]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes left.
        free: usize,
    },
}

/// A device, a region of its memory, and random numbers.
pub struct Bench<'a> {
    device: &'a dyn CheckDevice,
    region: DevicePtr,
    bytes: usize,
    used: Cell<usize>,
    pub(super) random: Random,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench")
            .field("region", &self.region)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Memory that a kernel writes.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) ptr: DevicePtr,
    bytes: usize,
}

impl<'a> Bench<'a> {
    /// Over `bytes` bytes at `region`, a multiple of 256, which nobody else uses meanwhile.
    pub fn new(device: &'a dyn CheckDevice, region: DevicePtr, bytes: usize, seed: u64) -> Self {
        Self { device, region, bytes, used: Cell::new(0), random: Random::new(seed) }
    }

    /// Where launches go.
    pub(super) fn sink(&self) -> &'a dyn LaunchSink {
        self.device
    }

    pub(super) fn has_wide(&self) -> bool {
        self.device.has_wide()
    }

    /// Forgets all memory of the last shape.
    pub(super) fn next_shape(&self) {
        self.used.set(0);
    }

    fn take(&self, bytes: usize) -> Result<DevicePtr, CheckError> {
        let begin = self.used.get().next_multiple_of(GUARD_BYTES);
        let free = self.bytes.saturating_sub(begin);
        if bytes > free {
            return Err(CheckError::OutOfMemory { needed: bytes, free });
        }
        self.used.set(begin + bytes);
        Ok(self.region.at(begin))
    }

    /// Memory that a kernel reads.
    pub(super) fn input<T: Plain>(&self, values: &[T]) -> Result<DevicePtr, CheckError> {
        let bytes = plain::bytes_of_slice(values);
        let ptr = self.take(bytes.len().max(1))?;
        self.device.upload_bytes(bytes, ptr)?;
        Ok(ptr)
    }

    /// `n` values that a kernel writes, all NaN.
    pub(super) fn output<T: Plain>(&self, n: usize) -> Result<Output, CheckError> {
        self.output_bytes(vec![FILL; n * size_of::<T>()])
    }

    /// Values that a kernel changes.
    pub(super) fn in_out<T: Plain>(&self, values: &[T]) -> Result<Output, CheckError> {
        self.output_bytes(plain::bytes_of_slice(values).to_vec())
    }

    fn output_bytes(&self, contents: Vec<u8>) -> Result<Output, CheckError> {
        let bytes = contents.len();
        let mut all = vec![GUARD; GUARD_BYTES];
        all.extend(contents);
        all.extend([GUARD; GUARD_BYTES]);
        let begin = self.take(all.len())?;
        self.device.upload_bytes(&all, begin)?;
        Ok(Output { ptr: begin.at(GUARD_BYTES), bytes })
    }

    /// What a kernel has written, and whether the guards are whole. `zero` is any value.
    pub(super) fn read<T: Plain>(
        &self,
        output: &Output,
        zero: T,
    ) -> Result<(Vec<T>, bool), CheckError> {
        let mut all = vec![0; output.bytes + 2 * GUARD_BYTES];
        self.device.download_bytes(DevicePtr(output.ptr.0 - GUARD_BYTES as u64), &mut all)?;
        let (before, rest) = all.split_at(GUARD_BYTES);
        let (contents, after) = rest.split_at(output.bytes);
        let whole = before.iter().chain(after).all(|&byte| byte == GUARD);
        let mut values = vec![zero; output.bytes / size_of::<T>()];
        plain::bytes_of_slice_mut(&mut values).copy_from_slice(contents);
        Ok((values, whole))
    }
}
