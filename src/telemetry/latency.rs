//! Latencies by adapter: what `GET /v1/latency` reports.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::{names, window::Windows};
use crate::http::wire::latency::{LatencyMetrics, LatencySummary, LatencyWindows};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// From submission to the first step.
    Queue,
    /// From arrival to the first token.
    Ttft,
    /// Between two tokens of one sequence.
    Itl,
    /// From arrival to the last token.
    E2e,
}

const LATENCIES: usize = 4;

/// The recorders of one adapter, or of all requests.
#[derive(Debug, Default)]
pub struct Recorder {
    // A std mutex: held for a few additions, never over an await.
    windows: Mutex<[Windows; LATENCIES]>,
}

impl Recorder {
    /// Records one latency at a time since start.
    pub fn record(&self, kind: Latency, now: Duration, latency: Duration) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows[kind as usize].record(now, latency);
    }

    /// Records latencies with their times since start.
    pub fn record_all(&self, kind: Latency, latencies: &[(Duration, Duration)]) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        for &(now, latency) in latencies {
            windows[kind as usize].record(now, latency);
        }
    }

    /// All windows at a time since start.
    pub fn report(&self, now: Duration) -> LatencyWindows {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = |summary: fn(&Windows, Duration) -> LatencySummary| {
            let of = |kind: Latency| summary(&windows[kind as usize], now);
            LatencyMetrics {
                queue: of(Latency::Queue),
                ttft: of(Latency::Ttft),
                itl: of(Latency::Itl),
                e2e: of(Latency::E2e),
            }
        };
        LatencyWindows {
            last_minute: metrics(Windows::last_minute),
            last_hour: metrics(Windows::last_hour),
            since_start: metrics(|windows, _| windows.since_start()),
        }
    }
}

/// Something that exists once for each adapter: at most [`names::ADAPTER_LABELS_MAX`] of them, one more for all other
/// adapters, and one for the base. So a client that could name adapters freely cannot make memory grow.
#[derive(Debug)]
pub struct ByAdapter<T> {
    base: Arc<T>,
    // Read by every request, written when an adapter is first used; never held over an await.
    adapters: RwLock<HashMap<String, Arc<T>>>,
    make: fn(&str, &T) -> T,
}

impl<T> ByAdapter<T> {
    /// Starts with the base's; `make` makes an adapter's from its label and the base's.
    pub fn new(base: T, make: fn(&str, &T) -> T) -> Self {
        Self { base: Arc::new(base), adapters: RwLock::default(), make }
    }

    /// The base's (`None`) or an adapter's.
    pub fn get(&self, adapter: Option<&str>) -> Arc<T> {
        let Some(alias) = adapter else { return Arc::clone(&self.base) };
        if let Some(found) = self.adapters.read().unwrap_or_else(PoisonError::into_inner).get(alias)
        {
            return Arc::clone(found);
        }
        let mut adapters = self.adapters.write().unwrap_or_else(PoisonError::into_inner);
        let label =
            if adapters.len() < names::ADAPTER_LABELS_MAX { alias } else { names::ADAPTER_OTHER };
        let entry = adapters.entry(label.to_owned());
        Arc::clone(entry.or_insert_with(|| Arc::new((self.make)(label, &self.base))))
    }

    /// An adapter's, if it was used and is told apart.
    pub fn peek(&self, alias: &str) -> Option<Arc<T>> {
        self.adapters.read().unwrap_or_else(PoisonError::into_inner).get(alias).map(Arc::clone)
    }

    /// Every adapter's, by label.
    pub fn adapters(&self) -> BTreeMap<String, Arc<T>> {
        let adapters = self.adapters.read().unwrap_or_else(PoisonError::into_inner);
        adapters.iter().map(|(label, value)| (label.clone(), Arc::clone(value))).collect()
    }
}

/// Time since start, the clock of all windows.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since start.
    pub fn elapsed(self, at: Instant) -> Duration {
        at.saturating_duration_since(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_beyond_the_most_share_one_label() {
        let table = ByAdapter::new(String::new(), |label, _| label.to_owned());
        for index in 0..1000 {
            table.get(Some(&format!("adapter-{index}")));
        }
        assert_eq!(table.adapters().len(), names::ADAPTER_LABELS_MAX + 1);
        assert_eq!(*table.get(Some("adapter-3")), "adapter-3");
        assert_eq!(*table.get(Some("adapter-999")), names::ADAPTER_OTHER);
        assert_eq!(*table.get(None), "");
    }

    #[test]
    fn kinds_do_not_mix() {
        let recorder = Recorder::default();
        recorder.record(Latency::Ttft, Duration::ZERO, Duration::from_millis(20));
        recorder.record(Latency::Itl, Duration::ZERO, Duration::from_millis(5));
        recorder.record(Latency::Itl, Duration::ZERO, Duration::from_millis(5));
        let report = recorder.report(Duration::from_secs(1)).last_minute;
        assert_eq!(
            (report.queue.count, report.ttft.count, report.itl.count, report.e2e.count),
            (0, 1, 2, 0)
        );
        assert!((report.ttft.p50.unwrap() - 20.0).abs() < 0.2);
    }
}
