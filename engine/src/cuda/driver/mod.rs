//! A GPU through libcuda: contexts, modules, copies and launches. All calls that can go wrong end in [`CudaError`].
//!
//! cudarc panics when a library or a function is missing, so both are asked for first: [`require_driver`] compares the
//! driver's version with the newest function called here. Handles are cudarc's where they have a safe owner (context,
//! streams, events, graphs); modules and the arena are raw and owned by `handles::Shared`.
#![expect(unsafe_code, reason = "calls of the driver")]

mod handles;
mod kernels;

use std::{collections::HashMap, ffi::c_void, fmt, ptr::NonNull, sync::Arc};

use cudarc::driver::{
    CudaContext, CudaStream, DriverError,
    result::{self, occupancy, stream},
    sys,
};

use handles::{DriverCopies, PinnedMemory, Shared};
pub(super) use handles::{DriverEvent, DriverGraph};
use kernels::{Kernel, LaunchAttributes, load_kernels};

use super::{
    CudaError, DeviceInfo, DevicePtr, Event, Graph, Launch,
    arena::ArenaRange,
    embedded,
    gpu::{CopyStream, Gpu, HostMemory},
    handles::GraphKind,
    has_kernels,
};

/// CUDA 12.8: `cuEventElapsedTime_v2` is the newest function that is called.
const DRIVER_VERSION_MIN: u32 = 12_080;
/// Tensor cores with asynchronous copies.
const COMPUTE_CAPABILITY_MIN: (u32, u32) = (8, 0);

/// Makes an error out of the driver's, saying what was tried.
fn failed(call: impl fmt::Display) -> impl FnOnce(DriverError) -> CudaError {
    move |error| {
        // The text comes from the driver; a stub of it has none.
        let text = error.error_string().map(|t| t.to_string_lossy().into_owned());
        let reason = text
            .map_or_else(|_| format!("{:?}", error.0), |text| format!("{text} ({:?})", error.0));
        CudaError::Call { call: call.to_string(), reason }
    }
}

/// Makes sure that calling the driver cannot panic, and starts it. Returns its CUDA version.
pub(super) fn require_driver() -> Result<u32, CudaError> {
    // SAFETY: loads the driver's library, whose initializers are trusted like the driver itself.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one int; this function has been in every libcuda.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(failed("asking for the driver's version"))?;
    let found = u32::try_from(version).unwrap_or(0);
    if found < DRIVER_VERSION_MIN {
        return Err(CudaError::DriverTooOld { found, needed: DRIVER_VERSION_MIN });
    }
    result::init().map_err(failed("starting the driver"))?;
    Ok(found)
}

/// How many GPUs the driver sees. [`require_driver`] has been called.
pub(super) fn device_count() -> Result<usize, CudaError> {
    let count = result::device::get_count().map_err(failed("counting devices"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Describes a GPU without creating anything on it. [`require_driver`] has been called and returned `driver_version`.
pub(super) fn describe(ordinal: usize, driver_version: u32) -> Result<DeviceInfo, CudaError> {
    let count = device_count()?;
    let Some(number) = i32::try_from(ordinal).ok().filter(|_| ordinal < count) else {
        return Err(CudaError::NoSuchDevice { ordinal, count });
    };
    let device =
        result::device::get(number).map_err(failed(format_args!("finding device {ordinal}")))?;
    let ask = |attribute| {
        // SAFETY: `device` was just returned by the driver.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value
            .map(|v| u32::try_from(v).unwrap_or(0))
            .map_err(failed("asking for a device's attributes"))
    };
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device).map_err(failed("asking for a device's name"))?,
        compute_capability: (
            ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        n_sms: ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: `device` was returned by the driver.
        memory_bytes: unsafe { result::device::total_mem(device) }
            .map_err(failed("asking for a device's memory"))? as u64,
        l2_bytes: u64::from(ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        shared_bytes_max: ask(
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        driver_version,
    })
}

/// See the module.
pub(super) struct Driver {
    // Before `shared`: streams end first.
    compute: Arc<CudaStream>,
    info: DeviceInfo,
    kernels: HashMap<String, Kernel>,
    shared: Arc<Shared>,
}

// SAFETY: as for `Shared`; the handles of kernels live as long as its modules.
unsafe impl Send for Driver {}

impl Driver {
    pub(super) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let version = require_driver()?;
        let info = describe(ordinal, version)?;
        if info.compute_capability < COMPUTE_CAPABILITY_MIN {
            let DeviceInfo { name, compute_capability, .. } = info;
            return Err(CudaError::DeviceTooOld { name, compute_capability });
        }
        if !has_kernels() {
            return Err(CudaError::NoKernels);
        }
        let context =
            CudaContext::new(ordinal).map_err(failed(format_args!("opening device {ordinal}")))?;
        // SAFETY: no `CudaSlice` is ever made; memory is ours, and streams are ordered by our own events. With tracking
        // on, cudarc's events would end up in captured graphs and break them.
        unsafe { context.disable_event_tracking() };
        let (_, highest) = stream::get_priority_range().map_err(failed("asking for priorities"))?;
        let compute =
            context.new_stream_with_priority(highest).map_err(failed("creating a stream"))?;
        let mut shared = Shared { context, modules: Vec::new(), arena: None };
        let mut kernels = HashMap::new();
        for (name, fatbin) in embedded::FATBINS {
            load_kernels(name, fatbin, &info, &mut shared, &mut kernels)?;
        }
        Ok(Self { compute, info, kernels, shared: Arc::new(shared) })
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.shared.context.bind_to_thread().map_err(failed("making the context current"))
    }

    fn kernel(&self, name: &str) -> Result<&Kernel, CudaError> {
        self.kernels.get(name).ok_or_else(|| CudaError::UnknownKernel(name.to_owned()))
    }
}

impl Gpu for Driver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<u64, CudaError> {
        let (free, _) =
            self.shared.context.mem_get_info().map_err(failed("asking for free memory"))?;
        Ok(free as u64)
    }

    fn reserve(&mut self, bytes: u64) -> Result<DevicePtr, CudaError> {
        self.bind()?;
        let call = format!("allocating {bytes} bytes of device memory");
        let refused =
            |reason: &str| CudaError::Call { call: call.clone(), reason: reason.to_owned() };
        let shared =
            Arc::get_mut(&mut self.shared).ok_or_else(|| refused("a graph exists already"))?;
        let n_bytes = usize::try_from(bytes).map_err(|_| refused("beyond the address space"))?;
        // SAFETY: the memory is not read as any type before it is written; whoever takes a part knows that it is not cleared.
        let base = unsafe { result::malloc_sync(n_bytes) }.map_err(failed(&call))?;
        shared.arena = Some(base);
        Ok(DevicePtr(base))
    }

    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let kernel = self.kernel(launch.kernel)?;
        let (n, max) = (launch.params.len(), kernel.params_bytes);
        launch.want(
            "bytes of parameters",
            n,
            n == max,
            format_args!("{max} as the kernel takes"),
        )?;
        let max = kernel.threads_max;
        launch.want(
            "threads",
            launch.block as usize,
            launch.block <= max,
            format_args!("at most {max}"),
        )?;
        let max = kernel.dynamic_shared_bytes_max;
        let shared = launch.shared_bytes;
        launch.want(
            "bytes of shared memory",
            shared as usize,
            shared <= max,
            format_args!("at most {max}"),
        )?;
        self.bind()?;

        let mut attributes = LaunchAttributes::default();
        if launch.cluster > 1 {
            attributes.push_cluster(launch.cluster);
        }
        if launch.early && self.info.compute_capability.0 >= 9 {
            attributes.push_early();
        }
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid.0,
            gridDimY: launch.grid.1,
            gridDimZ: launch.grid.2,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.compute.cu_stream(),
            attrs: attributes.list.as_mut_ptr(),
            numAttrs: attributes.n,
        };
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the driver reads `params_bytes` bytes behind the one pointer during the call, and `launch.params` has
        // exactly as many; configuration and attributes live until the call returns.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.function,
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(failed(format_args!("launching {}", launch.kernel)))
    }

    fn ctas_per_sm(&self, kernel: &str, block: u32, shared_bytes: u32) -> Result<u32, CudaError> {
        let function = self.kernel(kernel)?.function;
        self.bind()?;
        let block = i32::try_from(block).unwrap_or(i32::MAX);
        // SAFETY: the function is loaded.
        let n = unsafe {
            occupancy::max_active_block_per_multiprocessor(function, block, shared_bytes as usize)
        };
        n.map(|n| u32::try_from(n).unwrap_or(0))
            .map_err(failed(format_args!("asking for the occupancy of {kernel}")))
    }

    fn write(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError> {
        assert_eq!(range.bytes(), src.len(), "a range is as long as its source");
        // SAFETY: the range lies in this device's arena; `src` is borrowed until the stream is waited for below.
        unsafe { self.write_async(range, src) }?;
        self.synchronize()
    }

    fn read(&self, range: ArenaRange, dst: &mut [u8]) -> Result<(), CudaError> {
        assert_eq!(range.bytes(), dst.len(), "a range is as long as its destination");
        // SAFETY: the range lies in this device's arena; `dst` is borrowed until the stream is waited for below.
        unsafe { self.read_async(range, dst) }?;
        self.synchronize()
    }

    fn fill(&self, range: ArenaRange, byte: u8) -> Result<(), CudaError> {
        self.bind()?;
        let cu_stream = self.compute.cu_stream();
        // SAFETY: the range lies in this device's arena, which lives as long as `shared`.
        unsafe { result::memset_d8_async(range.at().0, byte, range.bytes(), cu_stream) }
            .map_err(failed("setting memory"))
    }

    fn copy(&self, src: ArenaRange, dst: ArenaRange) -> Result<(), CudaError> {
        assert_eq!(src.bytes(), dst.bytes(), "both ranges of a copy are equally long");
        self.bind()?;
        let cu_stream = self.compute.cu_stream();
        // SAFETY: both ranges lie in this device's arena, which lives as long as `shared`.
        unsafe { result::memcpy_dtod_async(dst.at().0, src.at().0, src.bytes(), cu_stream) }
            .map_err(failed("copying device memory"))
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn HostMemory>, CudaError> {
        self.bind()?;
        // SAFETY: the memory is cleared below, before anything reads it.
        let ptr = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(failed(format_args!("allocating {bytes} bytes of pinned memory")))?;
        let Some(ptr) = NonNull::new(ptr.cast::<u8>()) else {
            return Err(CudaError::Call {
                call: "allocating pinned memory".into(),
                reason: "no address".into(),
            });
        };
        // SAFETY: `bytes` bytes were just allocated there.
        unsafe { ptr.as_ptr().write_bytes(0, bytes) };
        Ok(Box::new(PinnedMemory { ptr, bytes, context: Arc::clone(&self.shared.context) }))
    }

    fn copy_stream(&self) -> Result<Box<dyn CopyStream>, CudaError> {
        let stream = self.shared.context.new_stream().map_err(failed("creating a stream"))?;
        Ok(Box::new(DriverCopies { stream, shared: Arc::clone(&self.shared) }))
    }

    unsafe fn write_async(&self, range: ArenaRange, src: &[u8]) -> Result<(), CudaError> {
        assert_eq!(range.bytes(), src.len(), "a range is as long as its source");
        self.bind()?;
        let cu_stream = self.compute.cu_stream();
        // SAFETY: the range lies in this device's arena and is as long as `src`; the caller keeps `src` still.
        unsafe { result::memcpy_htod_async(range.at().0, src, cu_stream) }
            .map_err(failed(format_args!("copying {} bytes to the device", src.len())))
    }

    unsafe fn read_async(&self, range: ArenaRange, dst: &mut [u8]) -> Result<(), CudaError> {
        assert_eq!(range.bytes(), dst.len(), "a range is as long as its destination");
        self.bind()?;
        let cu_stream = self.compute.cu_stream();
        // SAFETY: the range lies in this device's arena and is as long as `dst`; the caller keeps `dst` untouched.
        unsafe { result::memcpy_dtoh_async(dst, range.at().0, cu_stream) }
            .map_err(failed(format_args!("copying {} bytes from the device", range.bytes())))
    }

    fn record(&self, timed: bool) -> Result<Event, CudaError> {
        handles::record(&self.shared.context, &self.compute, timed)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.compute.synchronize().map_err(failed("waiting for the device"))
    }

    fn begin_capture(&self) -> Result<(), CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.compute.begin_capture(mode).map_err(failed("beginning a capture"))
    }

    fn end_capture(&self) -> Result<Graph, CudaError> {
        let graph = self
            .compute
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .map_err(failed("ending a capture"))?;
        let Some(graph) = graph else {
            return Err(CudaError::Call {
                call: "ending a capture".into(),
                reason: "the stream was not capturing".into(),
            });
        };
        graph.upload().map_err(failed("uploading a graph"))?;
        Ok(Graph {
            kind: GraphKind::Driver(DriverGraph { graph, _shared: Arc::clone(&self.shared) }),
        })
    }
}
