//! Latencies by adapter: what `GET /v1/latency` reports.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::window::Windows;
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
