//! Memory of this process, as Linux tells it.

/// Bytes that are resident now; `None` where the system does not tell.
pub(super) fn resident() -> Option<u64> {
    field("VmRSS:")
}

/// The most bytes that were resident since [`reset_peak`].
pub(super) fn peak() -> Option<u64> {
    field("VmHWM:")
}

/// Begins a new peak.
pub(super) fn reset_peak() {
    // Where it is refused, the peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
