//! From the start of a process whose store has many adapters to its first answers; beside an empty store.

use std::{fmt::Write as _, time::Duration};

use anyhow::ensure;
use pleach::bench::Summary;
use serde_json::{Value, json};

use crate::{
    many::room_for,
    options::Options,
    outcome::{Bound, Outcome, verdict},
    peft::RandomAdapter,
    server::{BASE, Home, Server},
    turns::summary,
};

const ADAPTERS_DEFAULT: usize = 1000;
/// No weight is read at the start, so that small ones will do.
const RANK: usize = 4;
const SECONDS_AT_MOST: f64 = 2.0;

/// Seconds since the process was started.
#[derive(Clone, Copy, Debug)]
struct Start {
    health: Duration,
    base: Duration,
    adapter: Duration,
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Outcome> {
    let n_adapters = options.args.adapters.unwrap_or(ADAPTERS_DEFAULT).max(1);
    let adapters: Vec<_> =
        (0..n_adapters).map(|index| RandomAdapter { seed: index as u64, rank: RANK }).collect();
    let (full, empty) = (Home::new(options)?, Home::new(options)?);
    let flags = room_for(options, &adapters, n_adapters, n_adapters);
    // Killed when it is dropped: what was acknowledged must be there all the same.
    Server::start(options, &full, &flags).await?.register(&full, &options.spec, &adapters).await?;
    let (mut starts, mut of_empty) = (Vec::new(), Vec::new());
    for round in 0..options.args.rounds {
        of_empty.push(Server::start(options, &empty, &flags).await?.time_to_health.as_secs_f64());
        let server = Server::start(options, &full, &flags).await?;
        // Another adapter each time.
        starts.push(answers(&server, n_adapters, round * 7 % n_adapters).await?);
    }
    let seconds =
        |of: fn(&Start) -> Duration| summary(starts.iter().map(|start| of(start).as_secs_f64()));
    let rows = [
        ("health, empty store", summary(of_empty.into_iter())?, None),
        ("health", seconds(|start| start.health)?, None),
        ("base answered", seconds(|start| start.base)?, Some(Bound::AtMost(SECONDS_AT_MOST))),
        ("and an adapter, from disk", seconds(|start| start.adapter)?, None),
    ];
    Ok(outcome(n_adapters, options.args.rounds, &rows))
}

/// Asks the base, then an adapter, for one token each. All adapters must be there.
async fn answers(server: &Server, n_adapters: usize, adapter: usize) -> anyhow::Result<Start> {
    let body = |model: &str| json!({"model": model, "prompt": "Hello", "max_tokens": 1});
    server.post("/v1/completions", &body(BASE)).await?;
    let base = server.began.elapsed();
    let listed = server.n_adapters().await?;
    ensure!(listed == n_adapters, "{listed} of {n_adapters} adapters survived the restart");
    server.post("/v1/completions", &body(&format!("a{adapter}"))).await?;
    Ok(Start { health: server.time_to_health, base, adapter: server.began.elapsed() })
}

fn outcome(n: usize, n_starts: usize, rows: &[(&str, Summary, Option<Bound>)]) -> Outcome {
    let title = format!("restart with {n} adapters, {n_starts} times");
    let mut table =
        format!("**{title}**\n\n| until | seconds (P50) | most | bound |\n|---|---|---|---|\n");
    let (mut listed, mut is_met) = (Vec::<Value>::new(), true);
    for &(until, seconds, bound) in rows {
        let row_is_met = bound.map(|bound| bound.is_met(seconds.max));
        is_met &= row_is_met != Some(false);
        let cell = verdict(bound, row_is_met);
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {until} | {:.2} | {:.2} | {cell} |", seconds.p50, seconds.max);
        listed.push(
            json!({"until": until, "seconds": seconds, "bound": bound, "is_met": row_is_met}),
        );
    }
    Outcome { table, json: json!({"title": title, "rows": listed, "is_met": is_met}), is_met }
}
