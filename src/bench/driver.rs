//! Sends the plan's requests at the pace of the load, and gathers what came of them.

use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    client::BenchClient,
    plan::Plan,
    random::Random,
    report::Report,
    sample::{ErrorKind, Failure, Sample},
    settings::{Limit, Load, Settings},
};

/// Requests in flight at once under an arrival rate; those beyond are counted as dropped.
const IN_FLIGHT_MAX: usize = 8192;
/// The stream of random numbers that arrivals are drawn from. No request has this index.
const ARRIVAL_INDEX: u64 = u64::MAX - 1;
/// Warm-up requests in flight at once under an arrival rate.
const WARMUP_CONCURRENCY: usize = 8;
const BAR_INTERVAL: Duration = Duration::from_millis(250);

/// What every client of the run shares.
struct Shared {
    plan: Plan,
    client: BenchClient,
    next: AtomicU64,
    requests_max: u64,
    start: Instant,
    /// When sending stops.
    deadline: Option<Instant>,
}

impl Shared {
    /// The index of the next request, unless the run is over.
    fn take(&self, now: Instant) -> Option<u64> {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return None;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.requests_max).then_some(index)
    }
}

/// Runs `settings`. With `progress`, a bar shows how far it is, if standard error is a terminal. Ctrl-C ends the run
/// early; the report then covers what was finished.
///
/// # Errors
/// Only for settings that make no request possible: a bad URL or key. Failed requests are part of the report.
pub async fn run(settings: &Settings, progress: bool) -> anyhow::Result<Report> {
    let client = BenchClient::new(settings)?;
    let plan = Plan::new(settings);
    warm_up(settings, &plan, &client).await;

    let started_at = std::time::SystemTime::now();
    let start = Instant::now();
    let (requests_max, duration) = match settings.limit {
        Limit::Requests(count) => (count, None),
        Limit::Duration(duration) => (u64::MAX, Some(duration)),
    };
    let deadline = duration.and_then(|duration| start.checked_add(duration));
    let shared =
        Arc::new(Shared { plan, client, next: AtomicU64::new(0), requests_max, start, deadline });
    let (sender, mut samples_in) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    match settings.load {
        Load::Concurrency(count) => {
            for _ in 0..count {
                tasks.spawn(closed_loop(Arc::clone(&shared), sender.clone()));
            }
        }
        Load::Rate { rate, burstiness } => {
            let random = Random::new(settings.seed, ARRIVAL_INDEX);
            tasks.spawn(open_loop(Arc::clone(&shared), sender.clone(), rate, burstiness, random));
        }
    }
    drop(sender);

    let mut bar = RunBar::new(progress, settings.limit);
    let mut samples: Vec<Sample> = Vec::new();
    let mut interrupted = false;
    loop {
        tokio::select! {
            sample = samples_in.recv() => match sample {
                Some(sample) => {
                    bar.count(&sample, start);
                    samples.push(sample);
                }
                None => break,
            },
            Ok(()) = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                tasks.abort_all();
            }
        }
    }
    let wall = start.elapsed();
    bar.finish();
    samples.sort_by_key(|sample| sample.index);
    Ok(Report::new(settings, started_at, wall, interrupted, samples))
}

async fn warm_up(settings: &Settings, plan: &Plan, client: &BenchClient) {
    let concurrency = match settings.load {
        Load::Concurrency(count) => count,
        Load::Rate { .. } => WARMUP_CONCURRENCY,
    };
    let mut tasks = JoinSet::new();
    for index in 0..settings.warmup {
        if tasks.len() >= concurrency {
            tasks.join_next().await;
        }
        let (client, planned, now) = (client.clone(), plan.warmup(index), Instant::now());
        tasks.spawn(async move { client.send(index, planned, now, now).await });
    }
    tasks.join_all().await;
}

/// One client: the next request when the last one is answered.
async fn closed_loop(shared: Arc<Shared>, samples: mpsc::UnboundedSender<Sample>) {
    while let Some(index) = shared.take(Instant::now()) {
        let planned = shared.plan.request(index);
        let sample = shared.client.send(index, planned, shared.start, Instant::now()).await;
        if samples.send(sample).is_err() {
            return;
        }
    }
}

/// Requests at their times, answered or not. The clock of each starts when it is due, so that a generator that lags
/// does not flatter the server.
async fn open_loop(
    shared: Arc<Shared>,
    samples: mpsc::UnboundedSender<Sample>,
    rate: f64,
    burstiness: f64,
    mut random: Random,
) {
    let mut in_flight = JoinSet::new();
    let mut due = shared.start;
    loop {
        tokio::time::sleep_until(due.into()).await;
        while in_flight.try_join_next().is_some() {}
        let Some(index) = shared.take(due) else { break };
        let planned = shared.plan.request(index);
        if in_flight.len() >= IN_FLIGHT_MAX {
            let _ = samples.send(dropped(
                index,
                planned.model,
                planned.output_tokens,
                due - shared.start,
            ));
        } else {
            let (shared, samples) = (Arc::clone(&shared), samples.clone());
            in_flight.spawn(async move {
                // Nobody listens when the run was interrupted.
                let _ = samples.send(shared.client.send(index, planned, shared.start, due).await);
            });
        }
        // An infinite rate gives gaps of zero.
        let gap = Duration::try_from_secs_f64(random.gamma_mean_one(burstiness) / rate)
            .unwrap_or(Duration::MAX);
        let Some(next) = due.checked_add(gap) else { break };
        due = next;
        if shared.deadline.is_some_and(|deadline| due >= deadline) {
            break;
        }
    }
    in_flight.join_all().await;
}

fn dropped(index: u64, model: Arc<str>, asked_tokens: u32, sent: Duration) -> Sample {
    let message = format!("{IN_FLIGHT_MAX} requests are in flight already");
    Sample {
        index,
        model,
        sent,
        ttft: None,
        e2e: Duration::ZERO,
        itl_us: Vec::new(),
        asked_tokens,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        has_usage: false,
        is_resent: false,
        failure: Some(Failure { kind: ErrorKind::Dropped, message }),
    }
}

/// The progress bar of a run.
struct RunBar {
    bar: ProgressBar,
    limit: Limit,
    n_ok: u64,
    n_failed: u64,
    output_tokens: u64,
    drawn: Instant,
}

impl RunBar {
    fn new(wanted: bool, limit: Limit) -> Self {
        let bar = if wanted && std::io::stderr().is_terminal() {
            let length = match limit {
                Limit::Requests(count) => count,
                Limit::Duration(duration) => duration.as_secs(),
            };
            let style = ProgressStyle::with_template("[{elapsed}] {bar:30} {pos}/{len} {msg}");
            let style =
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
            ProgressBar::new(length).with_style(style)
        } else {
            ProgressBar::hidden()
        };
        Self { bar, limit, n_ok: 0, n_failed: 0, output_tokens: 0, drawn: Instant::now() }
    }

    fn count(&mut self, sample: &Sample, start: Instant) {
        self.output_tokens += sample.output_tokens;
        if sample.failure.is_none() {
            self.n_ok += 1;
        } else {
            self.n_failed += 1;
        }
        if self.bar.is_hidden() || self.drawn.elapsed() < BAR_INTERVAL {
            return;
        }
        self.drawn = Instant::now();
        let elapsed = start.elapsed();
        self.bar.set_position(match self.limit {
            Limit::Requests(_) => self.n_ok + self.n_failed,
            Limit::Duration(duration) => elapsed.min(duration).as_secs(),
        });
        let speed = self.output_tokens as f64 / elapsed.as_secs_f64();
        self.bar.set_message(format!("{} failed, {speed:.0} tokens/s", self.n_failed));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
pub(super) mod tests;
