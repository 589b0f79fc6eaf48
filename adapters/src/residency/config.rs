//! Limits, those that may change while serving and those that may not.

use std::time::Duration;

/// What may be changed while serving: [`super::Residency::set_limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidencyLimits {
    /// Bytes of packed generations in host memory. What a waiting request needs is kept beyond it; loading for further
    /// requests then waits, so that at most [`ResidencyConfig::max_loads`] generations more are ever held.
    pub host_bytes_max: usize,
    /// Most generations on the device, at least 1.
    pub max_loras: usize,
    /// Most generations in host memory, with the exception that `host_bytes_max` has. Those on the device count when
    /// their packed form is kept too.
    pub max_cpu_loras: usize,
}

/// How a [`super::Residency`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct ResidencyConfig {
    /// The first limits.
    pub limits: ResidencyLimits,
    /// Most requests that wait for an adapter, prefetches included; one more is refused.
    pub max_waiting: usize,
    /// Loads at a time, at least 1. Each has a blocking thread.
    pub max_loads: usize,
    /// Installs at a time, at least 1. A device that installs between steps does all of them between the same two.
    pub max_installs: usize,
    /// How long a request whose adapter is ready waits for a resident to fall idle, before residents are drained for it.
    pub drain_after: Duration,
    /// How long a failed load or install is answered from memory.
    pub failure_kept: Duration,
    /// How long the device may go on saying "no room" where there should be some.
    pub out_of_memory_patience: Duration,
}

impl Default for ResidencyConfig {
    fn default() -> Self {
        Self {
            limits: ResidencyLimits {
                host_bytes_max: 1 << 30,
                max_loras: 1024,
                max_cpu_loras: 4096,
            },
            max_waiting: 4096,
            max_loads: 4,
            max_installs: 2,
            drain_after: Duration::from_millis(50),
            failure_kept: Duration::from_secs(1),
            out_of_memory_patience: Duration::from_secs(30),
        }
    }
}
