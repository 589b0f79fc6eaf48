//! An alias that moves between two adapters under load, thousands of times.
//!
//! One mover: it moves the alias, and as soon as that is acknowledged it sends a request for it. When the head of that
//! answer comes the request has been resolved and queued. The answer itself is read beside the next moves: it must name
//! the generation that the alias had just got, in every chunk, and its tokens must be those that this generation gives
//! alone. Both adapters differ from the first greedy token on, so that no token of one can pass for the other's.

use std::{collections::HashMap, fmt::Write as _, sync::Arc, time::Instant};

use anyhow::{Context as _, bail, ensure};
use pleach::bench::{self, Limit, Summary};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    cpu::CpuMeter,
    options::Options,
    outcome::{Bound, Outcome, verdict},
    peft::{RandomAdapter, write_twin},
    server::{Home, Server, show_progress},
    turns::summary,
};

const ALIAS: &str = "moving";
/// Folders of the two.
const FOLDERS: [&str; 2] = ["one", "two"];
const PROMPTS: [&str; 6] = [
    "How do I bake bread?",
    "What is the weather like in winter?",
    "Tell me about the sea.",
    "My name is Ann, I am 31 and live in Oslo.",
    "Bob ordered two chairs on Monday.",
    "Why is the sky blue?",
];
const N_TOKENS: usize = 6;
/// Requests for the alias that may be in flight.
const IN_FLIGHT_MAX: usize = 8;
/// So many moves are rollbacks, then one is by loading the files again.
const PUT_EVERY: usize = 100;
const MS_AT_MOST: f64 = 5.0;

/// A generation, and what it answers alone: the tokens of each prompt.
#[derive(Debug)]
struct Known {
    digest: String,
    answers: Vec<Vec<u64>>,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// It names another generation than the alias had when it was asked.
    Stale,
    /// It names several generations, or its tokens are not those of the one that it names.
    Mixed,
}

/// Milliseconds, one value a move.
#[derive(Debug, Default)]
struct Times {
    rollback: Vec<f64>,
    put: Vec<f64>,
    /// From a move's acknowledgement to the head of the next request's answer.
    admitted: Vec<f64>,
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Outcome> {
    let home = Home::new(options)?;
    for (folder, of) in FOLDERS.iter().zip(&options.args.pair) {
        write_twin(of, &home.adapter_root().join(folder))?;
    }
    let server = Server::start(options, &home, &[]).await?;
    let others = [RandomAdapter { seed: 1, rank: options.args.rank }; 1];
    let others = server.register(&home, &options.spec, &others).await?;
    let (known, prompts) = learn(&server).await?;
    let shape = options.load(4, 64, 1);
    let mut load = shape.settings(&server.url, &others, 1);
    load.limit = Limit::Requests(u64::MAX);
    load.samples = false;
    let meter = CpuMeter::start(&[server.pid()]);
    // Until the moves are done.
    let (times, wrong) = tokio::select! {
        moved = move_often(&server, options.args.swaps, &known, &prompts) => moved?,
        load = bench::run(&load, false) => bail!("the load ended: {:?}", load?.errors),
    };
    let foreign_share = meter.foreign_share();
    outcome(&times, &wrong, shape.clients, foreign_share)
}

/// Points the alias at both, and asks each alone. Leaves it at the first. Prompts whose first tokens do not differ are
/// of no use.
async fn learn(server: &Server) -> anyhow::Result<([Known; 2], Vec<&'static str>)> {
    let mut known = Vec::new();
    server.load(ALIAS, FOLDERS[0]).await?;
    for folder in FOLDERS {
        // A generation without any name leaves memory; what is timed here is the move and not a load.
        server.load(&format!("kept-{folder}"), folder).await?;
        put(server, folder).await?;
        let mut answers = Vec::new();
        for prompt in PROMPTS {
            let answer = server.post("/v1/chat/completions", &body(prompt, false)).await?;
            let ids = answer["choices"][0]["token_ids"].as_array();
            answers.push(ids.into_iter().flatten().filter_map(Value::as_u64).collect());
        }
        known.push(Known { digest: server.generation(ALIAS).await?, answers });
    }
    put(server, FOLDERS[0]).await?;
    let mut known: [Known; 2] =
        known.try_into().map_err(|_| anyhow::anyhow!("there are two folders"))?;
    ensure!(known[0].digest != known[1].digest, "both adapters are one generation");
    let differ: Vec<bool> = (0..PROMPTS.len())
        .map(|index| known[0].answers[index].first() != known[1].answers[index].first())
        .collect();
    let keep = |index: usize| differ[index];
    for known in &mut known {
        let mut index = 0..;
        known.answers.retain(|_| index.next().is_some_and(keep));
    }
    let prompts: Vec<_> =
        PROMPTS.iter().zip(&differ).filter(|(_, keep)| **keep).map(|(&prompt, _)| prompt).collect();
    ensure!(!prompts.is_empty(), "both adapters begin every answer alike (--pair)");
    Ok((known, prompts))
}

fn body(prompt: &str, stream: bool) -> Value {
    json!({
        "model": ALIAS,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": N_TOKENS,
        "ignore_eos": true,
        "return_token_ids": true,
        "stream": stream,
    })
}

async fn put(server: &Server, folder: &str) -> anyhow::Result<()> {
    let path = format!("/v1/adapters/{ALIAS}");
    server.send(Method::PUT, &path, Some(&json!({"path": folder}))).await?;
    Ok(())
}

async fn move_often(
    server: &Server,
    n_moves: usize,
    known: &[Known; 2],
    prompts: &[&str],
) -> anyhow::Result<(Times, HashMap<&'static str, usize>)> {
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut times = Times::default();
    let mut answers = JoinSet::new();
    let mut wrong = HashMap::from([("stale", 0), ("mixed", 0)]);
    let mut count = |judged: Option<Wrong>| match judged {
        None => {}
        Some(Wrong::Stale) => *wrong.entry("stale").or_default() += 1,
        Some(Wrong::Mixed) => *wrong.entry("mixed").or_default() += 1,
    };
    for index in 0..n_moves {
        // Waiting for a place is no part of any time.
        let place = Arc::clone(&places).acquire_owned().await?;
        let target = (index + 1) % 2;
        let began = Instant::now();
        if index % PUT_EVERY == PUT_EVERY - 1 {
            put(server, FOLDERS[target]).await?;
            times.put.push(ms_since(began));
        } else {
            server.post(&format!("/v1/adapters/{ALIAS}/rollback"), &json!({})).await?;
            times.rollback.push(ms_since(began));
        }
        let moved = Instant::now();
        let prompt = index % prompts.len();
        let body = body(prompts[prompt], true);
        let head = server.send(Method::POST, "/v1/chat/completions", Some(&body)).await?;
        times.admitted.push(ms_since(moved));
        let expected = (known[target].digest.clone(), known[target].answers[prompt].clone());
        answers.spawn(async move {
            let judged = judge(head, &expected.0, &expected.1).await;
            drop(place);
            judged
        });
        while let Some(judged) = answers.try_join_next() {
            count(judged??);
        }
        show_progress("moves", index + 1, n_moves);
    }
    while let Some(judged) = answers.join_next().await {
        count(judged??);
    }
    Ok((times, wrong))
}

fn ms_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// Reads the answer to its end. `None` is right.
async fn judge(head: Response, digest: &str, tokens: &[u64]) -> anyhow::Result<Option<Wrong>> {
    let text = head.text().await?;
    let (mut named, mut found) = (Vec::new(), Vec::new());
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            break;
        }
        let chunk: Value = serde_json::from_str(data).context("an event that is no JSON")?;
        ensure!(chunk.get("error").is_none(), "an answer broke off: {data}");
        let generation = chunk["pleach_generation"].as_str().unwrap_or_default().to_owned();
        if !named.contains(&generation) {
            named.push(generation);
        }
        let ids = chunk["choices"][0]["token_ids"].as_array();
        found.extend(ids.into_iter().flatten().filter_map(Value::as_u64));
    }
    if named.len() == 1 && named[0] != digest {
        return Ok(Some(Wrong::Stale));
    }
    Ok((named.len() != 1 || found != tokens).then_some(Wrong::Mixed))
}

fn outcome(
    times: &Times,
    wrong: &HashMap<&'static str, usize>,
    n_clients: usize,
    foreign_share: Option<f64>,
) -> anyhow::Result<Outcome> {
    let n_moves = times.admitted.len();
    let (stale, mixed) = (wrong["stale"], wrong["mixed"]);
    let admitted = summary(times.admitted.iter().copied())?;
    let bound = Bound::AtMost(MS_AT_MOST);
    let is_met = bound.is_met(admitted.p99) && stale + mixed == 0;
    let rows = [
        ("moved → next request is in the queue", Some(admitted), Some(bound)),
        ("a rollback's own answer", Summary::of(times.rollback.clone()), None),
        ("a PUT's own answer (reads and packs)", Summary::of(times.put.clone()), None),
    ];
    let title = format!(
        "{n_moves} moves of an alias, {n_clients} clients on others, {IN_FLIGHT_MAX} answers in flight"
    );
    let mut table =
        format!("**{title}**\n\n| | ms P50 | P99 | most | bound of P99 |\n|---|---|---|---|---|\n");
    for (name, ms, bound) in rows {
        let Some(ms) = ms else { continue };
        let cell = verdict(bound, bound.map(|bound| bound.is_met(ms.p99)));
        // Writing to a string cannot fail.
        let _ =
            writeln!(table, "| {name} | {:.2} | {:.2} | {:.2} | {cell} |", ms.p50, ms.p99, ms.max);
    }
    let _ = writeln!(
        table,
        "\nstale answers: {stale}, mixed or wrong ones: {mixed}, of {n_moves}; others used {:.1} % of the machine",
        100.0 * foreign_share.unwrap_or(f64::NAN)
    );
    let json = json!({
        "title": title,
        "admitted_ms": rows[0].1,
        "rollback_ms": rows[1].1,
        "put_ms": rows[2].1,
        "stale": stale,
        "mixed": mixed,
        "bound": bound,
        "foreign_share": foreign_share,
        "is_met": is_met,
    });
    Ok(Outcome { table, json, is_met })
}
