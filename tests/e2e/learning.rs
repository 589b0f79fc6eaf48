//! A round of the learning loop with the trainer and the examiner that compute: what people show an adapter becomes its next
//! generation, and what was trained to pieces does not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    program::scratch_folder,
    server::Server,
    training::{ask, command, get, new_file, wait_for},
};

pub(crate) const N_USERS: usize = 24;
const PATIENCE: Duration = Duration::from_mins(4);

/// Everything but what is learned is allowed: the model is a toy.
pub(crate) fn policy(learning_rate_multiplier: f64) -> Value {
    json!({
        "train_when": {"examples": N_USERS, "age_hours": null},
        "method": "supervised",
        "folds": 2,
        "hyperparameters": {
            "n_epochs": 6, "batch_size": 4, "learning_rate_multiplier": learning_rate_multiplier,
        },
        "gate": {
            "examples_min": 8, "groups_min": 4, "kl_max": 1e6, "length_ratio": [0.0, 1e6],
            "refusals_more_max": 1.0, "latency_ratio_max": 1e6, "anchor_tolerance": 1e6,
        },
        "rollout": {"canary": [], "watch_requests": 0},
        "probes": ["is it a cat", "who sat on the mat"],
    })
}

pub(crate) async fn put(server: &Server, path: &str, body: &Value) {
    let request = server.http.put(format!("{}{path}", server.url));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{}", response.text().await.unwrap());
}

/// A server that keeps what it answers, and the name of an adapter that has learned a little.
pub(crate) async fn school(home: &Path) -> (Server, String) {
    let mut program = command(home);
    program.arg("--capture");
    let server = Server::run(program, None);
    let texts: Vec<Value> =
        (0..N_USERS).map(|n| json!({"text": format!("{n} dogs sat on mat {}", n * n)})).collect();
    let file = new_file(&server, &texts).await;
    let settings = json!({"n_epochs": 1, "lora_rank": 4});
    let job =
        json!({"model": "tiny", "training_file": file, "seed": 7, "hyperparameters": settings});
    let job = ask(&server, &job).await;
    let done = wait_for(&server, &job, |card| card["status"] == "succeeded").await;
    let name = done["fine_tuned_model"].as_str().unwrap().to_owned();
    (server, name)
}

/// A user asks, and shows what the answer should have been.
pub(crate) async fn show(server: &Server, name: &str, user: usize, question: &str, answer: &str) {
    let chat = json!({
        "model": name, "max_tokens": 4, "safety_identifier": format!("user {user}"),
        "messages": [{"role": "user", "content": question}],
    });
    let reply = server.post("/v1/chat/completions", chat.to_string()).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let said = json!({
        "inference_id": reply.body["id"], "metric_name": "demonstration", "value": answer,
    });
    let given = server.post("/v1/feedback", said.to_string()).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.body);
}

async fn shown(server: &Server, name: &str, turn: usize) {
    for user in 0..N_USERS {
        let question = format!("is {user} a cat in turn {turn}");
        show(server, name, user, &question, &format!("yes {user} is a cat")).await;
    }
}

/// Of a round's verdict.
pub(crate) fn check<'a>(round: &'a Value, name: &str) -> &'a Value {
    let checks = round["verdict"]["checks"].as_array().unwrap_or_else(|| panic!("{round}"));
    checks.iter().find(|check| check["name"] == name).unwrap()
}

/// The newest round, once it has ended and is not `before`.
pub(crate) async fn ended(server: &Server, rounds: &str, before: &Value) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let round = get(server, rounds).await["data"][0].clone();
        if round["id"] != *before && !round["ended_at"].is_null() {
            return round;
        }
        assert!(Instant::now() < deadline, "{round}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_show_becomes_the_next_generation() {
    let home = scratch_folder();
    let (server, name) = school(home.path()).await;
    let name = name.as_str();
    let adapter = format!("/v1/adapters/{name}");
    let rounds = format!("{adapter}/rounds");
    let first = get(&server, &adapter).await["generation"].clone();

    put(&server, &format!("{adapter}/policy"), &policy(20.0)).await;
    shown(&server, name, 0).await;
    let round = ended(&server, &rounds, &Value::Null).await;
    assert_eq!(round["state"], "promoted", "{round}\n{}", server.log());
    assert_eq!(round["data"]["rows"], N_USERS);
    assert!(check(&round, "gain_over_current")["value"].as_f64().unwrap() > 0.0, "{round}");
    assert!(check(&round, "kl")["value"].is_f64(), "{round}");
    let second = get(&server, &adapter).await["generation"].clone();
    assert_eq!(second, round["candidate"]);
    assert_eq!(round["parent"], first);
    let lineage = format!("{adapter}/generations/{}/lineage", second.as_str().unwrap());
    let lineage = get(&server, &lineage).await;
    assert_eq!(lineage["parent"], first, "it went on from there: {lineage}");

    // A learning rate that leaves nothing of what was known.
    put(&server, &format!("{adapter}/policy"), &policy(100_000.0)).await;
    shown(&server, name, 1).await;
    let refused = ended(&server, &rounds, &round["id"]).await;
    assert_eq!(refused["state"], "refused", "{refused}\n{}", server.log());
    assert_eq!(get(&server, &adapter).await["generation"], second);
}
