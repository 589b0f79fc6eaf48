//! Processor, memory and accelerators.

use std::{fmt, fs, path::PathBuf, time::Duration};

use pleach_engine::cpu::isa::Isa;
use serde::Serialize;
use tokio::process::Command;

use crate::memory;

const PROGRAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Where distributions and container runtimes put the driver's library.
const DRIVER_FOLDERS: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

/// The machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) os: &'static str,
    pub(super) arch: &'static str,
    pub(super) kernel: Option<String>,
    pub(super) cpu_model: Option<String>,
    /// Those that this process may use: affinity and container limits count.
    pub(super) cores_usable: usize,
    pub(super) cores_online: usize,
    pub(super) memory_total_bytes: Option<u64>,
    /// What a new process could get, the container's limit counted.
    pub(super) memory_available_bytes: Option<u64>,
    pub(super) instruction_sets: Vec<InstructionSet>,
    /// The one that `serve` would choose.
    pub(super) isa: &'static str,
}

/// One set of kernels.
#[derive(Debug, Serialize)]
pub(super) struct InstructionSet {
    pub(super) name: &'static str,
    pub(super) is_available: bool,
}

/// Looks at the machine.
pub(super) fn look() -> Machine {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores_usable = std::thread::available_parallelism().map_or(1, usize::from);
    let cores_online =
        cpu_info.lines().filter(|line| line.starts_with("processor")).count().max(cores_usable);
    Machine {
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .ok()
            .map(|text| text.trim().to_owned()),
        cpu_model: field(&cpu_info, "model name").map(str::to_owned),
        cores_usable,
        cores_online,
        memory_total_bytes: memory::total_bytes(),
        memory_available_bytes: memory::free_bytes(),
        instruction_sets: Isa::ALL
            .map(|isa| InstructionSet { name: isa.name(), is_available: isa.is_available() })
            .into(),
        isa: Isa::detect().name(),
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim())
}

/// What there is of CUDA, found without loading it.
#[derive(Debug, Serialize)]
pub(super) struct Cuda {
    /// `libcuda.so.1`.
    driver_library: Option<PathBuf>,
    device_nodes: Vec<PathBuf>,
    /// What nvidia-smi tells: name, memory, driver.
    devices: Vec<String>,
}

impl Cuda {
    /// Whether a GPU can be there for real.
    pub(super) fn has_device(&self) -> bool {
        !self.devices.is_empty() || (self.driver_library.is_some() && !self.device_nodes.is_empty())
    }
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.driver_library, self.device_nodes.len(), self.devices.as_slice()) {
            (None, 0, []) => f.write_str("no driver, no device"),
            (driver, n_nodes, []) => {
                let driver = driver
                    .as_ref()
                    .map_or_else(|| "no driver".to_owned(), |path| path.display().to_string());
                write!(f, "{driver}, {n_nodes} device nodes")
            }
            (_, _, devices) => f.write_str(&devices.join("; ")),
        }
    }
}

/// Looks for an NVIDIA driver and its devices.
pub(super) async fn cuda() -> Cuda {
    let library_path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = std::env::split_paths(&library_path).chain(DRIVER_FOLDERS.map(PathBuf::from));
    let driver_library =
        folders.map(|folder| folder.join("libcuda.so.1")).find(|path| path.exists());
    let nodes = fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
    let is_gpu = |path: &PathBuf| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("nvidia"));
        name.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let mut device_nodes: Vec<_> = nodes.filter(is_gpu).collect();
    device_nodes.sort();
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let listed = output_of("nvidia-smi", &query).await.unwrap_or_default();
    let devices =
        listed.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Cuda { driver_library, device_nodes, devices }
}

/// What a program prints when it succeeds in reasonable time.
pub(super) async fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_what_linux_prints() {
        let cpu_info = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\n";
        assert_eq!(field(cpu_info, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(cpu_info, "stepping"), None);
    }

    #[test]
    fn a_machine_has_a_core_and_kernels() {
        let machine = look();
        assert!(machine.cores_usable >= 1 && machine.cores_online >= machine.cores_usable);
        assert!(
            machine.instruction_sets.iter().any(|set| set.name == machine.isa && set.is_available)
        );
    }
}
