//! Follows one sequence and records its times.
//!
//! The times between tokens are handed in several at a time: all sequences share the recorders, and their tokens come
//! all at once, at the end of a step.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use prometheus::Histogram;

use super::{Series, Telemetry, TenantSeries, latency::Latency};

/// Most times between tokens that wait to be handed in …
const PENDING_MAX: usize = 32;
/// … and how long the first of them may wait for the next token: what is reported lags by no more.
const PENDING_TIME_MAX: Duration = Duration::from_millis(500);

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An end token, a stop token or a stop string.
    Stop,
    /// As long as it may be.
    Length,
    /// The client went away, or the server stops.
    Abort,
    /// The engine failed.
    Error,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// Follows one sequence. Dropped before [`finish`](Self::finish), it counts as aborted.
#[derive(Debug)]
pub struct SequenceClock {
    telemetry: Arc<Telemetry>,
    series: Arc<Series>,
    tenant: Arc<TenantSeries>,
    arrived: Instant,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Times between tokens that are not handed in yet, each with the time since start.
    pending: Vec<(Duration, Duration)>,
    prompt_tokens: usize,
    completion_tokens: usize,
    outcome: Option<Outcome>,
}

impl SequenceClock {
    pub(super) fn start(
        telemetry: Arc<Telemetry>,
        series: Arc<Series>,
        tenant: Arc<TenantSeries>,
        arrived: Instant,
        prompt_tokens: usize,
    ) -> Self {
        series.waiting.fetch_add(1, Ordering::Relaxed);
        Self {
            telemetry,
            series,
            tenant,
            arrived,
            submitted: Instant::now(),
            admitted: None,
            first_token: None,
            last_token: None,
            pending: Vec::new(),
            prompt_tokens,
            completion_tokens: 0,
            outcome: None,
        }
    }

    /// It left the queue.
    pub fn admitted(&mut self, at: Instant) {
        if self.admitted.replace(at).is_none() {
            self.series.waiting.fetch_sub(1, Ordering::Relaxed);
            let metrics = &self.telemetry.metrics;
            self.record(
                Latency::Queue,
                at,
                self.submitted,
                &metrics.queue_time,
                &self.series.queue,
            );
        }
    }

    /// It got a token.
    pub fn token(&mut self, at: Instant) {
        self.completion_tokens += 1;
        match self.last_token {
            None => {
                let metrics = &self.telemetry.metrics;
                self.record(Latency::Ttft, at, self.arrived, &metrics.ttft, &self.series.ttft);
                self.tenant.ttft.observe(seconds(self.arrived, at));
                if let Some(admitted) = self.admitted {
                    metrics.prefill_time.observe(seconds(admitted, at));
                }
                self.first_token = Some(at);
            }
            Some(last) => self.between_tokens(last, at),
        }
        self.last_token = Some(at);
    }

    /// It ended. Later calls change nothing.
    pub fn finish(&mut self, outcome: Outcome) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = Some(outcome);
        self.hand_in();
        if self.admitted.is_none() {
            self.series.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let metrics = &self.telemetry.metrics;
        metrics.finished.with_label_values(&[outcome.label()]).inc();
        // The times of a sequence that was cut off say nothing of the server.
        if !matches!(outcome, Outcome::Stop | Outcome::Length) {
            return;
        }
        let end = self.last_token.unwrap_or_else(Instant::now);
        self.record(Latency::E2e, end, self.arrived, &metrics.e2e, &self.series.e2e);
        metrics.request_prompt_tokens.observe(self.prompt_tokens as f64);
        metrics.request_generation_tokens.observe(self.completion_tokens as f64);
        if let Some(admitted) = self.admitted {
            metrics.inference_time.observe(seconds(admitted, end));
        }
        if let Some(first) = self.first_token {
            let decode = seconds(first, end);
            metrics.decode_time.observe(decode);
            if self.completion_tokens > 1 {
                metrics.tpot.observe(decode / (self.completion_tokens - 1) as f64);
            }
        }
    }

    fn between_tokens(&mut self, last: Instant, at: Instant) {
        let now = self.telemetry.clock.elapsed(at);
        self.pending.push((now, at.saturating_duration_since(last)));
        let waits =
            self.pending.first().map_or(Duration::ZERO, |&(first, _)| now.saturating_sub(first));
        if self.pending.len() >= PENDING_MAX || waits >= PENDING_TIME_MAX {
            self.hand_in();
        }
    }

    fn hand_in(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.telemetry.overall.record_all(Latency::Itl, &self.pending);
        self.series.recorder.record_all(Latency::Itl, &self.pending);
        for (_, latency) in self.pending.drain(..) {
            self.telemetry.metrics.itl.observe(latency.as_secs_f64());
            self.series.itl.observe(latency.as_secs_f64());
        }
    }

    fn record(
        &self,
        kind: Latency,
        at: Instant,
        from: Instant,
        overall: &Histogram,
        of_adapter: &Histogram,
    ) {
        let latency: Duration = at.saturating_duration_since(from);
        let now = self.telemetry.clock.elapsed(at);
        self.telemetry.overall.record(kind, now, latency);
        self.series.recorder.record(kind, now, latency);
        overall.observe(latency.as_secs_f64());
        of_adapter.observe(latency.as_secs_f64());
    }
}

impl Drop for SequenceClock {
    fn drop(&mut self) {
        self.finish(Outcome::Abort);
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
