//! A training whose server is killed goes on in the next one, and comes to the same adapter as one that nobody disturbed.

use std::{path::Path, process::Command, time::Duration};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    program::{program, run, scratch_folder},
    server::Server,
};

const BOUNDARY: &str = "border";
pub(crate) const JOBS: &str = "/v1/fine_tuning/jobs";
/// Long enough to be killed in its middle; a step takes about a millisecond.
const SETTINGS: &str = r#"{"n_epochs": 50, "batch_size": 1, "lora_rank": 4}"#;
const N_ROWS: usize = 60;
/// A killed server is taken for dead after fifteen seconds.
const PATIENCE: Duration = Duration::from_mins(3);

pub(crate) fn command(home: &Path) -> Command {
    let mut command = program();
    command.env("PLEACH_HOME", home).arg("serve").arg("--model");
    command.arg(pleach_test_setup::fixtures().join("models/llama-plain.gguf"));
    command.args(["--served-model-name", "tiny", "--port", "0", "--kv-memory", "8MiB"]);
    command
}

pub(crate) async fn get(server: &Server, path: &str) -> Value {
    server.http.get(format!("{}{path}", server.url)).send().await.unwrap().json().await.unwrap()
}

fn texts() -> Vec<Value> {
    (0..N_ROWS).map(|n| json!({"text": format!("{n} cats sat on mat {}", n * n)})).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

/// The id of a file of rows.
pub(crate) async fn new_file(server: &Server, rows: &[Value]) -> String {
    let part = |head: &str, content: &str| {
        format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {head}\r\n\r\n{content}\r\n")
    };
    let body = [
        part("name=\"purpose\"", "fine-tune"),
        part("name=\"file\"; filename=\"rows.jsonl\"", &lines(rows)),
        format!("--{BOUNDARY}--\r\n"),
    ];
    let request = server.http.post(format!("{}/v1/files", server.url)).body(body.concat());
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let response = request.header("content-type", kind).send().await.unwrap();
    let card: Value = response.json().await.unwrap();
    card["id"].as_str().unwrap_or_else(|| panic!("{card}")).to_owned()
}

async fn begin(server: &Server, settings: &str) -> String {
    let settings: Value = serde_json::from_str(settings).unwrap();
    let file = new_file(server, &texts()).await;
    let job =
        json!({"model": "tiny", "training_file": file, "seed": 7, "hyperparameters": settings});
    ask(server, &job).await
}

/// The id of a new job.
pub(crate) async fn ask(server: &Server, job: &Value) -> String {
    let reply = server.post(JOBS, job.to_string()).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    reply.body["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn wait_for(
    server: &Server,
    job: &str,
    is_there: impl Fn(&Value) -> bool,
) -> Value {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let card = get(server, &format!("{JOBS}/{job}")).await;
        assert_ne!(card["status"], "failed", "{card}");
        if is_there(&card) {
            return card;
        }
        assert!(std::time::Instant::now() < deadline, "{card}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Digest of the adapter, result file and tokens.
async fn outcome(server: &Server, job: &str) -> (Value, String, Value) {
    let card = wait_for(server, job, |card| card["status"] == "succeeded").await;
    let model = card["fine_tuned_model"].as_str().unwrap();
    let generation = get(server, &format!("/v1/adapters/{model}")).await["generation"].clone();
    let file = card["result_files"][0].as_str().unwrap();
    let path = format!("{}/v1/files/{file}/content", server.url);
    let csv = server.http.get(path).send().await.unwrap().text().await.unwrap();
    (generation, csv, card["trained_tokens"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_training_comes_to_the_same_adapter() {
    let home = scratch_folder();
    let undisturbed = Server::run(command(home.path()), None);
    let job = begin(&undisturbed, SETTINGS).await;
    let expected = outcome(&undisturbed, &job).await;
    drop(undisturbed);
    assert_eq!(expected.1.lines().count(), 1 + 50 * N_ROWS);

    let home = scratch_folder();
    let server = Server::run(command(home.path()), None);
    let job = begin(&server, SETTINGS).await;
    let is_under_way = |card: &Value| card["trained_tokens"].as_u64().is_some_and(|n| n > 0);
    let card = wait_for(&server, &job, is_under_way).await;
    assert_eq!(card["status"], "running", "it was too fast to be killed");
    // Killed hard.
    drop(server);
    let server = Server::run(command(home.path()), None);
    let found = outcome(&server, &job).await;
    let events = get(&server, &format!("{JOBS}/{job}/events?limit=10000")).await;
    let events = events["data"].as_array().unwrap().iter();
    let resumed = events.filter_map(|event| {
        event["message"].as_str()?.strip_prefix("Training goes on after step ")
    });
    let steps: Vec<u64> = resumed.map(|step| step.parse().unwrap()).collect();
    assert!(steps.len() == 1 && steps[0] > 0, "it began anew: {steps:?}");
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_comes_to_what_the_command_line_comes_to() {
    let home = scratch_folder();
    let server = Server::run(command(home.path()), None);
    let job = begin(
        &server,
        r#"{"n_epochs": 2, "batch_size": 3, "lora_rank": 4, "learning_rate_multiplier": 2}"#,
    )
    .await;
    let (generation, csv, tokens) = outcome(&server, &job).await;

    let (data, out) = (home.path().join("rows.jsonl"), home.path().join("offline"));
    std::fs::write(&data, lines(&texts())).unwrap();
    let mut offline = program();
    offline.arg("train").arg("--model");
    offline.arg(pleach_test_setup::fixtures().join("models/llama-plain.gguf"));
    offline.arg("--data").arg(&data).arg("--out").arg(&out).args(["--seed", "7", "--epochs", "2"]);
    offline.args(["--batch-size", "3", "--rank", "4", "--learning-rate-multiplier", "2", "-q"]);
    let trained = run(&mut offline, "");
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert_eq!(json!(trained.out.trim()), generation);
    assert_eq!(std::fs::read_to_string(out.join("results.csv")).unwrap(), csv);
    let report: Value =
        serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["tokens"], tokens);
}
