//! SIGHUP: what the configuration file says anew is so for the next request, and no request is dropped for it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    program::{program, scratch_folder},
    server::Server,
};

const BASE: &str = "tiny";
const PATIENCE: Duration = Duration::from_secs(20);

fn fixture(path: &str) -> PathBuf {
    pleach_test_setup::fixtures().join("models").join(path)
}

fn adapter(folder: &str) -> String {
    fixture("lora/llama-plain").join(folder).display().to_string()
}

fn write(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.join("\n")).unwrap();
}

fn adapters(adapters: &[(&str, &str)]) -> String {
    let list: Vec<_> =
        adapters.iter().map(|(name, folder)| format!("{name}={}", adapter(folder))).collect();
    format!("adapter = {}", json!(list))
}

/// Sends SIGHUP and waits until the log says `told` once more.
async fn reload(server: &Server, told: &str) {
    let count = || server.log().matches(told).count();
    let before = count();
    let sent = Command::new("kill").args(["-HUP", &server.pid().to_string()]).status();
    assert!(sent.unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    while count() == before {
        assert!(Instant::now() < deadline, "never said {told:?}:\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn get(server: &Server, path: &str, key: Option<&str>) -> (u16, Value) {
    let mut request = server.http.get(format!("{}{path}", server.url));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// Name and generation of every adapter.
async fn served(server: &Server) -> Vec<(String, String)> {
    let (status, list) = get(server, "/v1/adapters", None).await;
    assert_eq!(status, 200, "{list}");
    let text = |card: &Value, key: &str| card[key].as_str().unwrap().to_owned();
    let cards = list["data"].as_array().unwrap();
    cards.iter().map(|card| (text(card, "name"), text(card, "generation"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_changed_is_taken_over_without_dropping_a_request() {
    const READ: &str = "configuration read again";
    let home = scratch_folder();
    let file = home.path().join("pleach.toml");
    write(&file, &[adapters(&[("a", "r3-all-linear"), ("b", "r1-q")])]);
    let mut command = program();
    command.env("PLEACH_HOME", home.path()).arg("serve").arg("--config").arg(&file);
    command.arg("--model").arg(fixture("llama-plain.gguf"));
    command.args(["--served-model-name", BASE, "--port", "0", "--kv-memory", "64MiB"]);
    let server = Server::run(command, None);
    let names = |served: &[(String, String)]| -> Vec<String> {
        served.iter().map(|(name, _)| name.clone()).collect()
    };
    let before = served(&server).await;
    assert_eq!(names(&before), ["a", "b"]);

    // A request that lasts over all of it.
    let body = json!({"model": "a", "prompt": [1, 2, 3], "max_tokens": 200, "ignore_eos": true,
        "temperature": 0, "return_token_ids": true});
    let alone = server.post("/v1/completions", body.to_string()).await;
    assert_eq!(alone.status, 200, "{}", alone.body);
    let lasting = {
        let request = server.http.post(format!("{}/v1/completions", server.url));
        let request = request.header("content-type", "application/json").body(body.to_string());
        tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() })
    };

    // One goes, one comes, one is another; threads wait for a restart.
    write(&file, &["threads = 1".to_owned(), adapters(&[("a", "r1-q"), ("c", "r3-all-linear")])]);
    reload(&server, READ).await;
    let after = served(&server).await;
    assert_eq!(names(&after), ["a", "c"]);
    assert_eq!(after[0].1, before[1].1, "a has b's weights now");
    assert_eq!(after[1].1, before[0].1);
    assert!(server.log().contains("only a restart changes them"), "{}", server.log());
    let answer = lasting.await.unwrap();
    assert_eq!(answer["choices"][0]["token_ids"], alone.body["choices"][0]["token_ids"]);

    // What cannot be used changes nothing.
    for lines in [
        vec!["adaptr = []".to_owned()],
        vec![adapters(&[("a", "r1-q")]), "body-limit = \"much\"".to_owned()],
    ] {
        write(&file, &lines);
        reload(&server, "everything stays as it was").await;
        assert_eq!(served(&server).await, after);
    }
    // An adapter that cannot be loaded harms no other.
    write(&file, &[adapters(&[("a", "nowhere"), ("b", "r1-q"), ("c", "r3-all-linear")])]);
    reload(&server, READ).await;
    assert_eq!(names(&served(&server).await), ["a", "b", "c"]);
    assert!(server.log().contains("the configured adapter stays as it was"), "{}", server.log());

    // A key, and a limit.
    write(&file, &["api-key = \"one\"".to_owned(), "body-limit = \"100B\"".to_owned()]);
    reload(&server, READ).await;
    assert_eq!(get(&server, "/v1/adapters", None).await.0, 401);
    let (status, list) = get(&server, "/v1/adapters", Some("one")).await;
    assert_eq!((status, list["data"].as_array().unwrap().len()), (200, 0));
    let request = server.http.post(format!("{}/v1/completions", server.url)).bearer_auth("one");
    let request = request.header("content-type", "application/json");
    let refused = request.body(format!("{:200}", body.to_string())).send().await.unwrap();
    assert_eq!(refused.status(), 413);
    write(&file, &["api-key = \"two\"".to_owned()]);
    reload(&server, READ).await;
    assert_eq!(get(&server, "/v1/adapters", Some("one")).await.0, 401);
    assert_eq!(get(&server, "/v1/adapters", Some("two")).await.0, 200);
}
