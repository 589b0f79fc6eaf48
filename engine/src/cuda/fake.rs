//! A device without a GPU: memory is a vector, launches are checked and written down.
//!
//! With it the whole backend runs in tests: which launches a step makes, in which order, with which grids and parameters,
//! and that a graph of one batch is the graph of the next. Kernels compute nothing, unless somebody is given who runs them
//! on host memory: then addresses are those of the vector.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    CudaError, DeviceInfo, DevicePtr, Event, Graph, Launch, LaunchSink,
    arena::ArenaRange,
    embedded,
    gpu::{CopyStream, Gpu, HostMemory},
    handles::GraphKind,
    has_kernels,
};

/// Where the fake's memory lies if nobody runs kernels on it: an address that no host has.
const BASE: u64 = 0x7f00_0000_0000;
/// Bytes to which the arena's begin is aligned.
const ALIGN: usize = 256;
/// Every byte of memory at first, where kernels run: NaN as f16 and f32, so that what is read before it was written shows.
const FRESH: u8 = 0xff;

/// What a launch was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedLaunch {
    /// Name of the entry point.
    pub kernel: String,
    /// CTAs along x, y, z.
    pub grid: (u32, u32, u32),
    /// Threads of a CTA.
    pub block: u32,
    /// Dynamic shared memory, bytes.
    pub shared_bytes: u32,
    /// CTAs of a cluster.
    pub cluster: u32,
    /// Whether it may begin before its predecessor's end.
    pub early: bool,
    /// The bytes of the struct that the kernel takes.
    pub params: Vec<u8>,
}

impl RecordedLaunch {
    fn launch(&self) -> Launch<'_> {
        Launch {
            kernel: &self.kernel,
            grid: self.grid,
            block: self.block,
            shared_bytes: self.shared_bytes,
            cluster: self.cluster,
            early: self.early,
            params: &self.params,
        }
    }
}

#[derive(Default)]
struct State {
    memory: Vec<u8>,
    /// Where the device's memory begins in the vector.
    begin: usize,
    /// Who runs launches on it.
    kernels: Option<Box<dyn LaunchSink + Send>>,
    launches: Vec<RecordedLaunch>,
    /// Launches since the capture began.
    capture: Option<Vec<RecordedLaunch>>,
}

impl State {
    /// The address of the device's memory.
    fn base(&self) -> DevicePtr {
        match self.kernels {
            None => DevicePtr(BASE),
            Some(_) => DevicePtr((self.memory.as_ptr() as usize + self.begin) as u64),
        }
    }

    /// Runs a launch, or only writes it down.
    fn run(&mut self, launch: RecordedLaunch) -> Result<(), CudaError> {
        if let Some(kernels) = &self.kernels {
            kernels.submit(&launch.launch())?;
        }
        self.launches.push(launch);
        Ok(())
    }
}

/// See the module.
pub(super) struct FakeGpu {
    info: DeviceInfo,
    state: Arc<Mutex<State>>,
}

/// Launches that were captured.
pub(super) struct FakeGraph {
    launches: Vec<RecordedLaunch>,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for FakeGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.launches.fmt(f)
    }
}

impl FakeGraph {
    pub(super) fn replay(&self) -> Result<(), CudaError> {
        let mut state = lock(&self.state);
        self.launches.iter().try_for_each(|launch| state.run(launch.clone()))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeGpu {
    pub(super) fn new(info: DeviceInfo, kernels: Option<Box<dyn LaunchSink + Send>>) -> Self {
        Self { info, state: Arc::new(Mutex::new(State { kernels, ..State::default() })) }
    }

    fn bytes_of(state: &mut State, range: ArenaRange) -> &mut [u8] {
        let offset = range.at().0 - state.base().0;
        let begin = state.begin + usize::try_from(offset).expect("a range of the vector");
        &mut state.memory[begin..begin + range.bytes()]
    }
}

impl Gpu for FakeGpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<u64, CudaError> {
        Ok(self.info.memory_bytes.saturating_sub(lock(&self.state).memory.len() as u64))
    }

    fn reserve(&mut self, bytes: u64) -> Result<DevicePtr, CudaError> {
        let refused = || CudaError::Call {
            call: format!("allocating {bytes} bytes"),
            reason: "out of memory".to_owned(),
        };
        if bytes > self.info.memory_bytes {
            return Err(refused());
        }
        let bytes = usize::try_from(bytes).map_err(|_| refused())?;
        let mut state = lock(&self.state);
        let fresh = if state.kernels.is_some() { FRESH } else { 0 };
        state.memory = vec![fresh; bytes + ALIGN];
        state.begin = state.memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Ok(state.base())
    }

    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        if has_kernels() && !embedded::KERNELS.iter().any(|k| k.kernel == launch.kernel) {
            return Err(CudaError::UnknownKernel(launch.kernel.to_owned()));
        }
        let (shared, max) = (launch.shared_bytes, self.info.shared_bytes_max);
        launch.want(
            "bytes of shared memory",
            shared as usize,
            shared <= max,
            format_args!("at most {max}"),
        )?;
        let record = RecordedLaunch {
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            cluster: launch.cluster,
            early: launch.early,
            params: launch.params.to_vec(),
        };
        let mut state = lock(&self.state);
        match &mut state.capture {
            Some(capture) => {
                capture.push(record);
                Ok(())
            }
            None => state.run(record),
        }
    }

    fn ctas_per_sm(&self, _kernel: &str, block: u32, shared_bytes: u32) -> Result<u32, CudaError> {
        let by_shared = self.info.shared_bytes_max.checked_div(shared_bytes).unwrap_or(u32::MAX);
        Ok((2048 / block.max(1)).min(by_shared))
    }

    fn write(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError> {
        Self::bytes_of(&mut lock(&self.state), range).copy_from_slice(src);
        Ok(())
    }

    fn read(&self, range: ArenaRange, dst: &mut [u8]) -> Result<(), CudaError> {
        dst.copy_from_slice(Self::bytes_of(&mut lock(&self.state), range));
        Ok(())
    }

    fn fill(&self, range: ArenaRange, byte: u8) -> Result<(), CudaError> {
        Self::bytes_of(&mut lock(&self.state), range).fill(byte);
        Ok(())
    }

    fn copy(&self, src: ArenaRange, dst: ArenaRange) -> Result<(), CudaError> {
        let mut state = lock(&self.state);
        let bytes = Self::bytes_of(&mut state, src).to_vec();
        Self::bytes_of(&mut state, dst).copy_from_slice(&bytes);
        Ok(())
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn HostMemory>, CudaError> {
        Ok(Box::new(vec![0_u8; bytes]))
    }

    fn copy_stream(&self) -> Result<Box<dyn CopyStream>, CudaError> {
        Ok(Box::new(FakeCopies { state: Arc::clone(&self.state) }))
    }

    #[expect(unsafe_code, reason = "the trait's; nothing is asynchronous here")]
    unsafe fn write_async(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError> {
        self.write(range, src)
    }

    #[expect(unsafe_code, reason = "the trait's; nothing is asynchronous here")]
    unsafe fn read_async(&self, range: ArenaRange, dst: &mut [u8]) -> Result<(), CudaError> {
        self.read(range, dst)
    }

    fn record(&self, __timed: bool) -> Result<Event, CudaError> {
        Ok(Event { driver: None })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<(), CudaError> {
        lock(&self.state).capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph, CudaError> {
        let launches = lock(&self.state).capture.take().unwrap_or_default();
        Ok(Graph { kind: GraphKind::Fake(FakeGraph { launches, state: Arc::clone(&self.state) }) })
    }

    fn take_launches(&self) -> Option<Vec<RecordedLaunch>> {
        Some(std::mem::take(&mut lock(&self.state).launches))
    }
}

/// Copies from other threads.
struct FakeCopies {
    state: Arc<Mutex<State>>,
}

impl CopyStream for FakeCopies {
    #[expect(unsafe_code, reason = "the trait's; nothing is asynchronous here")]
    unsafe fn write_async(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError> {
        FakeGpu::bytes_of(&mut lock(&self.state), range).copy_from_slice(src);
        Ok(())
    }

    fn record(&self) -> Result<Event, CudaError> {
        Ok(Event { driver: None })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        Ok(())
    }
}

impl HostMemory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}
