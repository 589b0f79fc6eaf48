//! Two sides of a comparison under the same load, in turns: A B, B A, A B, …

use std::cell::Cell;

use anyhow::{Context as _, bail, ensure};
use pleach::bench::{self, GroupReport, Report, Sample, Throughput};
use serde::Serialize;

use crate::{
    churn::{Churn, Churned},
    cpu::CpuMeter,
    options::{LoadShape, Options},
    server::Server,
};

/// Pairs that are tried for each that has to count.
const ATTEMPTS: usize = 4;

/// One side.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub(crate) name: String,
    pub(crate) server: &'a Server,
    /// What requests ask for.
    pub(crate) adapters: Vec<String>,
    /// What goes on beside the load.
    pub(crate) churn: Option<&'a Churn<'a>>,
}

/// One run of the load on one side.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) report: Report,
    /// Share of the machine that other programs used.
    pub(crate) foreign_share: Option<f64>,
    pub(crate) churned: Option<Churned>,
}

/// What is kept of a run.
#[derive(Debug, Serialize)]
pub(crate) struct RunRecord<'a> {
    duration_s: f64,
    throughput: Throughput,
    requests: &'a GroupReport,
    /// Different adapters in flight, mean over time.
    distinct_in_flight: f64,
    foreign_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    churned: Option<&'a Churned>,
}

/// All pairs of runs.
#[derive(Debug)]
pub(crate) struct Pairs {
    pub(crate) names: [String; 2],
    pub(crate) load: LoadShape,
    /// Those that count; the sides in the order of `names`, whichever ran first.
    pub(crate) kept: Vec<[Run; 2]>,
    /// Pairs that do not count, as others were too busy.
    pub(crate) n_thrown_away: usize,
}

/// Runs the load on both sides until enough pairs count.
pub(crate) async fn compare(
    options: &Options,
    load: LoadShape,
    sides: [Side<'_>; 2],
) -> anyhow::Result<Pairs> {
    // Buffers are touched and prompts of the first run are as new as those of the others: the seed is nobody's.
    for side in &sides {
        let warm_up = LoadShape { requests: load.clients as u64 * 2, ..load };
        run(side, warm_up, u64::MAX).await?;
    }
    let (mut kept, mut n_thrown_away) = (Vec::new(), 0);
    for attempt in 0..options.args.rounds * ATTEMPTS {
        if kept.len() == options.args.rounds {
            break;
        }
        let pair = pair(&sides, load, attempt).await?;
        let is_quiet = |run: &Run| run.foreign_share.is_none_or(|share| share <= options.args.busy);
        if pair.iter().all(is_quiet) {
            kept.push(pair);
        } else {
            n_thrown_away += 1;
        }
    }
    ensure!(
        !kept.is_empty(),
        "others used more than {} of the machine in each of {n_thrown_away} pairs of runs (--busy)",
        options.args.busy
    );
    let names = sides.map(|side| side.name);
    Ok(Pairs { names, load, kept, n_thrown_away })
}

async fn pair(sides: &[Side<'_>; 2], load: LoadShape, attempt: usize) -> anyhow::Result<[Run; 2]> {
    // Both sides of a pair get the same prompts, unless one server is both and would find them in its cache.
    let is_shared = sides[0].server.pid() == sides[1].server.pid();
    let seed = |side: usize| 2 * attempt as u64 + if is_shared { side as u64 } else { 0 };
    if attempt.is_multiple_of(2) {
        let first = run(&sides[0], load, seed(0)).await?;
        return Ok([first, run(&sides[1], load, seed(1)).await?]);
    }
    let second = run(&sides[1], load, seed(1)).await?;
    Ok([run(&sides[0], load, seed(0)).await?, second])
}

async fn run(side: &Side<'_>, load: LoadShape, seed: u64) -> anyhow::Result<Run> {
    let settings = load.settings(&side.server.url, &side.adapters, seed);
    let is_over = Cell::new(false);
    let meter = CpuMeter::start(&[side.server.pid()]);
    let loaded = async {
        let report = bench::run(&settings, false).await;
        is_over.set(true);
        (report, meter.foreign_share())
    };
    let churned = async {
        match side.churn {
            Some(churn) => churn.run(&is_over).await.map(Some),
            None => Ok(None),
        }
    };
    let ((report, foreign_share), churned) = tokio::join!(loaded, churned);
    let report = report?;
    if report.interrupted {
        bail!("interrupted");
    }
    if let Some(error) = report.errors.first() {
        bail!("{}: {} requests failed: {} {}", side.name, error.count, error.kind, error.example);
    }
    Ok(Run { report, foreign_share, churned: churned? })
}

impl Run {
    pub(crate) fn samples(&self) -> &[Sample] {
        self.report.samples.as_deref().unwrap_or_default()
    }

    pub(crate) fn record(&self) -> RunRecord<'_> {
        RunRecord {
            duration_s: self.report.duration_s,
            throughput: self.report.throughput,
            requests: &self.report.overall,
            distinct_in_flight: distinct_in_flight(self.samples()),
            foreign_share: self.foreign_share,
            churned: self.churned.as_ref(),
        }
    }
}

/// Different models among the requests that were in flight, mean over the time of the run.
pub(crate) fn distinct_in_flight(samples: &[Sample]) -> f64 {
    let mut edges: Vec<_> = samples
        .iter()
        .flat_map(|sample| [(sample.sent, sample, true), (sample.sent + sample.e2e, sample, false)])
        .collect();
    edges.sort_by_key(|&(at, _, begins)| (at, begins));
    let (mut in_flight, mut sum) = (std::collections::HashMap::new(), 0.0);
    let mut last = edges.first().map(|edge| edge.0).unwrap_or_default();
    let begin = last;
    for (at, sample, begins) in edges {
        sum += in_flight.len() as f64 * at.saturating_sub(last).as_secs_f64();
        last = at;
        let count = in_flight.entry(&sample.model).or_insert(0_u32);
        *count = if begins { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            in_flight.remove(&sample.model);
        }
    }
    sum / last.saturating_sub(begin).as_secs_f64().max(f64::MIN_POSITIVE)
}

/// The runs of one side.
pub(crate) fn side(pairs: &[[Run; 2]], index: usize) -> Vec<&Run> {
    pairs.iter().map(|pair| &pair[index]).collect()
}

/// A percentile over all requests of some runs, from every value.
pub(crate) fn summary(values: impl Iterator<Item = f64>) -> anyhow::Result<bench::Summary> {
    bench::Summary::of(values.collect()).context("a run without a single value")
}
