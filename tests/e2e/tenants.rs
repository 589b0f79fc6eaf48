//! `pleach tenant` beside a running server: one store, two processes.

use std::{path::Path, time::Duration};

use reqwest::StatusCode;
use serde_json::Value;

use crate::{
    program::{Run, program, run},
    server::{BASE, Server, chat_body},
};

/// A change by another process is noticed within a second; a busy machine may take longer to run the test.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

fn tenant(home: &Path, arguments: &[&str]) -> Run {
    let mut command = program();
    command.env("PLEACH_HOME", home).arg("tenant").args(arguments);
    run(&mut command, "")
}

fn succeed(home: &Path, arguments: &[&str]) -> String {
    let done = tenant(home, arguments);
    assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
    done.out.trim_end().to_owned()
}

async fn status(server: &Server, key: Option<&str>) -> StatusCode {
    let body = chat_body(BASE, "Hi", 1);
    let mut request = server.http.post(format!("{}/v1/chat/completions", server.url)).json(&body);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    request.send().await.unwrap().status()
}

async fn until_status(server: &Server, key: Option<&str>, expected: StatusCode) {
    let noticed = async {
        while status(server, key).await != expected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let noticed = tokio::time::timeout(NOTICED_WITHIN, noticed).await;
    assert!(noticed.is_ok(), "not {expected}: {}", server.log());
}

#[tokio::test]
async fn a_key_is_made_used_and_revoked() {
    let server = Server::start(&[]);
    let home = server.home();
    server.assert_serves().await;
    let id = succeed(home, &["add", "acme", "--requests-per-minute", "1000", "--weight", "2"]);
    assert!(id.starts_with("ten_"), "{id}");
    let made = tenant(home, &["key", "add", "acme", "--name", "laptop", "--scopes", "infer,train"]);
    let key = made.out.trim().to_owned();
    assert!(key.starts_with("plk_") && !made.err.contains(&key), "{made:?}");
    // From now on nobody is let in without one.
    until_status(&server, None, StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(&server, Some(&key)).await, StatusCode::OK);

    succeed(home, &["disable", "acme"]);
    until_status(&server, Some(&key), StatusCode::UNAUTHORIZED).await;
    succeed(home, &["enable", &id]);
    until_status(&server, Some(&key), StatusCode::OK).await;
    let key_id = key.split('_').nth(1).unwrap();
    succeed(home, &["key", "revoke", "acme", key_id]);
    until_status(&server, Some(&key), StatusCode::UNAUTHORIZED).await;
    let secret = key.rsplit('_').next().unwrap();
    assert!(!server.log().contains(secret), "{}", server.log());
}

#[test]
fn tenants_are_listed_and_changed_in_tables_and_json() {
    let home = crate::program::scratch_folder();
    let home = home.path();
    assert!(succeed(home, &["list"]).starts_with("ID"));
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&succeed(home, &[arguments, &["--json"]].concat())).unwrap()
    };
    let made = json(&["add", "acme", "--adapter-bytes", "2GiB"]);
    assert_eq!(made["quotas"]["adapter_bytes"], 2_u64 << 30, "{made}");
    let id = made["id"].as_str().unwrap();
    let changed =
        json(&["set", "acme", "--name", "emca", "--adapter-bytes", "none", "--priority", "3"]);
    assert_eq!((&changed["id"], &changed["name"]), (&made["id"], &Value::from("emca")));
    assert_eq!(
        (&changed["quotas"]["adapter_bytes"], &changed["priority"]),
        (&Value::Null, &Value::from(3))
    );
    for shown in [succeed(home, &["show", "emca"]), succeed(home, &["list"])] {
        assert!(shown.contains(id) && shown.contains("emca"), "{shown}");
    }
    let key = json(&["key", "add", id, "--expires-in", "30d"]);
    let listed = json(&["key", "list", "emca"]);
    assert_eq!(listed[0]["id"], key["id"], "{listed}");
    assert!(listed[0].get("key").is_none() && key["key"].as_str().unwrap().starts_with("plk_"));
    assert!(succeed(home, &["key", "list", "emca"]).contains("good"));

    for (arguments, words) in [
        (&["show", "nobody"][..], "there is no tenant \"nobody\""),
        (&["show", "ten_0000000000000000"], "does not exist"),
        (&["add", "emca"], "exists already"),
        (&["add", "x", "--weight", "0"], "--weight"),
        (&["set", "emca", "--adapters", "many"], "many"),
        (&["key", "add", "emca", "--scopes", "root"], "\"root\""),
        (&["key", "add", "emca", "--expires-in", "soon"], "soon"),
        (&["key", "revoke", "emca", "0000"], "has no key"),
        (&["list", "--database", "mysql://x"], "mysql"),
    ] {
        let done = tenant(home, arguments);
        assert!(done.code != Some(0) && done.err.contains(words), "{arguments:?}: {done:?}");
    }
}

/// Beyond this machine a server needs a key, or to be told that it needs none.
#[test]
fn an_open_address_needs_a_key_in_the_store_or_on_the_command_line() {
    let home = crate::program::scratch_folder();
    let mut command = crate::server::serve(home.path(), &["--host", "0.0.0.0"]);
    let refused = run(&mut command, "");
    assert!(
        refused.code == Some(1) && refused.err.contains("pleach tenant key add"),
        "{refused:?}"
    );
    succeed(home.path(), &["add", "acme"]);
    succeed(home.path(), &["key", "add", "acme"]);
    let server = Server::start_in(home, &["--host", "0.0.0.0"]);
    assert!(!server.log().contains("WARNING"), "{}", server.log());
}
