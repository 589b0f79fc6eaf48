//! What dashboards show of the tiers.

/// Where a generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Only where the source keeps it.
    Disk,
    /// Packed in host memory.
    Host,
    /// On the device.
    Device,
}

/// A snapshot. The first group goes up and down, the second only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidencyStats {
    /// Bytes for all residents.
    pub device_capacity_bytes: usize,
    /// Bytes of residents and of those being installed.
    pub device_bytes: usize,
    /// How many these are.
    pub device_generations: usize,
    /// Residents with a lease.
    pub in_use_generations: usize,
    /// Residents that take no new request until another has found room.
    pub draining_generations: usize,
    /// Bytes of pinned residents.
    pub pinned_bytes: usize,
    /// Pinned residents.
    pub pinned_generations: usize,
    /// Bytes of packed generations in host memory.
    pub host_bytes: usize,
    /// How many these are.
    pub host_generations: usize,
    /// Requests and prefetches that wait.
    pub waiting: usize,
    /// Loads under way.
    pub loading: usize,
    /// Installs under way.
    pub installing: usize,

    /// Requests that found their generation on the device.
    pub device_hits: u64,
    /// Requests that found it on the device, but draining.
    pub held_back: u64,
    /// Requests that found it in host memory.
    pub host_hits: u64,
    /// Requests that found it on disk, or on its way from there.
    pub misses: u64,
    /// Loads that succeeded.
    pub loads: u64,
    /// Loads that failed.
    pub load_failures: u64,
    /// Installs that succeeded.
    pub installs: u64,
    /// Installs that failed for good.
    pub install_failures: u64,
    /// Installs that the device had no room for, to be tried again.
    pub out_of_memory: u64,
    /// Generations that left the device.
    pub device_evictions: u64,
    /// Generations that left host memory.
    pub host_evictions: u64,
    /// Residents set draining.
    pub drains: u64,
}
