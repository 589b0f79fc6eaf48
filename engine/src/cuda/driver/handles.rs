//! Owners of what the driver gives out.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::{fmt, ptr::NonNull, sync::Arc};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaStream,
    result::{self, event, module},
    sys,
};

use super::{CudaError, failed};
use crate::cuda::{
    Event,
    arena::ArenaRange,
    gpu::{CopyStream, HostMemory},
};

/// What graphs need to stay alive: dropped with the last of driver and graphs.
pub(super) struct Shared {
    pub(super) context: Arc<CudaContext>,
    pub(super) modules: Vec<sys::CUmodule>,
    pub(super) arena: Option<sys::CUdeviceptr>,
}

// SAFETY: the driver's handles may be used by any thread in which the context is current; every use binds it first.
unsafe impl Send for Shared {}
// SAFETY: nothing is changed behind a shared reference.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // Errors have nowhere to go here; after a lost device every call fails and there is nothing left to free.
        let _ = self.context.synchronize();
        if let Some(arena) = self.arena {
            // SAFETY: allocated by `reserve`, freed only here, and nothing is running any more.
            let _ = unsafe { result::free_sync(arena) };
        }
        for &module in &self.modules {
            // SAFETY: loaded by `load_kernels`, unloaded only here, and nothing is running any more.
            let _ = unsafe { module::unload(module) };
        }
    }
}

/// An event that was recorded.
#[derive(Debug)]
pub(in crate::cuda) struct DriverEvent(pub(super) CudaEvent);

impl DriverEvent {
    pub(in crate::cuda) fn wait(&self) -> Result<(), CudaError> {
        self.0.synchronize().map_err(failed("waiting for an event"))
    }

    pub(in crate::cuda) fn is_done(&self) -> Result<bool, CudaError> {
        self.0.try_is_complete().map_err(failed("asking for an event"))
    }

    pub(in crate::cuda) fn elapsed_ms(&self, later: &Self) -> Result<f32, CudaError> {
        self.wait()?;
        later.wait()?;
        // SAFETY: both events exist and have been reached; the driver refuses untimed ones.
        unsafe { event::elapsed(self.0.cu_event(), later.0.cu_event()) }
            .map_err(failed("timing events"))
    }
}

/// Marks the point that a stream's queue has reached.
pub(super) fn record(
    context: &Arc<CudaContext>,
    stream: &CudaStream,
    timed: bool,
) -> Result<Event, CudaError> {
    let flags = if timed {
        sys::CUevent_flags::CU_EVENT_DEFAULT
    } else {
        sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
    };
    let event = context.new_event(Some(flags)).map_err(failed("creating an event"))?;
    event.record(stream).map_err(failed("recording an event"))?;
    Ok(Event { driver: Some(DriverEvent(event)) })
}

/// A stream for copies, with the memory that it copies to.
pub(super) struct DriverCopies {
    // Before `shared`: the stream ends first.
    pub(super) stream: Arc<CudaStream>,
    pub(super) shared: Arc<Shared>,
}

impl CopyStream for DriverCopies {
    unsafe fn write_async(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError> {
        assert_eq!(range.bytes(), src.len(), "a range is as long as its source");
        self.shared.context.bind_to_thread().map_err(failed("making the context current"))?;
        // SAFETY: the range lies in the arena of `shared` and is as long as `src`; the caller keeps `src` still.
        unsafe { result::memcpy_htod_async(range.at().0, src, self.stream.cu_stream()) }
            .map_err(failed(format_args!("copying {} bytes to the device", src.len())))
    }

    fn record(&self) -> Result<Event, CudaError> {
        record(&self.shared.context, &self.stream, false)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(failed("waiting for copies"))
    }
}

/// A graph, with the modules and the memory that it uses.
pub(in crate::cuda) struct DriverGraph {
    // Before `_shared`: the graph ends first.
    pub(super) graph: CudaGraph,
    pub(super) _shared: Arc<Shared>,
}

// SAFETY: a graph may be used by any thread, one at a time; it is not `Sync`.
unsafe impl Send for DriverGraph {}

impl fmt::Debug for DriverGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DriverGraph")
    }
}

impl DriverGraph {
    pub(in crate::cuda) fn replay(&self) -> Result<(), CudaError> {
        self.graph.launch().map_err(failed("replaying a graph"))
    }
}

/// Page-locked memory of the driver.
pub(super) struct PinnedMemory {
    pub(super) ptr: NonNull<u8>,
    pub(super) bytes: usize,
    pub(super) context: Arc<CudaContext>,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedMemory {}

impl HostMemory for PinnedMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` bytes are allocated there and were cleared; nobody writes while `self` is borrowed, because
        // asynchronous copies are waited for first.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `pinned` and freed only here; no copy is under way (see `PinnedBuffer`).
        let _ = unsafe { result::free_host(self.ptr.as_ptr().cast()) };
    }
}
