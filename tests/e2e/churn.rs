//! Two long generations on the reference adapters while others are loaded, replaced, rolled back, removed, evicted and
//! used, on the real model: every answer has the bits that it has alone.
//!
//! `PLEACH_TEST_CASES` multiplies the changes.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    random_adapter::RandomAdapter,
    server::{BASE, Server, chat_body, reference_adapter},
};

/// Changes at least; they go on until the long generations that have begun are done.
const N_CHANGES: usize = 30;
const LONG_TOKENS: u32 = 256;
const SHORT_TOKENS: u32 = 3;
const N_FOLDERS: usize = 8;
/// Fewer than folders, so that names move, and more than places on the device.
const N_NAMES: usize = 6;
/// Two are the long generations'.
const MAX_LORAS: &str = "4";
/// So few that some must be read from disk again.
const MAX_CPU_LORAS: &str = "5";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_generations_have_the_bits_they_have_alone_while_others_come_and_go() {
    let root = tempfile::tempdir().unwrap();
    for index in 0..N_FOLDERS {
        write_folder(root.path(), index);
    }
    let mut arguments = [reference_adapter("pirate"), reference_adapter("extract")].concat();
    arguments.extend(["--adapter-root".to_owned(), root.path().display().to_string()]);
    let limits = ["--max-loras", MAX_LORAS, "--max-cpu-loras", MAX_CPU_LORAS];
    arguments.extend(limits.map(str::to_owned));
    let server = Server::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let server = Arc::new(server);

    let long = [
        long_body("pirate", "Tell me a long story about an old ship."),
        long_body("extract", "Ann ordered three lamps on Monday and two chairs on Friday."),
    ];
    let mut alone = Vec::new();
    for body in &long {
        alone.push(choice(server.chat(body).await));
    }
    let known = learn(&server).await;

    let cases = std::env::var("PLEACH_TEST_CASES").ok().and_then(|text| text.parse().ok());
    let n_changes = N_CHANGES * cases.unwrap_or(1);
    let mut names = HashSet::new();
    let (mut n_done, mut n_long) = (0, 0);
    while n_done < n_changes {
        let n_running = Arc::new(AtomicUsize::new(long.len()));
        let running: Vec<_> = long
            .iter()
            .map(|body| {
                let (server, body, n_running) =
                    (Arc::clone(&server), body.clone(), Arc::clone(&n_running));
                tokio::spawn(async move {
                    let answer = choice(server.chat(&body).await);
                    n_running.fetch_sub(1, Ordering::Relaxed);
                    answer
                })
            })
            .collect();
        while n_running.load(Ordering::Relaxed) == long.len() {
            change(&server, &known, &mut names, n_done).await;
            n_done += 1;
        }
        for (running, alone) in running.into_iter().zip(&alone) {
            // As text, so that every digit of every log-probability counts.
            assert_eq!(running.await.unwrap().to_string(), alone.to_string(), "run {n_long}");
        }
        n_long += 1;
    }
    println!("{n_done} changes during {n_long} times two long generations");
    let evicted = server.metric("pleach_adapter_evictions_total").await;
    let loaded = server.metric("pleach_adapter_loads_total").await;
    println!("{evicted} evictions, {loaded} loads from disk");
    assert!(evicted > 10.0 && loaded > 0.0);
}

/// Ranks and sets of linears differ, and so do answers.
fn write_folder(root: &Path, index: usize) {
    let adapter = RandomAdapter {
        seed: 100 + index as u64,
        rank: [4, 8, 1, 2][index % 4],
        n_modules: [7, 2, 4][index % 3],
        ..RandomAdapter::default()
    };
    adapter.write(&root.join(folder(index)));
}

fn folder(index: usize) -> String {
    format!("folder{index}")
}

fn long_body(model: &str, text: &str) -> Value {
    let mut body = chat_body(model, text, LONG_TOKENS);
    body["ignore_eos"] = json!(true);
    with_bits(body)
}

fn short_body(model: &str) -> Value {
    with_bits(chat_body(model, "How do I bake bread?", SHORT_TOKENS))
}

fn with_bits(mut body: Value) -> Value {
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    body["return_token_ids"] = json!(true);
    body
}

fn choice(reply: crate::server::Reply) -> Value {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let mut body = reply.body;
    body["choices"][0].take()
}

/// What each generation answers when nothing else runs, by digest.
async fn learn(server: &Server) -> HashMap<String, String> {
    let mut known = HashMap::new();
    for index in 0..N_FOLDERS {
        load(server, "learned", index).await;
        let reply = server.chat(&short_body("learned")).await;
        let generation = reply.body["pleach_generation"].as_str().unwrap().to_owned();
        known.insert(generation, choice(reply).to_string());
    }
    remove(server, "learned").await;
    let answers: HashSet<_> = known.values().collect();
    assert_eq!(answers.len(), N_FOLDERS, "each answers in its own way");
    known
}

/// One of everything that can happen to a name, then the name is used.
async fn change(
    server: &Server,
    known: &HashMap<String, String>,
    names: &mut HashSet<String>,
    turn: usize,
) {
    let name = format!("other{}", turn * 5 % N_NAMES);
    let is_there = names.contains(&name);
    match turn % 7 {
        3 if is_there => {
            remove(server, &name).await;
            names.remove(&name);
            return;
        }
        // 409 where it has no earlier generation.
        5 if is_there => {
            let path = format!("/v1/adapters/{name}/rollback");
            let status = server.post(&path, "{}").await.status;
            assert!(status == StatusCode::OK || status == StatusCode::CONFLICT, "{status}");
        }
        // Only used: from wherever it is by now.
        6 if is_there => {}
        _ => {
            load(server, &name, (turn * 3 + turn / 7) % N_FOLDERS).await;
            names.insert(name.clone());
        }
    }
    let reply = server.chat(&short_body(&name)).await;
    let generation = reply.body["pleach_generation"].as_str().unwrap_or_default().to_owned();
    let answer = choice(reply).to_string();
    assert_eq!(Some(&answer), known.get(&generation), "{name} in turn {turn}");
    // The base is one more neighbour.
    if turn.is_multiple_of(9) {
        choice(server.chat(&short_body(BASE)).await);
    }
}

async fn load(server: &Server, name: &str, index: usize) {
    let body = json!({"path": folder(index)}).to_string();
    let request = server.http.request(Method::PUT, format!("{}/v1/adapters/{name}", server.url));
    let request = request.header("content-type", "application/json").body(body);
    let response = request.send().await.unwrap();
    let status = response.status();
    assert!(status.is_success(), "{status} {}", response.text().await.unwrap());
}

async fn remove(server: &Server, name: &str) {
    let request = server.http.delete(format!("{}/v1/adapters/{name}", server.url));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}
