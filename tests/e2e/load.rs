//! Sixty-four clients at once on eight random adapters, both reference ones and the plain base.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    random_adapter::RandomAdapter,
    server::{BASE, Server, chat_body, reference_adapter},
};

const N_CLIENTS: usize = 64;
const N_RANDOM_ADAPTERS: usize = 8;
const MAX_TOKENS: u32 = 20;
/// So little that KV blocks are all in use, and taken back, from the first round on.
const KV_MEMORY: &str = "96MiB";
/// By how much memory may differ between equal rounds: what allocators keep. A leak of 32 KiB a request would be as much
/// over the 128 requests of two rounds.
const RSS_GROWTH_BYTES_MAX: u64 = 4 << 20;
/// Share of one core.
const IDLE_CPU_MAX: f64 = 0.01;
const IDLE_TIME: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_get_what_each_would_get_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["--kv-memory".to_owned(), KV_MEMORY.to_owned()];
    let mut models = vec![BASE.to_owned()];
    for name in ["pirate", "extract"] {
        arguments.extend(reference_adapter(name));
        models.push(format!("{BASE}:{name}"));
    }
    for i in 0..N_RANDOM_ADAPTERS {
        arguments.extend(["--adapter".to_owned(), write_adapter(folder.path(), i)]);
        models.push(format!("random-{i}"));
    }
    let server = Server::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());

    // Nothing is in the prefix cache yet; later rounds find there what the small pool has kept.
    let cold = round(&server, &models).await;
    let mut alone = Vec::new();
    for client in 0..N_CLIENTS {
        alone.push(ask(&server, &models, client).await);
    }
    assert_equal(&cold, &alone, 1);
    assert_adapters_matter(&server, &models).await;
    assert_equal(&round(&server, &models).await, &alone, 2);
    let rss_before = rss_bytes(server.pid());
    for n in 3..=4 {
        assert_equal(&round(&server, &models).await, &alone, n);
    }
    let (Some(before), Some(after)) = (rss_before, rss_bytes(server.pid())) else {
        println!("skipped: no /proc on this system to read memory and CPU time from");
        return;
    };
    println!("resident after rounds 2 and 4: {} and {} KiB", before >> 10, after >> 10);
    assert!(after < before + RSS_GROWTH_BYTES_MAX, "memory grew from {before} to {after} bytes");

    server.wait_for_running(0).await;
    let share = cpu_share(server.pid(), IDLE_TIME).await;
    println!("idle: {:.2} % of a core", share * 100.0);
    assert!(share < IDLE_CPU_MAX, "idle, but it uses {:.1} % of a core", share * 100.0);
}

fn assert_equal(crowd: &[Value], alone: &[Value], round: u32) {
    for (client, (crowd, alone)) in crowd.iter().zip(alone).enumerate() {
        // As text, so that every digit of every log-probability counts.
        assert_eq!(crowd.to_string(), alone.to_string(), "client {client} in round {round}");
    }
}

/// Adapters of several ranks and several sets of linears; `NAME=DIR`.
fn write_adapter(folder: &Path, i: usize) -> String {
    let folder = folder.join(i.to_string());
    let adapter = RandomAdapter {
        seed: i as u64 + 1,
        rank: [1, 3, 4, 8, 12, 16][i % 6],
        n_modules: [7, 3, 4, 7, 1][i % 5],
        ..RandomAdapter::default()
    };
    adapter.write(&folder);
    format!("random-{i}={}", folder.display())
}

/// All clients at once; the answers in the order of clients.
async fn round(server: &Server, models: &[String]) -> Vec<Value> {
    let mut clients = JoinSet::new();
    for client in 0..N_CLIENTS {
        let (http, url, body) = (server.http.clone(), server.url.clone(), body(models, client));
        clients.spawn(async move { (client, send(http, &url, body).await) });
    }
    let mut answers = clients.join_all().await;
    answers.sort_by_key(|(client, _)| *client);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

async fn ask(server: &Server, models: &[String], client: usize) -> Value {
    send(server.http.clone(), &server.url, body(models, client)).await
}

fn body(models: &[String], client: usize) -> Value {
    // Prompts of several lengths; no two are equal, and neither are their beginnings behind the template's.
    let topic = ["rivers", "clocks", "bread", "old maps", "the sea at night"][client % 5];
    let text = format!("{client}: tell me {} about {topic}.", "more and ".repeat(client % 7));
    let mut body = chat_body(&models[client % models.len()], &text, MAX_TOKENS);
    body["ignore_eos"] = json!(true);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    body["return_token_ids"] = json!(true);
    body
}

/// The choice: text, token ids, log-probabilities.
async fn send(http: reqwest::Client, url: &str, body: Value) -> Value {
    let request = http.post(format!("{url}/v1/chat/completions")).json(&body);
    let response = request.send().await.unwrap();
    let status = response.status();
    let mut answer: Value = response.json().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], MAX_TOKENS, "{answer}");
    answer["choices"][0].take()
}

/// One prompt on every model: as many answers as models.
async fn assert_adapters_matter(server: &Server, models: &[String]) {
    let mut answers = HashSet::new();
    for model in models {
        let mut body = chat_body(model, "How do I bake bread?", 1);
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(5);
        answers.insert(server.chat(&body).await.body["choices"][0]["logprobs"].to_string());
    }
    assert_eq!(answers.len(), models.len());
}

fn rss_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Processor time over wall time.
async fn cpu_share(pid: u32, time: Duration) -> f64 {
    let began = Instant::now();
    let before = cpu_seconds(pid);
    // This is the measurement, not a wait for something.
    tokio::time::sleep(time).await;
    (cpu_seconds(pid) - before) / began.elapsed().as_secs_f64()
}

fn cpu_seconds(pid: u32) -> f64 {
    /// `USER_HZ`, which Linux fixes on all architectures that matter.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field is the program's name in parentheses; utime and stime are fields 14 and 15.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |i: usize| fields[i - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / TICKS_PER_SECOND
}
