//! `GET /v1/latency`.

use std::collections::BTreeMap;

use serde::Serialize;

/// Percentiles of everything that a user waits for.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyReport {
    /// Always `pleach.latency`.
    pub object: &'static str,
    /// Always `ms`: the unit of every time below.
    pub unit: &'static str,
    /// When the server started, seconds since 1970.
    pub started: u64,
    /// All requests together; `null` for a tenant, as others' are among them.
    pub overall: Option<LatencyWindows>,
    /// Requests to the plain base; `null` for a tenant.
    pub base: Option<LatencyWindows>,
    /// Requests to each adapter; `(other adapters)` are those beyond the most adapters that are told apart. A tenant is
    /// shown its own.
    pub adapters: BTreeMap<String, LatencyWindows>,
}

/// The same metrics over three windows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LatencyWindows {
    /// The last minute (50 to 60 seconds).
    pub last_minute: LatencyMetrics,
    /// The last hour (50 to 60 minutes).
    pub last_hour: LatencyMetrics,
    /// Everything.
    pub since_start: LatencyMetrics,
}

/// What is measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LatencyMetrics {
    /// From submission to the first step.
    pub queue: LatencySummary,
    /// From the request's arrival to the first token.
    pub ttft: LatencySummary,
    /// Between two tokens of one sequence.
    pub itl: LatencySummary,
    /// From arrival to the last token.
    pub e2e: LatencySummary,
}

/// One distribution, in milliseconds; `null` where nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencySummary {
    /// How many were recorded.
    pub count: u64,
    /// The mean.
    pub mean: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// 95 of 100 were at most this.
    pub p95: Option<f64>,
    /// 99 of 100 were at most this.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}
