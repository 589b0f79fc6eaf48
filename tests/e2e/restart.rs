//! A server with many adapters is killed and serves again in a moment: it reads rows, and weights when they are asked for.
//!
//! Adapters: 200, or what `PLEACH_RESTART_ADAPTERS` says; 1,000 by command is what the guide tells.

use std::{path::Path, process::Command, sync::Arc, time::Instant};

use reqwest::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    program::{program, scratch_folder},
    server::Server,
};

const ADAPTERS: &str = "PLEACH_RESTART_ADAPTERS";
const N_CLIENTS: usize = 8;
const BOUNDARY: &str = "border";

fn command(home: &Path) -> Command {
    let mut command = program();
    command.env("PLEACH_HOME", home).arg("serve").arg("--model");
    command.arg(pleach_test_setup::fixtures().join("models/llama-plain.gguf"));
    command.args(["--served-model-name", "tiny", "--port", "0", "--kv-memory", "8MiB"]);
    command
}

/// The body of an upload of an adapter that no other number has.
fn upload(number: usize) -> Vec<u8> {
    let folder = pleach_test_setup::fixtures().join("models/lora/llama-plain/r1-q");
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let mut tensors = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let end = tensors.len();
    let value = 1e-6 * number as f32;
    tensors[end - 4..].copy_from_slice(&value.to_le_bytes());
    let mut body = Vec::new();
    for (name, content) in [("adapter_config.json", config), ("adapter_model.safetensors", tensors)]
    {
        let head =
            format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

async fn put_all(server: &Server, n_adapters: usize) {
    let mut clients = JoinSet::new();
    for client in 0..N_CLIENTS {
        let (http, url) = (server.http.clone(), server.url.clone());
        clients.spawn(async move {
            for number in (client..n_adapters).step_by(N_CLIENTS) {
                let put = http
                    .put(format!("{url}/v1/adapters/a{number}"))
                    .header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
                    .body(upload(number));
                let response = put.send().await.unwrap();
                assert_eq!(response.status(), StatusCode::CREATED);
            }
        });
    }
    clients.join_all().await;
}

/// Generations by name.
async fn listed(server: &Server) -> Vec<(String, String)> {
    let list = server.http.get(format!("{}/v1/adapters", server.url)).send().await.unwrap();
    let list: Value = list.json().await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let cards = list["data"].as_array().unwrap().iter();
    cards.map(|card| (text(&card["name"]), text(&card["generation"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_adapters_are_back_after_a_kill() {
    let n_adapters = std::env::var(ADAPTERS).map_or(200, |adapters| adapters.parse().unwrap());
    let home = Arc::new(scratch_folder());
    let began = Instant::now();
    let mut server = Server::run(command(home.path()), None);
    let empty = began.elapsed();
    put_all(&server, n_adapters).await;
    let before = listed(&server).await;
    assert_eq!(before.len(), n_adapters);
    server.kill();

    let began = Instant::now();
    let server = Server::run(command(home.path()), None);
    let full = began.elapsed();
    println!("serving after {full:?} with {n_adapters} adapters, {empty:?} with none");
    assert_eq!(listed(&server).await, before);
    for (name, generation) in before.iter().step_by(n_adapters.div_ceil(20)) {
        let body = json!({"model": name, "prompt": "to pleach is", "max_tokens": 1});
        let reply = server.post("/v1/completions", body.to_string()).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        assert_eq!(reply.body["pleach_generation"], json!(generation));
    }
}
