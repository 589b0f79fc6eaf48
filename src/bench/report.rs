//! What came of a run, as numbers: overall, for each model name, and for each way to fail.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use super::{
    sample::{ErrorKind, Sample, ms},
    settings::Settings,
    stats::Summary,
};

/// The report of a run. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was run.
    pub settings: Settings,
    /// Version of this program.
    pub pleach_version: &'static str,
    /// Seconds since 1970.
    pub started_at_s: u64,
    /// From the first request to the last answer.
    pub duration_s: f64,
    /// Whether the run was ended by hand.
    pub interrupted: bool,
    /// Per second.
    pub throughput: Throughput,
    /// All requests.
    pub overall: GroupReport,
    /// The same for each model name that was asked for.
    pub adapters: BTreeMap<String, GroupReport>,
    /// Failures, most frequent first.
    pub errors: Vec<ErrorReport>,
    /// Each request, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Vec<Sample>>,
}

/// Finished work per second of the whole run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// Finished requests.
    pub requests_per_s: f64,
    /// Tokens of completions.
    pub output_tokens_per_s: f64,
    /// Tokens of prompts and completions.
    pub total_tokens_per_s: f64,
}

/// Requests that have something in common.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GroupReport {
    /// Requests that finished.
    pub n_ok: u64,
    /// Requests that failed.
    pub n_failed: u64,
    /// Tokens of prompts, of finished requests.
    pub prompt_tokens: u64,
    /// Those of them that came from the server's cache.
    pub cached_tokens: u64,
    /// Tokens of completions, of finished requests.
    pub output_tokens: u64,
    /// Events that carried text. Fewer than tokens when the server sends several tokens at once.
    pub text_events: u64,
    /// Finished requests for which the server sent no counts.
    pub n_without_usage: u64,
    /// Finished requests with fewer tokens than were asked for.
    pub n_short: u64,
    /// Finished requests that were sent twice, as the server had closed the connection that they were to use.
    pub n_resent: u64,
    /// Time to first token.
    pub ttft_ms: Option<Summary>,
    /// Time between an event with text and the one before.
    pub itl_ms: Option<Summary>,
    /// Time per output token after the first, one value for each request.
    pub tpot_ms: Option<Summary>,
    /// From sending to the end.
    pub e2e_ms: Option<Summary>,
}

/// One way to fail.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorReport {
    /// Which.
    pub kind: ErrorKind,
    /// How many.
    pub count: u64,
    /// What was said about the first.
    pub example: String,
}

impl Report {
    pub(super) fn new(
        settings: &Settings,
        started_at: SystemTime,
        wall: Duration,
        interrupted: bool,
        samples: Vec<Sample>,
    ) -> Self {
        let overall = GroupReport::of(samples.iter());
        let mut groups: BTreeMap<Arc<str>, Vec<&Sample>> = BTreeMap::new();
        for sample in &samples {
            groups.entry(Arc::clone(&sample.model)).or_default().push(sample);
        }
        let reports = groups
            .into_iter()
            .map(|(model, group)| (model.to_string(), GroupReport::of(group.into_iter())));
        let adapters = reports.collect();
        let last = samples.iter().map(|sample| sample.sent + sample.e2e).max();
        let duration_s = last.unwrap_or(wall).min(wall).as_secs_f64();
        let per_second =
            |count: u64| if duration_s > 0.0 { count as f64 / duration_s } else { 0.0 };
        Self {
            settings: settings.clone(),
            pleach_version: env!("CARGO_PKG_VERSION"),
            started_at_s: started_at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            duration_s,
            interrupted,
            throughput: Throughput {
                requests_per_s: per_second(overall.n_ok),
                output_tokens_per_s: per_second(overall.output_tokens),
                total_tokens_per_s: per_second(overall.prompt_tokens + overall.output_tokens),
            },
            overall,
            adapters,
            errors: errors(&samples),
            samples: settings.samples.then_some(samples),
        }
    }
}

impl GroupReport {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Self {
        let mut group = Self::default();
        let (mut ttft, mut itl, mut tpot, mut e2e) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for sample in samples {
            if sample.failure.is_some() {
                group.n_failed += 1;
                continue;
            }
            group.n_ok += 1;
            group.prompt_tokens += sample.prompt_tokens;
            group.cached_tokens += sample.cached_tokens;
            group.output_tokens += sample.output_tokens;
            group.text_events += sample.itl_us.len() as u64 + u64::from(sample.ttft.is_some());
            group.n_without_usage += u64::from(!sample.has_usage);
            group.n_resent += u64::from(sample.is_resent);
            group.n_short += u64::from(
                sample.has_usage && sample.output_tokens < u64::from(sample.asked_tokens),
            );
            ttft.extend(sample.ttft.map(ms));
            itl.extend(sample.itl_us.iter().map(|&us| f64::from(us) / 1e3));
            tpot.extend(sample.tpot_ms());
            e2e.push(ms(sample.e2e));
        }
        group.ttft_ms = Summary::of(ttft);
        group.itl_ms = Summary::of(itl);
        group.tpot_ms = Summary::of(tpot);
        group.e2e_ms = Summary::of(e2e);
        group
    }
}

fn errors(samples: &[Sample]) -> Vec<ErrorReport> {
    let mut by_kind: BTreeMap<ErrorKind, ErrorReport> = BTreeMap::new();
    for failure in samples.iter().filter_map(|sample| sample.failure.as_ref()) {
        let kind = failure.kind;
        let report = by_kind.entry(kind).or_insert_with(|| ErrorReport {
            kind,
            count: 0,
            example: failure.message.clone(),
        });
        report.count += 1;
    }
    let mut errors: Vec<_> = by_kind.into_values().collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    errors
}
