//! Tenants that ask for more than there is, one of them a hundred times as much as each of the others.
//!
//! The batch has one place for each tenant, and every tenant always has a request that waits: so each can use an equal
//! share at every moment, and whether it gets it is up to the order of who waits.

use std::{fmt::Write as _, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use pleach::bench::{self, Limit, Load, Mix, Report, Sample, Summary};
use serde_json::{Value, json};

use crate::{
    cpu::CpuMeter,
    options::Options,
    outcome::{Bound, Outcome, verdict},
    server::{BASE, Home, Server},
    turns::summary,
};

const N_TENANTS: usize = 5;
/// Clients of each quiet tenant: one is served, one waits.
const CLIENTS: usize = 2;
const SKEW: usize = 100;
const JAIN_AT_LEAST: f64 = 0.95;
/// Of one run.
const RUN_TIME: Duration = Duration::from_mins(1);
/// In which queues fill, and which does not count.
const LEAD_TIME: Duration = Duration::from_secs(10);
/// Guards what is not a tenant's.
const OPERATOR_KEY: &str = "operator-of-the-benchmark";

/// A tenant's part in a run.
struct Served {
    tokens: f64,
    /// From sending to the first token, nearly all of it in the queue.
    wait_s: Summary,
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Outcome> {
    let home = Home::new(options)?;
    let mut keys = Vec::new();
    for index in 0..N_TENANTS {
        keys.push(add_tenant(options, &home, &format!("tenant{index}"))?);
    }
    let flags = ["--max-batch", &N_TENANTS.to_string(), "--api-key", OPERATOR_KEY];
    let server = Server::start(options, &home, &flags.map(str::to_owned)).await?;
    let mut rounds = Vec::new();
    for round in 0..options.args.rounds {
        let meter = CpuMeter::start(&[server.pid()]);
        let runs = keys.iter().enumerate().map(|(index, key)| {
            let n_clients = if index == 0 { SKEW * CLIENTS } else { CLIENTS };
            run(options, &server, key, n_clients, (round * N_TENANTS + index) as u64)
        });
        let shares = try_join_all(runs).await?;
        rounds.push((shares, meter.foreign_share()));
    }
    outcome(&rounds)
}

/// Makes a tenant with a key, and gives the key.
fn add_tenant(options: &Options, home: &Home, name: &str) -> anyhow::Result<String> {
    let tenant = |arguments: &[&str]| -> anyhow::Result<Value> {
        let mut command = options.program();
        command.env("PLEACH_HOME", home.path()).arg("tenant").args(arguments).arg("--json");
        let output = command.stdin(Stdio::null()).output().context("cannot run pleach tenant")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pleach tenant {}: {said}", arguments.join(" "));
        serde_json::from_slice(&output.stdout).context("pleach tenant --json printed no JSON")
    };
    let added = tenant(&["add", name])?;
    let id = added["id"].as_str().context("a tenant without id")?;
    let added = tenant(&["key", "add", id])?;
    Ok(added["key"].as_str().context("a key without text")?.to_owned())
}

async fn run(
    options: &Options,
    server: &Server,
    key: &str,
    n_clients: usize,
    seed: u64,
) -> anyhow::Result<Served> {
    let mut settings = options.load(n_clients, 32, 1).settings(&server.url, &[], seed);
    BASE.clone_into(&mut settings.model);
    settings.mix = Mix::Base;
    settings.load = Load::Concurrency(n_clients);
    settings.limit = Limit::Duration(LEAD_TIME + RUN_TIME);
    settings.api_key = Some(key.to_owned());
    let report: Report = bench::run(&settings, false).await?;
    ensure!(report.errors.is_empty(), "requests of a tenant failed: {:?}", report.errors);
    let samples = report.samples.as_deref().unwrap_or_default();
    let waits = samples
        .iter()
        .filter(|sample| is_within(sample.sent))
        .filter_map(|sample| Some(sample.ttft?.as_secs_f64()));
    Ok(Served {
        tokens: samples.iter().map(tokens_within).sum(),
        wait_s: summary(waits).context("a tenant was not served")?,
    })
}

fn is_within(at: Duration) -> bool {
    (LEAD_TIME..LEAD_TIME + RUN_TIME).contains(&at)
}

/// Output tokens of the time that counts: they come evenly between the first and the last.
fn tokens_within(sample: &Sample) -> f64 {
    let Some(ttft) = sample.ttft else { return 0.0 };
    let [first, last, begin, end] =
        [sample.sent + ttft, sample.sent + sample.e2e, LEAD_TIME, LEAD_TIME + RUN_TIME]
            .map(|time| time.as_secs_f64());
    let within = last.min(end) - first.max(begin);
    let share = (within / (last - first).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
    sample.output_tokens as f64 * share
}

/// Jain, Chiu, Hawe, "A quantitative measure of fairness", 1984: 1 is equal, 1 / n is one who has all.
fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    sum * sum / (values.len() as f64 * squares)
}

fn outcome(rounds: &[(Vec<Served>, Option<f64>)]) -> anyhow::Result<Outcome> {
    let title = format!(
        "{N_TENANTS} tenants on {N_TENANTS} places of the batch, one with {SKEW} times the others' {CLIENTS} clients"
    );
    let bound = Bound::AtLeast(JAIN_AT_LEAST);
    let mut table = format!(
        "**{title}**\n\n| round | Jain | flooding, wait P50 / P99 s | the others, worst P50 / P99 s | others' programs |\n\
         |---|---|---|---|---|\n"
    );
    let (mut indices, mut listed) = (Vec::new(), Vec::new());
    for (round, (served, foreign_share)) in rounds.iter().enumerate() {
        let tokens: Vec<f64> = served.iter().map(|served| served.tokens).collect();
        let index = jain(&tokens);
        let (flood, quiet) = served.split_first().context("no tenant")?;
        let worst = |of: fn(&Summary) -> f64| {
            quiet.iter().map(|served| of(&served.wait_s)).fold(0.0, f64::max)
        };
        let [p50, p99] = [worst(|wait| wait.p50), worst(|wait| wait.p99)];
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {round} | {index:.4} | {:.2} / {:.2} | {p50:.2} / {p99:.2} | {:.1} % |",
            flood.wait_s.p50,
            flood.wait_s.p99,
            100.0 * foreign_share.unwrap_or(f64::NAN)
        );
        indices.push(index);
        listed.push(json!({
            "jain": index,
            "tokens": tokens,
            "wait_s": served.iter().map(|served| served.wait_s).collect::<Vec<_>>(),
            "foreign_share": foreign_share,
        }));
    }
    let least = indices.iter().copied().fold(f64::INFINITY, f64::min);
    let is_met = bound.is_met(least);
    let _ =
        writeln!(table, "\nleast Jain index: {least:.4} ({})", verdict(Some(bound), Some(is_met)));
    let json = json!({"title": title, "rounds": listed, "bound": bound, "is_met": is_met});
    Ok(Outcome { table, json, is_met })
}
