//! What the server measures: metrics for Prometheus and latency percentiles.

pub mod by_label;
pub mod latency;
pub mod metrics;
pub mod names;
mod residency;
pub mod sequence_clock;
mod tenants;
pub mod window;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pleach_adapters::Namespace;
use pleach_engine::engine::EngineStats;
use prometheus::Histogram;

pub use metrics::{AdapterFacts, ServerFacts, TierFacts};
pub use sequence_clock::{Outcome, SequenceClock};
pub use tenants::TenantSeries;

use crate::http::wire::latency::LatencyReport;
use by_label::ByLabel;
use latency::{Clock, Recorder};
use metrics::{AdapterHistograms, Metrics};

/// Everything that is measured. Shared by all handlers.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    clock: Clock,
    started_unix: u64,
    overall: Recorder,
    by_adapter: ByLabel<Series>,
    by_tenant: ByLabel<TenantSeries>,
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
        let operator = TenantSeries::new(names::TENANT_OPERATOR, &metrics.by_tenant);
        Ok(Self {
            metrics,
            clock: Clock::start(),
            started_unix: unix_time().as_secs(),
            overall: Recorder::default(),
            by_adapter: ByLabel::new(
                base,
                names::ADAPTER_LABELS_MAX,
                names::ADAPTER_OTHER,
                |label, base| Series::new(label, &base.vectors),
            ),
            by_tenant: ByLabel::new(
                operator,
                names::TENANT_LABELS_MAX,
                names::TENANT_OTHER,
                |label, operator| operator.like(label),
            ),
            scraped: Mutex::default(),
        })
    }

    /// What is measured of the tenant of this name, or of the operator.
    pub fn tenant(&self, name: Option<&str>) -> Arc<TenantSeries> {
        self.by_tenant.get(name)
    }

    /// Follows one sequence, which is submitted now.
    pub fn follow(
        self: &Arc<Self>,
        adapter: Option<&str>,
        tenant: &Arc<TenantSeries>,
        arrived: Instant,
        prompt_tokens: usize,
    ) -> SequenceClock {
        let series = self.by_adapter.get(adapter);
        SequenceClock::start(Arc::clone(self), series, Arc::clone(tenant), arrived, prompt_tokens)
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

    /// Counts completions that were to be kept: `kept`, `dropped` or `failed`.
    pub fn count_captured(&self, result: &str, n: u64) {
        self.metrics.captured.with_label_values(&[result]).inc_by(n);
    }

    /// Counts feedback, by one of a closed set of kinds.
    pub fn count_feedback(&self, kind: &str) {
        self.metrics.feedback.with_label_values(&[kind]).inc();
    }

    /// Counts a training that ended: `succeeded`, `failed` or `interrupted`.
    pub fn count_training(&self, result: &str) {
        self.metrics.trainings.with_label_values(&[result]).inc();
    }

    /// Counts a round of the learning loop that ended, by its last state.
    pub fn count_round(&self, result: &str) {
        self.metrics.rounds.with_label_values(&[result]).inc();
    }

    /// The bound on the time between two tokens that a training keeps to now.
    pub fn set_training_itl_budget(&self, budget: Option<Duration>) {
        self.metrics.training_itl_budget.set(budget.unwrap_or_default().as_secs_f64());
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

    /// The percentiles of `/v1/latency`: all of them for the shared namespace, else those of the namespace's own adapters.
    pub fn report(&self, namespace: &Namespace) -> LatencyReport {
        let now = self.clock.elapsed(Instant::now());
        let is_all = namespace.is_shared();
        let shown = self.by_adapter.labelled().into_iter().filter_map(|(label, series)| {
            let name = if is_all { label } else { own_name(&label, namespace)?.to_owned() };
            Some((name, series.recorder.report(now)))
        });
        LatencyReport {
            object: "pleach.latency",
            unit: "ms",
            started: self.started_unix,
            overall: is_all.then(|| self.overall.report(now)),
            base: is_all.then(|| self.by_adapter.get(None).recorder.report(now)),
            adapters: shown.collect(),
        }
    }
}

/// The name in the label of an adapter ([`pleach_adapters::Alias::label`]), if it is one of this namespace.
fn own_name<'l>(label: &'l str, namespace: &Namespace) -> Option<&'l str> {
    label.strip_prefix(namespace.as_str())?.strip_prefix('/')
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
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_by_its_owner_only() {
        let [one, two] = ["ten_1", "ten_2"].map(Namespace::new);
        assert_eq!(own_name("ten_1/support", &one), Some("support"));
        assert_eq!(own_name("ten_1/ten_2/support", &one), Some("ten_2/support"));
        for label in ["ten_1/support", "ten_1/ten_2/support", "support", "ten_2", "ten_22/support"]
        {
            assert_eq!(own_name(label, &two), None, "{label:?}");
        }
        for label in [names::ADAPTER_BASE, names::ADAPTER_OTHER] {
            assert_eq!(own_name(label, &one), None);
        }
    }
}
