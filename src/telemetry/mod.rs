//! What the server measures: metrics for Prometheus and latency percentiles.

pub mod latency;
pub mod metrics;
pub mod names;
mod residency;
pub mod sequence_clock;
pub mod window;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use pleach_engine::engine::EngineStats;
use prometheus::Histogram;

pub use metrics::{AdapterFacts, ServerFacts, TierFacts};
pub use sequence_clock::{Outcome, SequenceClock};

use crate::http::wire::latency::LatencyReport;
use latency::{ByAdapter, Clock, Recorder};
use metrics::{AdapterHistograms, Metrics};

/// Everything that is measured. Shared by all handlers.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    clock: Clock,
    started_unix: u64,
    overall: Recorder,
    by_adapter: ByAdapter<Series>,
    /// The engine's numbers at the last scrape; the lock also keeps scrapes apart.
    scraped: Mutex<EngineStats>,
}

/// What is measured of one adapter. The Prometheus histograms are looked up once, not for each token.
#[derive(Debug)]
struct Series {
    recorder: Recorder,
    waiting: AtomicUsize,
    vectors: AdapterHistograms,
    queue: Histogram,
    ttft: Histogram,
    itl: Histogram,
    e2e: Histogram,
}

impl Series {
    fn new(label: &str, vectors: &AdapterHistograms) -> Self {
        Self {
            recorder: Recorder::default(),
            waiting: AtomicUsize::new(0),
            queue: vectors.queue.with_label_values(&[label]),
            ttft: vectors.ttft.with_label_values(&[label]),
            itl: vectors.itl.with_label_values(&[label]),
            e2e: vectors.e2e.with_label_values(&[label]),
            vectors: vectors.clone(),
        }
    }
}

impl Telemetry {
    /// Starts to measure.
    ///
    /// # Errors
    /// When the series contradict each other: a bug, found by the first test.
    pub fn new(facts: &ServerFacts) -> prometheus::Result<Self> {
        let metrics = Metrics::new(facts)?;
        let base = Series::new(names::ADAPTER_BASE, &metrics.by_adapter);
        Ok(Self {
            metrics,
            clock: Clock::start(),
            started_unix: unix_time().as_secs(),
            overall: Recorder::default(),
            by_adapter: ByAdapter::new(base, |label, base| Series::new(label, &base.vectors)),
            scraped: Mutex::default(),
        })
    }

    /// Follows one sequence, which is submitted now.
    pub fn follow(
        self: &Arc<Self>,
        adapter: Option<&str>,
        arrived: Instant,
        prompt_tokens: usize,
    ) -> SequenceClock {
        SequenceClock::start(Arc::clone(self), self.by_adapter.get(adapter), arrived, prompt_tokens)
    }

    /// Follows a request that waits for its adapter, until what is returned is dropped.
    pub fn waits_for(self: &Arc<Self>, adapter: &str) -> AdapterWait {
        let series = self.by_adapter.get(Some(adapter));
        series.waiting.fetch_add(1, Ordering::Relaxed);
        AdapterWait { telemetry: Arc::clone(self), series, began: Instant::now() }
    }

    /// Counts a response. `path` is a declared route, `code` the error's: both are bounded sets.
    pub fn count_response(&self, path: &str, status: u16, code: Option<&str>) {
        self.metrics.responses.with_label_values(&[path, &status.to_string()]).inc();
        if let Some(code) = code {
            self.count_error(code);
        }
    }

    /// Counts an error, also one that came inside a stream.
    pub fn count_error(&self, code: &str) {
        self.metrics.errors.with_label_values(&[code]).inc();
    }

    /// Whether sequences of this alias wait for the engine.
    pub fn is_waiting(&self, alias: &str) -> bool {
        self.by_adapter.peek(alias).is_some_and(|series| series.waiting.load(Ordering::Relaxed) > 0)
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When a series cannot be written as text.
    pub fn render(
        &self,
        stats: &EngineStats,
        adapters: &[AdapterFacts],
        tiers: &TierFacts,
    ) -> prometheus::Result<Vec<u8>> {
        let mut scraped = self.scraped.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.metrics.render(&scraped, stats, adapters, tiers, unix_time().as_secs_f64());
        *scraped = *stats;
        text
    }

    /// The percentiles of `/v1/latency`.
    pub fn report(&self) -> LatencyReport {
        let now = self.clock.elapsed(Instant::now());
        LatencyReport {
            object: "pleach.latency",
            unit: "ms",
            started: self.started_unix,
            overall: self.overall.report(now),
            base: self.by_adapter.get(None).recorder.report(now),
            adapters: self
                .by_adapter
                .adapters()
                .into_iter()
                .map(|(label, series)| (label, series.recorder.report(now)))
                .collect(),
        }
    }
}

/// A request that waits for its adapter.
#[derive(Debug)]
pub struct AdapterWait {
    telemetry: Arc<Telemetry>,
    series: Arc<Series>,
    began: Instant,
}

impl Drop for AdapterWait {
    fn drop(&mut self) {
        self.series.waiting.fetch_sub(1, Ordering::Relaxed);
        self.telemetry.metrics.adapter_wait.observe(self.began.elapsed().as_secs_f64());
    }
}

/// Time since 1970.
pub fn unix_time() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
