//! Which GPUs are here, whether or not this binary can use them: for `pleach doctor` and the lines at start.

use super::{CudaError, DeviceInfo, driver, has_kernels};

/// What was found on this machine.
#[derive(Debug)]
pub struct GpuProbe {
    /// All devices that the driver sees, or why none can be seen.
    pub devices: Result<Vec<DeviceInfo>, CudaError>,
    /// Whether kernels are embedded in this binary.
    pub has_kernels: bool,
}

/// Looks for GPUs. Loads the driver if it is there; creates nothing on a device, never panics.
pub fn probe() -> GpuProbe {
    GpuProbe { devices: devices(), has_kernels: has_kernels() }
}

fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    let version = driver::require_driver()?;
    (0..driver::device_count()?).map(|ordinal| driver::describe(ordinal, version)).collect()
}

impl GpuProbe {
    /// The first device, if any.
    pub fn first(&self) -> Option<&DeviceInfo> {
        self.devices.as_ref().ok()?.first()
    }

    /// Whether [`super::Device::open`] has a chance.
    pub fn is_usable(&self) -> bool {
        self.has_kernels && self.first().is_some()
    }

    /// What to do, if a GPU is here and cannot be used.
    pub fn hint(&self) -> Option<String> {
        let device = self.first().filter(|_| !self.has_kernels)?;
        Some(format!(
            "a GPU is here ({}), but this binary was built without kernels: build with nvcc on PATH \
             (`tools/fetch-nvcc` gets one): cargo run --release -- serve",
            device.name
        ))
    }

    /// One line for `pleach doctor`.
    pub fn summary(&self) -> String {
        let kernels =
            if self.has_kernels { "kernels are embedded" } else { "built without kernels" };
        match &self.devices {
            Ok(devices) if devices.is_empty() => format!("no GPU; {kernels}"),
            Ok(devices) => {
                let names: Vec<_> = devices
                    .iter()
                    .map(|d| {
                        let (major, minor) = d.compute_capability;
                        format!(
                            "{}: {} ({major}.{minor}, {} GiB)",
                            d.ordinal,
                            d.name,
                            d.memory_bytes >> 30
                        )
                    })
                    .collect();
                format!("{}; {kernels}", names.join(", "))
            }
            Err(error) => format!("{error}; {kernels}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Device;

    fn h100() -> DeviceInfo {
        DeviceInfo {
            ordinal: 0,
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            compute_capability: (9, 0),
            n_sms: 132,
            memory_bytes: 80 << 30,
            l2_bytes: 50 << 20,
            shared_bytes_max: 227 << 10,
            driver_version: 13_000,
        }
    }

    #[test]
    fn a_gpu_without_kernels_brings_the_command() {
        let probe = GpuProbe { devices: Ok(vec![h100()]), has_kernels: false };
        let hint = probe.hint().unwrap();
        assert!(hint.starts_with(
            "a GPU is here (NVIDIA H100 80GB HBM3), but this binary was built without kernels"
        ));
        assert!(hint.ends_with("cargo run --release -- serve") && !probe.is_usable());
        assert_eq!(
            probe.summary(),
            "0: NVIDIA H100 80GB HBM3 (9.0, 80 GiB); built without kernels"
        );
    }

    #[test]
    fn nothing_is_hinted_where_nothing_can_be_done() {
        let with_kernels = GpuProbe { devices: Ok(vec![h100()]), has_kernels: true };
        assert!(with_kernels.hint().is_none() && with_kernels.is_usable());
        for devices in [Ok(Vec::new()), Err(CudaError::NoDriver)] {
            let probe = GpuProbe { devices, has_kernels: false };
            assert!(
                probe.hint().is_none()
                    && !probe.is_usable()
                    && probe.summary().ends_with("built without kernels")
            );
        }
    }

    #[test]
    fn probing_and_opening_this_machine_does_not_panic() {
        let found = probe();
        assert_eq!(found.has_kernels, has_kernels());
        // Whatever is here, an ordinal that no machine has is refused with a reason.
        assert!(!Device::open(usize::MAX).unwrap_err().to_string().is_empty());
    }
}
