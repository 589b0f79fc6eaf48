//! How fast adapters are read, checked and packed: as fast as it goes, unless that takes cores from steps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use pleach_engine::{breaks::with_breaks, engine::EngineHandle};

/// Why an adapter is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// A request waits for it.
    Wanted,
    /// It is made known; nobody waits but who does that.
    Ahead,
}

impl Urgency {
    /// Of one core, while steps run on the same cores, loads take one part in so many; all loads together, as far as they
    /// are equally urgent. Steps become slower by about as much meanwhile.
    const fn one_part_in(self) -> u32 {
        match self {
            Self::Wanted => 4,
            Self::Ahead => 20,
        }
    }
}

/// Shared by all loads of a service.
#[derive(Debug)]
pub(super) struct Pace {
    engine: EngineHandle,
    /// Whether steps run on the cores that loads run on.
    shares_cores: bool,
    n_loads: Arc<AtomicU32>,
}

/// A load that counts until this is dropped.
struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pace {
    pub(super) fn new(engine: EngineHandle) -> Self {
        let shares_cores = engine.adapter_packer().shares_cores_with_steps();
        Self { engine, shares_cores, n_loads: Arc::default() }
    }

    /// Runs `work`, which blocks, on this thread.
    pub(super) fn run<T>(&self, urgency: Urgency, work: impl FnOnce() -> T) -> T {
        if !self.shares_cores {
            return work();
        }
        self.n_loads.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.n_loads);
        let (engine, n_loads) = (self.engine.clone(), Arc::clone(&self.n_loads));
        let length = move |worked| {
            if engine.stats().running == 0 {
                return Duration::ZERO;
            }
            break_length(worked, urgency, n_loads.load(Ordering::Relaxed))
        };
        with_breaks(length, work)
    }
}

/// Of each of `n_loads` at a time, so that together they keep to their part.
fn break_length(worked: Duration, urgency: Urgency, n_loads: u32) -> Duration {
    worked * (urgency.one_part_in() * n_loads.max(1) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_at_a_time_keep_to_their_part_together() {
        let worked = Duration::from_micros(700);
        for (urgency, part) in [(Urgency::Wanted, 0.25), (Urgency::Ahead, 0.05)] {
            for n_loads in 1..=6 {
                let period = worked + break_length(worked, urgency, n_loads);
                let share = f64::from(n_loads) * worked.as_secs_f64() / period.as_secs_f64();
                assert!((share - part).abs() < 1e-9, "{urgency:?}, {n_loads}: {share}");
            }
        }
    }
}
