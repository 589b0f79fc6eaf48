//! The machine, and who used it while something was timed.

use std::fs;

use pleach_engine::cpu::Isa;
use serde::Serialize;

/// What a number must be read with.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Kernels that the server takes unless told otherwise.
    pub(crate) kernels: &'static str,
    pub(crate) os: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: model.unwrap_or("unknown").trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernels: Isa::detect().name(),
            os: format!("{} {}", std::env::consts::OS, release.trim()),
        }
    }
}

/// Processor time since the meter was started, of the machine and of some processes. In clock ticks, as Linux counts.
#[derive(Debug)]
pub(crate) struct CpuMeter {
    own: Vec<u32>,
    begun: Option<Ticks>,
}

#[derive(Clone, Copy, Debug)]
struct Ticks {
    all: u64,
    idle: u64,
    own: u64,
}

impl CpuMeter {
    /// Processes `own` and this one count as our own.
    pub(crate) fn start(own: &[u32]) -> Self {
        let own: Vec<u32> = own.iter().copied().chain([std::process::id()]).collect();
        Self { begun: Ticks::now(&own), own }
    }

    /// Share of the machine that others used, time stolen by a hypervisor included; `None` where Linux does not tell.
    pub(crate) fn foreign_share(&self) -> Option<f64> {
        let (begun, now) = (self.begun?, Ticks::now(&self.own)?);
        let all = now.all.saturating_sub(begun.all);
        let used = all.saturating_sub(now.idle.saturating_sub(begun.idle));
        let foreign = used.saturating_sub(now.own.saturating_sub(begun.own));
        Some(foreign as f64 / all.max(1) as f64)
    }
}

impl Ticks {
    fn now(own: &[u32]) -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        // user nice system idle iowait irq softirq steal
        let fields = stat.lines().next()?.split_whitespace().skip(1).take(8);
        let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        let own = own.iter().filter_map(|&pid| ticks_of(pid)).sum();
        Some(Self { all: fields.iter().sum(), idle: fields.get(3)? + fields.get(4)?, own })
    }
}

/// User and system time of a process.
fn ticks_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Nanoseconds of processor time of this thread; `None` where Linux does not tell.
pub(crate) fn thread_ns() -> Option<u64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split_whitespace().next()?.parse().ok()
}
