//! What [`super::Device`] stands on: libcuda (`driver`) or host memory (`fake`).
#![expect(unsafe_code, reason = "asynchronous copies are promises of the caller")]

use super::{
    CudaError, DeviceInfo, DevicePtr, Event, Graph, Launch, RecordedLaunch, arena::ArenaRange,
};

/// A device. Ranges were checked by the device's arena.
pub(super) trait Gpu: Send {
    fn info(&self) -> &DeviceInfo;
    fn free_bytes(&self) -> Result<u64, CudaError>;
    /// Allocates the one range; called once.
    fn reserve(&mut self, bytes: u64) -> Result<DevicePtr, CudaError>;
    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError>;
    fn ctas_per_sm(&self, kernel: &str, block: u32, shared_bytes: u32) -> Result<u32, CudaError>;
    /// Copies to the device, in order with the stream; `src` is free afterwards. As long as `range`.
    fn write(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError>;
    /// Copies from the device when the stream has come so far, and waits. As long as `range`.
    fn read(&self, range: ArenaRange, dst: &mut [u8]) -> Result<(), CudaError>;
    fn fill(&self, range: ArenaRange, byte: u8) -> Result<(), CudaError>;
    /// Copies within the device; the ranges are equally long.
    fn copy(&self, src: ArenaRange, dst: ArenaRange) -> Result<(), CudaError>;
    fn pinned(&self, bytes: usize) -> Result<Box<dyn HostMemory>, CudaError>;
    /// Another stream, for copies to the range that was reserved.
    fn copy_stream(&self) -> Result<Box<dyn CopyStream>, CudaError>;
    /// Enqueues a copy to the device, as long as `range`.
    ///
    /// # Safety
    /// `src` is pinned memory of this device, and neither changed nor freed before the copy has happened.
    unsafe fn write_async(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError>;
    /// Enqueues a copy from the device, as long as `range`.
    ///
    /// # Safety
    /// `dst` is pinned memory of this device, and neither read, changed nor freed before the copy has happened.
    unsafe fn read_async(&self, range: ArenaRange, dst: &mut [u8]) -> Result<(), CudaError>;
    fn record(&self, timed: bool) -> Result<Event, CudaError>;
    fn synchronize(&self) -> Result<(), CudaError>;
    fn begin_capture(&self) -> Result<(), CudaError>;
    fn end_capture(&self) -> Result<Graph, CudaError>;
    fn take_launches(&self) -> Option<Vec<RecordedLaunch>> {
        None
    }
}

/// A stream that another thread than the device's may use, for copies alone. Keeps the device's memory alive.
pub(super) trait CopyStream: Send {
    /// See [`Gpu::write_async`].
    ///
    /// # Safety
    /// As there.
    unsafe fn write_async(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError>;
    fn record(&self) -> Result<Event, CudaError>;
    fn synchronize(&self) -> Result<(), CudaError>;
}

/// Page-locked host memory.
pub(super) trait HostMemory: Send {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}
