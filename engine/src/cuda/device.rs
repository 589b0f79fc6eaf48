//! The device as the rest of the engine sees it: safe, with every range checked.
//!
//! One thread owns it and makes all launches. Memory is one arena, reserved once. Work is enqueued on one stream, in
//! order. Other threads copy beside it, each through a lane of its own ([`Device::upload_lane`]).
#![expect(
    unsafe_code,
    reason = "asynchronous copies: the pinned buffer keeps still until its event"
)]

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use super::{
    Arena, CudaError, DevicePtr, Launch, LaunchSink, Plain, RecordedLaunch,
    arena::ArenaRange,
    driver::Driver,
    fake::FakeGpu,
    gpu::Gpu,
    handles::{Event, Graph, PinnedBuffer},
    plain::{bytes_of_slice, bytes_of_slice_mut},
    upload::UploadLane,
};
use crate::backend::RunError;

/// Which GPU this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of the device, from 0.
    pub ordinal: usize,
    /// As the driver calls it: `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub n_sms: u32,
    /// Device memory in all.
    pub memory_bytes: u64,
    /// Level-2 cache.
    pub l2_bytes: u64,
    /// Most shared memory of a CTA, static and dynamic.
    pub shared_bytes_max: u32,
    /// CUDA version that the driver offers: 1000 × major + 10 × minor.
    pub driver_version: u32,
}

/// What the launches of one kernel took, see [`Device::begin_profile`].
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Name of the entry point.
    pub kernel: String,
    /// Launches.
    pub n_launches: usize,
    /// In all, milliseconds.
    pub milliseconds: f64,
}

/// A launch between two timed events.
type TimedLaunch = (String, Event, Event);

/// A GPU, or a fake one.
pub struct Device {
    gpu: Box<dyn Gpu>,
    arena: Option<Arena>,
    capturing: Cell<bool>,
    /// Launches since [`Self::begin_profile`].
    profile: RefCell<Option<Vec<TimedLaunch>>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("info", self.info())
            .field("arena", &self.arena)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Opens a GPU and loads all embedded kernels onto it.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no such device, one that is too old, or no kernels in this binary.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Ok(Self::over(Box::new(Driver::open(ordinal)?)))
    }

    /// A device that is host memory: launches are checked and recorded (see [`Self::take_launches`]) but compute nothing.
    pub fn fake(info: DeviceInfo) -> Self {
        Self::over(Box::new(FakeGpu::new(info, None)))
    }

    /// The same, but `kernels` runs every launch, on host memory whose addresses are the device's: for tests that compile the
    /// kernels for the CPU.
    pub fn emulated(info: DeviceInfo, kernels: Box<dyn LaunchSink + Send>) -> Self {
        Self::over(Box::new(FakeGpu::new(info, Some(kernels))))
    }

    fn over(gpu: Box<dyn Gpu>) -> Self {
        Self { gpu, arena: None, capturing: Cell::new(false), profile: RefCell::new(None) }
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.gpu.info()
    }

    /// Device memory that nobody uses at the moment, as the driver says: a basis for [`Self::reserve`].
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        self.gpu.free_bytes()
    }

    /// Allocates the arena. All later memory comes out of it.
    ///
    /// # Errors
    /// [`CudaError::ArenaReserved`] the second time; [`CudaError::Call`] if the driver has not as much.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), CudaError> {
        if self.arena.is_some() {
            return Err(CudaError::ArenaReserved);
        }
        let base = self.gpu.reserve(bytes)?;
        self.arena = Some(Arena::new(base, bytes));
        Ok(())
    }

    /// The arena's account, once it is reserved.
    pub fn arena(&self) -> Option<&Arena> {
        self.arena.as_ref()
    }

    /// Takes bytes out of the arena, not cleared, at a multiple of 256.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`] naming `what`.
    pub fn alloc(&mut self, what: &'static str, bytes: usize) -> Result<DevicePtr, RunError> {
        match &mut self.arena {
            Some(arena) => arena.take(what, bytes),
            None => Err(RunError::OutOfMemory { what, needed: bytes, free: 0 }),
        }
    }

    /// [`Self::alloc`] and [`Self::upload`].
    ///
    /// # Errors
    /// Of both.
    pub fn alloc_upload<T: Plain>(
        &mut self,
        what: &'static str,
        values: &[T],
    ) -> Result<DevicePtr, RunError> {
        let ptr = self.alloc(what, size_of_val(values))?;
        self.upload(values, ptr)?;
        Ok(ptr)
    }

    /// Copies values to the device, after all earlier work of the stream and before all later; waits.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`].
    pub fn upload<T: Plain>(&self, values: &[T], to: DevicePtr) -> Result<(), CudaError> {
        let bytes = bytes_of_slice(values);
        self.gpu.write(self.range("upload", to, bytes.len())?, bytes)
    }

    /// Copies values from the device, after all earlier work of the stream; waits.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`].
    pub fn download<T: Plain>(&self, from: DevicePtr, values: &mut [T]) -> Result<(), CudaError> {
        let bytes = bytes_of_slice_mut(values);
        self.gpu.read(self.range("download", from, bytes.len())?, bytes)
    }

    /// Enqueues setting bytes on the stream.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`].
    pub fn fill(&self, at: DevicePtr, bytes: usize, byte: u8) -> Result<(), CudaError> {
        self.gpu.fill(self.range("fill", at, bytes)?, byte)
    }

    /// Enqueues a copy within the device.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`].
    pub fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<(), CudaError> {
        self.gpu.copy(self.range("copy", from, bytes)?, self.range("copy", to, bytes)?)
    }

    /// Page-locked memory for copies that do not wait, zero at first.
    ///
    /// # Errors
    /// [`CudaError::Call`] if the host has not as much.
    pub fn pinned(&self, bytes: usize) -> Result<PinnedBuffer, CudaError> {
        Ok(PinnedBuffer { memory: self.gpu.pinned(bytes)?, busy: None })
    }

    /// A way for another thread to copy to what was allocated so far, through `buffer_bytes` of pinned memory twice.
    ///
    /// # Errors
    /// [`CudaError`]: nothing was reserved yet, or the host has not as much memory.
    pub fn upload_lane(&self, buffer_bytes: usize) -> Result<UploadLane, CudaError> {
        let Some(arena) = &self.arena else {
            let (what, at, bytes) = ("an upload lane", 0, buffer_bytes);
            return Err(CudaError::OutOfRange { what, at, bytes, begin: 0, end: 0 });
        };
        let buffers = [self.pinned(buffer_bytes)?, self.pinned(buffer_bytes)?];
        Ok(UploadLane::new(self.gpu.copy_stream()?, arena.given(), buffers))
    }

    /// Enqueues a copy of the first `bytes` bytes of `from`, which is busy until then.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`]; never part of a graph.
    ///
    /// # Panics
    /// If `from` is shorter.
    pub fn upload_async(
        &self,
        from: &mut PinnedBuffer,
        to: DevicePtr,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let range = self.range("upload", to, bytes)?;
        self.not_capturing("an asynchronous upload")?;
        from.wait()?;
        // SAFETY: the buffer hands its bytes out, and is freed, only after `busy`, which is recorded behind the copy;
        // if recording fails, `enqueued` waits for the whole stream.
        unsafe { self.gpu.write_async(range, &from.memory.bytes()[..bytes]) }?;
        self.enqueued(from)
    }

    /// Enqueues a copy to the first `bytes` bytes of `to`, which is busy until then.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`]; never part of a graph.
    ///
    /// # Panics
    /// If `to` is shorter.
    pub fn download_async(
        &self,
        from: DevicePtr,
        to: &mut PinnedBuffer,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let range = self.range("download", from, bytes)?;
        self.not_capturing("an asynchronous download")?;
        to.wait()?;
        // SAFETY: as in `upload_async`.
        unsafe { self.gpu.read_async(range, &mut to.memory.bytes_mut()[..bytes]) }?;
        self.enqueued(to)
    }

    fn enqueued(&self, buffer: &mut PinnedBuffer) -> Result<(), CudaError> {
        match self.gpu.record(false) {
            Ok(event) => buffer.busy = Some(event),
            Err(error) => {
                self.gpu.synchronize()?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Marks the point that the stream's queue has reached. With `timed`, [`Event::elapsed_ms`] can be asked.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn record(&self, timed: bool) -> Result<Event, CudaError> {
        self.gpu.record(timed)
    }

    /// Waits until the stream's queue is empty. An error of an earlier launch shows here.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.synchronize()
    }

    /// From now on every launch is timed, which slows them down a little. Launches of graphs are not.
    pub fn begin_profile(&self) {
        *self.profile.borrow_mut() = Some(Vec::new());
    }

    /// Ends it; what was launched since, by kernel, the longest first.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn end_profile(&self) -> Result<Vec<KernelTime>, CudaError> {
        let mut times: Vec<KernelTime> = Vec::new();
        for (kernel, begin, end) in self.profile.borrow_mut().take().unwrap_or_default() {
            let milliseconds = f64::from(begin.elapsed_ms(&end)?);
            match times.iter_mut().find(|time| time.kernel == kernel) {
                Some(time) => {
                    time.n_launches += 1;
                    time.milliseconds += milliseconds;
                }
                None => times.push(KernelTime { kernel, n_launches: 1, milliseconds }),
            }
        }
        times.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(times)
    }

    /// How many CTAs of a kernel fit on one multiprocessor: for the grids of persistent kernels.
    ///
    /// # Errors
    /// [`CudaError::UnknownKernel`], [`CudaError::Call`].
    pub fn ctas_per_sm(
        &self,
        kernel: &str,
        block: u32,
        shared_bytes: u32,
    ) -> Result<u32, CudaError> {
        self.gpu.ctas_per_sm(kernel, block, shared_bytes)
    }

    /// Collects the launches that `enqueue` makes on the stream into a graph, without running them.
    ///
    /// # Errors
    /// Of `enqueue`, or [`CudaError::Call`].
    pub fn capture<E: From<CudaError>>(
        &self,
        enqueue: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.begin_capture()?;
        let enqueued = enqueue(self);
        // The stream must leave capture mode whatever happened.
        let graph = self.end_capture();
        enqueued?;
        Ok(graph?)
    }

    /// First half of [`Self::capture`], for callers that cannot lend themselves to a closure.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn begin_capture(&self) -> Result<(), CudaError> {
        self.gpu.begin_capture()?;
        self.capturing.set(true);
        Ok(())
    }

    /// Second half of [`Self::capture`]; must follow on the first also after an error in between.
    ///
    /// # Errors
    /// [`CudaError::Call`], also if something was enqueued that a graph cannot hold.
    pub fn end_capture(&self) -> Result<Graph, CudaError> {
        self.capturing.set(false);
        self.gpu.end_capture()
    }

    /// The launches since the last call, if this is a fake.
    pub fn take_launches(&self) -> Option<Vec<RecordedLaunch>> {
        self.gpu.take_launches()
    }

    fn range(
        &self,
        what: &'static str,
        at: DevicePtr,
        bytes: usize,
    ) -> Result<ArenaRange, CudaError> {
        match &self.arena {
            Some(arena) => arena.given().range(what, at, bytes),
            None => Err(CudaError::OutOfRange { what, at: at.0, bytes, begin: 0, end: 0 }),
        }
    }

    /// A graph that holds a copy would read the buffer at every replay, long after `busy`.
    fn not_capturing(&self, what: &str) -> Result<(), CudaError> {
        if self.capturing.get() {
            return Err(CudaError::Call {
                call: what.to_owned(),
                reason: "a graph is being captured".to_owned(),
            });
        }
        Ok(())
    }
}

impl LaunchSink for Device {
    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        launch.check()?;
        let mut profile = self.profile.borrow_mut();
        let Some(launches) = profile.as_mut().filter(|_| !self.capturing.get()) else {
            return self.gpu.submit(launch);
        };
        let begin = self.gpu.record(true)?;
        self.gpu.submit(launch)?;
        launches.push((launch.kernel.to_owned(), begin, self.gpu.record(true)?));
        Ok(())
    }
}
