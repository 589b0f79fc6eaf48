//! The report as text, for a terminal of about 110 columns.

use std::fmt;

use super::{
    report::{GroupReport, Report},
    settings::{Endpoint, Limit, Load},
    stats::Summary,
};

/// As many adapters are shown; all of them are in the JSON.
const ROWS_MAX: usize = 20;
const NAME_CHARS_MAX: usize = 28;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_heading(f)?;
        let names = self.adapters.keys().take(ROWS_MAX).map(|name| name.chars().count());
        let width = names.max().unwrap_or(0).clamp("all".len().max(8), NAME_CHARS_MAX);
        writeln!(
            f,
            "{:width$} {:>6} {:>5}  {:^26}  {:^23}  {:^29}",
            "", "", "", "TTFT ms", "ITL ms", "E2E ms"
        )?;
        writeln!(
            f,
            "{:width$} {:>6} {:>5}  {:>8} {:>8} {:>8}  {:>7} {:>7} {:>7}  {:>9} {:>9} {:>9}",
            "model", "ok", "err", "P50", "P95", "P99", "P50", "P95", "P99", "P50", "P95", "P99"
        )?;
        for (name, group) in self.adapters.iter().take(ROWS_MAX) {
            write_row(f, width, name, group)?;
        }
        if let Some(more) = self.adapters.len().checked_sub(ROWS_MAX).filter(|&more| more > 0) {
            writeln!(f, "… and {more} more, in the JSON")?;
        }
        if self.adapters.len() != 1 {
            write_row(f, width, "all", &self.overall)?;
        }
        self.write_totals(f)
    }
}

fn write_row(
    f: &mut fmt::Formatter<'_>,
    width: usize,
    name: &str,
    group: &GroupReport,
) -> fmt::Result {
    let name: String = name.chars().take(width).collect();
    write!(f, "{name:width$} {:>6} {:>5}", group.n_ok, group.n_failed)?;
    write_percentiles(f, group.ttft_ms, 8, 1)?;
    write_percentiles(f, group.itl_ms, 7, 2)?;
    write_percentiles(f, group.e2e_ms, 9, 1)?;
    writeln!(f)
}

fn write_percentiles(
    f: &mut fmt::Formatter<'_>,
    summary: Option<Summary>,
    width: usize,
    digits: usize,
) -> fmt::Result {
    f.write_str(" ")?;
    match summary {
        Some(summary) => [summary.p50, summary.p95, summary.p99]
            .iter()
            .try_for_each(|value| write!(f, " {value:>width$.digits$}")),
        None => (0..3).try_for_each(|_| write!(f, " {:>width$}", "-")),
    }
}

impl Report {
    fn write_heading(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        let endpoint = match settings.endpoint {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
        };
        write!(f, "{} · {} · {endpoint} · ", settings.url, settings.model)?;
        match settings.load {
            Load::Concurrency(count) => write!(f, "{count} clients")?,
            Load::Rate { rate: f64::INFINITY, .. } => f.write_str("all at once")?,
            Load::Rate { rate, burstiness: 1.0 } => write!(f, "{rate} requests/s (Poisson)")?,
            Load::Rate { rate, burstiness } => {
                write!(f, "{rate} requests/s (burstiness {burstiness})")?;
            }
        }
        write!(f, " · prompts {} · outputs {} · ", settings.prompt_tokens, settings.output_tokens)?;
        match settings.limit {
            Limit::Requests(count) => write!(f, "{count} requests")?,
            Limit::Duration(duration) => write!(f, "{} s", duration.as_secs_f64())?,
        }
        if !settings.adapters.is_empty() {
            write!(f, " · {} adapters, {}", settings.adapters.len(), settings.mix)?;
        }
        f.write_str("\n\n")
    }

    fn write_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, speed) = (&self.overall, self.throughput);
        writeln!(
            f,
            "\n{:.2} requests/s · {:.1} output tokens/s · {:.1} tokens/s in all",
            speed.requests_per_s, speed.output_tokens_per_s, speed.total_tokens_per_s
        )?;
        write!(f, "{} ok, {} failed in {:.2} s", all.n_ok, all.n_failed, self.duration_s)?;
        writeln!(
            f,
            " · {} prompt tokens ({} cached) · {} output tokens",
            all.prompt_tokens, all.cached_tokens, all.output_tokens
        )?;
        for error in &self.errors {
            writeln!(f, "{} × {}: {}", error.count, error.kind, error.example)?;
        }
        if self.interrupted {
            writeln!(f, "note: interrupted; what was in flight is not counted")?;
        }
        if all.n_without_usage > 0 {
            let count = all.n_without_usage;
            writeln!(
                f,
                "note: no token counts from the server for {count} requests: their events are counted instead"
            )?;
        }
        if all.n_short > 0 && self.settings.ignore_eos {
            writeln!(f, "note: {} completions are shorter than asked for", all.n_short)?;
        }
        if all.n_resent > 0 {
            writeln!(
                f,
                "note: {} requests were sent twice, as the server closes connections",
                all.n_resent
            )?;
        }
        // One event in ten with several tokens is noticeable in the percentiles.
        if all.text_events * 10 < all.output_tokens * 9 {
            let (events, tokens) = (all.text_events, all.output_tokens);
            writeln!(
                f,
                "note: {tokens} tokens came in {events} events: ITL is the time between events"
            )?;
        }
        Ok(())
    }
}
