//! Loading kernels, and what a launch may ask of them.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::{collections::HashMap, ffi::CStr};

use cudarc::driver::{
    result::{function, module},
    sys,
};

use super::{CudaError, failed, handles::Shared};
use crate::cuda::DeviceInfo;

/// An entry point and what its launches are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) params_bytes: usize,
    pub(super) threads_max: u32,
    pub(super) dynamic_shared_bytes_max: u32,
}

/// Loads one fatbin and enters all its entry points.
pub(super) fn load_kernels(
    name: &str,
    fatbin: &'static [u8],
    info: &DeviceInfo,
    shared: &mut Shared,
    kernels: &mut HashMap<String, Kernel>,
) -> Result<(), CudaError> {
    let loading = || failed(format!("loading kernels of {name}"));
    // SAFETY: the image is what nvcc wrote, embedded whole.
    let module = unsafe { module::load_data(fatbin.as_ptr().cast()) }.map_err(loading())?;
    shared.modules.push(module);
    let mut count = 0;
    // SAFETY: writes one number; the module is loaded.
    unsafe { sys::cuModuleGetFunctionCount(&raw mut count, module) }.result().map_err(loading())?;
    let mut functions = vec![std::ptr::null_mut(); count as usize];
    // SAFETY: writes `count` handles, as long as the vector is.
    unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) }
        .result()
        .map_err(loading())?;
    for function in functions {
        // By default the driver loads code at the first launch, which must not happen within a step or a capture.
        // SAFETY: the function is one of the module's.
        unsafe { sys::cuFuncLoad(function) }.result().map_err(loading())?;
        let mut text = std::ptr::null();
        // SAFETY: writes one pointer; the function is one of the module's.
        unsafe { sys::cuFuncGetName(&raw mut text, function) }.result().map_err(loading())?;
        // SAFETY: the driver returned a string that lives as long as the module.
        let kernel_name = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        kernels.insert(kernel_name.clone(), inspect(&kernel_name, function, info)?);
    }
    Ok(())
}

/// Reads what the launches of a kernel are checked against, and allows it all of the shared memory.
fn inspect(name: &str, function: sys::CUfunction, info: &DeviceInfo) -> Result<Kernel, CudaError> {
    let asking = || failed(format!("inspecting kernel {name}"));
    let (mut offset, mut params_bytes) = (0, 0);
    // SAFETY: writes two numbers; the function is loaded.
    unsafe { sys::cuFuncGetParamInfo(function, 0, &raw mut offset, &raw mut params_bytes) }
        .result()
        .map_err(asking())?;
    let mut second = 0;
    // SAFETY: as above.
    let more =
        unsafe { sys::cuFuncGetParamInfo(function, 1, &raw mut offset, &raw mut second) }.result();
    if more.is_ok() {
        return Err(CudaError::Call {
            call: format!("inspecting kernel {name}"),
            reason: "it takes more than one struct".into(),
        });
    }
    let ask = |attribute| {
        // SAFETY: the function is loaded.
        let value = unsafe { function::get_function_attribute(function, attribute) };
        value.map(|v| u32::try_from(v).unwrap_or(0)).map_err(asking())
    };
    let static_bytes = ask(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let dynamic_shared_bytes_max = info.shared_bytes_max.saturating_sub(static_bytes);
    let wanted = i32::try_from(dynamic_shared_bytes_max).unwrap_or(i32::MAX);
    // SAFETY: the function is loaded, and nothing of it runs yet.
    unsafe {
        function::set_function_attribute(
            function,
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            wanted,
        )
    }
    .map_err(asking())?;
    let threads_max = ask(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
    Ok(Kernel { function, params_bytes, threads_max, dynamic_shared_bytes_max })
}

/// At most two attributes of a launch.
pub(super) struct LaunchAttributes {
    pub(super) list: [sys::CUlaunchAttribute; 2],
    pub(super) n: u32,
}

impl Default for LaunchAttributes {
    fn default() -> Self {
        let none = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        Self { list: [none; 2], n: 0 }
    }
}

impl LaunchAttributes {
    pub(super) fn push_cluster(&mut self, x: u32) {
        let entry = &mut self.list[self.n as usize];
        entry.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        entry.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y: 1, z: 1 };
        self.n += 1;
    }

    pub(super) fn push_early(&mut self) {
        let entry = &mut self.list[self.n as usize];
        entry.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        entry.value.programmaticStreamSerializationAllowed = 1;
        self.n += 1;
    }
}
