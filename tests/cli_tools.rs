//! The real binary's `pull`, `bench`, `chat` and `doctor` against a small server on the loopback interface. No model,
//! no network.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

const MODEL_FILE: &[u8] = b"GGUF and more";

/// Bodies of the completions that were asked for.
type Seen = Arc<Mutex<Vec<Value>>>;

async fn start() -> (String, Seen) {
    let seen = Seen::default();
    let models = json!({"object": "list", "data": [
        {"id": "base", "object": "model"},
        {"id": "pirate", "object": "model", "parent": "base"},
        {"id": "poet", "object": "model", "parent": "base"},
    ]});
    let router = Router::new()
        .route("/", get(|| async { "hub" }))
        .route("/health", get(|| async { "" }))
        .route("/v1/models", get(move || async move { Json(models) }))
        .route("/v1/chat/completions", post(chat))
        .route("/o/r/resolve/main/m.gguf", get(|| async { MODEL_FILE }))
        .with_state(Arc::clone(&seen));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

/// Answers three words; refuses when the last message is `refuse`.
async fn chat(State(seen): State<Seen>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let last = request["messages"].as_array().unwrap().last().unwrap()["content"].clone();
    let model = request["model"].as_str().unwrap().to_owned();
    seen.lock().unwrap().push(request);
    if last == "refuse" {
        let error = json!({"error": {"message": "not today", "type": "server_error"}});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(error)).into_response();
    }
    let word = |word| json!({"choices": [{"index": 0, "delta": {"content": word}}]}).to_string();
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}});
    let events = [word("I "), word("am "), word(&model), usage.to_string(), "[DONE]".to_owned()];
    let events: String =
        events.iter().flat_map(|event| ["data: ", event.as_str(), "\n\n"]).collect();
    ([(header::CONTENT_TYPE, "text/event-stream")], events).into_response()
}

/// What a run of the binary gave.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(home: &Path, hub: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(arguments).kill_on_drop(true);
    for name in ["PLEACH_URL", "PLEACH_API_KEY", "PLEACH_CONFIG", "PLEACH_LOG", "HF_TOKEN"] {
        command.env_remove(name);
    }
    command.env("PLEACH_HOME", home).env("HF_ENDPOINT", hub);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn pleach(home: &Path, hub: &str, arguments: &[&str], input: &str) -> Run {
    let mut child = command(home, hub, arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(Duration::from_mins(1), child.wait_with_output()).await;
    let output = output.expect("the program ends").unwrap();
    Run {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn pull_prints_the_path_and_needs_the_hub_once() {
    let (url, _) = start().await;
    let home = tempfile::tempdir().unwrap();
    for hub in [url.as_str(), "http://127.0.0.1:1"] {
        let run = pleach(home.path(), hub, &["pull", "hf:o/r:m.gguf"], "").await;
        assert_eq!(run.code, Some(0), "{}", run.err);
        let path = Path::new(run.out.trim());
        assert!(path.starts_with(home.path()), "{}", run.out);
        assert_eq!(std::fs::read(path).unwrap(), MODEL_FILE);
    }
}

#[tokio::test]
async fn pull_says_what_is_wrong() {
    let (url, _) = start().await;
    let home = tempfile::tempdir().unwrap();
    let cases = [
        ("no-such-model", "smollm2-135m-instruct"),
        ("hf:o", "hf:OWNER/REPO"),
        ("hf:o/r:other.gguf", "404"),
        ("hf:o/none", "404"),
    ];
    for (name, says) in cases {
        let run = pleach(home.path(), &url, &["pull", name], "").await;
        assert_eq!(run.code, Some(1), "{name}: {}", run.out);
        assert!(run.err.contains(says) && run.out.is_empty(), "{name}: {}", run.err);
    }
    let file = home.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let run = pleach(&file, &url, &["pull", "hf:o/r:m.gguf"], "").await;
    assert!(run.code == Some(1) && run.err.contains("cannot create"), "{}", run.err);
}

#[cfg(unix)]
#[tokio::test]
async fn serve_that_is_told_to_stop_before_it_serves_ends_well() {
    // A hub that takes connections and says nothing.
    let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", hub.local_addr().unwrap());
    let home = tempfile::tempdir().unwrap();
    let arguments = ["serve", "--port", "0", "--model", "hf:o/r:m.gguf"];
    let mut child = command(home.path(), &url, &arguments).spawn().unwrap();
    let patience = Duration::from_secs(20);
    let asked = tokio::time::timeout(patience, hub.accept()).await;
    let _connection = asked.expect("the hub is asked").unwrap();
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(patience, child.wait()).await;
    assert_eq!(ended.expect("it ends at once").unwrap().code(), Some(0));
}

#[tokio::test]
async fn bench_reports_as_table_and_json() {
    let (url, seen) = start().await;
    let home = tempfile::tempdir().unwrap();
    let json_path = home.path().join("report.json");
    let arguments = [
        "bench",
        "--url",
        &format!("{url}/v1/"),
        "--requests",
        "12",
        "--concurrency",
        "3",
        "--output-tokens",
        "3",
        "--adapters",
        "all",
        "--mix",
        "distinct",
        "--json",
        json_path.to_str().unwrap(),
        "--samples",
    ];
    let run = pleach(home.path(), &url, &arguments, "").await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("pirate") && run.out.contains("P99"), "{}", run.out);
    let report: Value = serde_json::from_slice(&std::fs::read(json_path).unwrap()).unwrap();
    assert_eq!(report["settings"]["model"], "base");
    assert_eq!(report["overall"]["n_ok"], 12);
    assert_eq!(report["overall"]["output_tokens"], 36);
    assert_eq!(report["overall"]["prompt_tokens"], 108);
    assert_eq!(
        (&report["adapters"]["pirate"]["n_ok"], &report["adapters"]["poet"]["n_ok"]),
        (&json!(6), &json!(6))
    );
    assert_eq!(report["samples"].as_array().unwrap().len(), 12);
    assert!(report["overall"]["ttft_ms"]["p99"].as_f64().unwrap() > 0.0);
    assert_eq!(seen.lock().unwrap().len(), 12);
}

#[tokio::test]
async fn bench_without_a_server_or_with_bad_settings_fails() {
    let home = tempfile::tempdir().unwrap();
    let nobody = ["--url", "http://127.0.0.1:1"];
    let cases: [(&[&str], i32, &str); 5] = [
        (&[], 1, "nothing answers at http://127.0.0.1:1"),
        (&["--model", "m", "--requests", "2"], 1, "not a single request succeeded"),
        (&["--model", "m", "--concurrency", "0"], 1, "--concurrency"),
        (&["--model", "m", "--prompt-form", "ids"], 1, "completions"),
        (&["--model", "m", "--mix", "zipf:x"], 2, "unknown mix"),
    ];
    for (more, code, says) in cases {
        let arguments = [&["bench"], &nobody[..], more].concat();
        let run = pleach(home.path(), nobody[1], &arguments, "").await;
        assert_eq!(run.code, Some(code), "{more:?}: {}", run.err);
        assert!(run.err.contains(says), "{more:?}: {}", run.err);
    }
}

#[tokio::test]
async fn chat_remembers_and_obeys_commands() {
    let (url, seen) = start().await;
    let home = tempfile::tempdir().unwrap();
    let input = "hello\n/model poet\nagain\n/system be brief\nlast\n/quit\nnever\n";
    let run = pleach(home.path(), &url, &["chat", "--url", &url, "--seed", "7"], input).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(run.out, "I am base\nI am poet\nI am poet\n");
    let seen = seen.lock().unwrap();
    let roles = |index: usize| -> Vec<String> {
        let messages = seen[index]["messages"].as_array().unwrap();
        messages
            .iter()
            .map(|message| format!("{}: {}", message["role"], message["content"]))
            .collect()
    };
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0]["seed"], 7);
    assert_eq!(
        roles(1),
        [r#""user": "hello""#, r#""assistant": "I am base""#, r#""user": "again""#]
    );
    assert_eq!(roles(2), [r#""system": "be brief""#, r#""user": "last""#]);
}

#[tokio::test]
async fn chat_fails_with_the_reason() {
    let (url, _) = start().await;
    let home = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str, &str); 4] = [
        (&["--url", &url], "refuse\n", "not today"),
        (&["--url", &url, "--model", "nobody"], "hello\n", "base, pirate, poet"),
        (&["--url", &url], "/dance\n", "/dance"),
        (&["--url", "http://127.0.0.1:1"], "hello\n", "nothing answers"),
    ];
    for (more, input, says) in cases {
        let run = pleach(home.path(), &url, &[&["chat"], more].concat(), input).await;
        assert_eq!(run.code, Some(1), "{more:?}");
        assert!(run.err.contains(says), "{more:?}: {}", run.err);
    }
}

#[tokio::test]
async fn doctor_finds_what_is_here() {
    let (url, _) = start().await;
    let home = tempfile::tempdir().unwrap();
    let pulled = pleach(home.path(), &url, &["pull", "--quiet", "hf:o/r:m.gguf"], "").await;
    assert!(pulled.code == Some(0) && pulled.err.is_empty(), "{}", pulled.err);
    let run = pleach(home.path(), &url, &["doctor", "--json", "--url", &url], "").await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    let findings: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(findings["home"]["models"][0]["name"], "hf:o/r:m.gguf");
    assert_eq!(findings["home"]["models"][0]["is_verified"], true);
    assert_eq!(findings["server"]["status"], 200);
    assert_eq!(findings["problems"], json!([]));
    assert!(findings["machine"]["cores_usable"].as_u64().unwrap() >= 1);
    let text = pleach(home.path(), &url, &["doctor", "--url", "http://127.0.0.1:1"], "").await;
    assert_eq!(text.code, Some(0), "no server is no problem: {}", text.err);
    assert!(text.out.contains("kernels") && text.out.contains("hf:o/r:m.gguf"), "{}", text.out);
}

#[tokio::test]
async fn doctor_fails_where_models_cannot_be_kept() {
    let (url, _) = start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let run = pleach(&file, &url, &["doctor", "--url", &url], "").await;
    assert_eq!(run.code, Some(1), "{}", run.out);
    assert!(run.out.contains("PROBLEM") && run.err.contains("PLEACH_HOME"), "{}", run.err);
}
