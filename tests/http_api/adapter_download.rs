//! Downloads: a tar with the two files, byte for byte as they were registered.

use std::{collections::BTreeMap, io::Read as _};

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use pleach_adapters::Expect;
use serde_json::json;
use tower::ServiceExt as _;

use crate::{
    namespaces::tenant,
    support::{Server, says, write_adapter},
};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// The bytes of a body, or `None` if it breaks off.
async fn download(server: &Server, path: &str) -> Option<Vec<u8>> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = server.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-tar");
    let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.ok()?;
    assert_eq!(bytes.len(), length);
    Some(bytes.to_vec())
}

fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mode().unwrap(), 0o644);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    });
    entries.collect()
}

fn files(server: &Server, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let read =
        |name: &str| (name.to_owned(), std::fs::read(server.root.join(folder).join(name)).unwrap());
    [CONFIG, TENSORS].map(read).into()
}

async fn server() -> Server {
    let server = says("-----").await;
    for letter in ["a", "b"] {
        write_adapter(&server.root.join(letter), letter.chars().next().unwrap());
        let put = server.put("/v1/adapters/x", &json!({"path": letter})).await;
        assert!(put.status.is_success(), "{}", put.text);
    }
    server
}

#[tokio::test]
async fn what_was_registered_comes_back_byte_for_byte() {
    let server = server().await;
    let expected = files(&server, "b");
    // What its folder holds by now is not what is served.
    write_adapter(&server.root.join("b"), 'z');
    let archive = download(&server, "/v1/adapters/x/download").await.unwrap();
    assert_eq!(archive.len() % 512, 0);
    assert_eq!(unpack(&archive), expected);
    let earlier = &server.get("/v1/adapters/x").await.json()["history"][0]["generation"];
    let path = format!("/v1/adapters/x/download?generation={}", earlier.as_str().unwrap());
    assert_eq!(unpack(&download(&server, &path).await.unwrap()), files(&server, "a"));
    for (path, status) in [
        ("/v1/adapters/y/download".to_owned(), 404),
        (format!("/v1/adapters/x/download?generation={}", "0".repeat(64)), 404),
        (format!("/v1/adapters/x/download?generation={}", "aa".repeat(32)), 409),
        ("/v1/adapters/x/download?generation=x".to_owned(), 400),
        ("/v1/adapters/pirate/download".to_owned(), 409),
    ] {
        assert_eq!(server.get(&path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn a_folder_of_the_configuration_is_sent_as_long_as_it_is_what_was_served() {
    let server = server().await;
    write_adapter(&server.root.join("c"), 'c');
    server
        .state
        .adapters
        .register_configured("own", server.root.join("c"), Expect::Absent)
        .await
        .unwrap();
    let archive = download(&server, "/v1/adapters/own/download").await.unwrap();
    assert_eq!(unpack(&archive), files(&server, "c"));
    write_adapter(&server.root.join("c"), 'z');
    let reply = server.get("/v1/adapters/own/download").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (409, &json!("generation_conflict"))
    );
}

#[tokio::test]
async fn the_owner_says_whose_of_two_of_one_name() {
    let server = server().await;
    let one = server.seen_by(&tenant(&server, "one").await);
    for folder in ["c", "d"] {
        write_adapter(&server.root.join(folder), folder.chars().next().unwrap());
        let put = one.put("/v1/adapters/x", &json!({"path": folder})).await;
        assert!(put.status.is_success(), "{}", put.text);
    }
    let sent = async |server: &Server, query: &str| {
        unpack(&download(server, &format!("/v1/adapters/x/download{query}")).await.unwrap())
    };
    let (own, shared) = (files(&server, "d"), files(&server, "b"));
    assert_eq!((sent(&one, "").await, sent(&one, "?owner=own").await), (own.clone(), own));
    assert_eq!(
        (sent(&one, "?owner=shared").await, sent(&server, "").await),
        (shared.clone(), shared)
    );
    let earlier = async |server: &Server, query: &str| {
        let card = server.get(&format!("/v1/adapters/x{query}")).await.json();
        card["history"][0]["generation"].as_str().unwrap().to_owned()
    };
    let (of_own, of_shared) = (earlier(&one, "").await, earlier(&one, "?owner=shared").await);
    let query = format!("?owner=shared&generation={of_shared}");
    assert_eq!(sent(&one, &query).await, files(&server, "a"));
    for (query, status) in [
        (format!("?owner=shared&generation={of_own}"), 404),
        (format!("?owner=own&generation={of_shared}"), 409),
        ("?owner=them".to_owned(), 400),
    ] {
        assert_eq!(
            one.get(&format!("/v1/adapters/x/download{query}")).await.status,
            status,
            "{query}"
        );
    }
    assert_eq!(one.delete("/v1/adapters/x").await.status, 200);
    assert_eq!(one.get("/v1/adapters/x/download?owner=own").await.status, 404);
    assert_eq!(sent(&one, "").await, files(&server, "b"));
}

/// Whichever of two equal ones came first: files that are stored stay what they are.
#[tokio::test]
async fn a_folder_that_changed_harms_no_name_whose_files_are_stored_too() {
    let server = server().await;
    write_adapter(&server.root.join("c"), 'c');
    let expected = files(&server, "c");
    let configured =
        server.state.adapters.register_configured("own", server.root.join("c"), Expect::Absent);
    configured.await.unwrap();
    assert_eq!(server.put("/v1/adapters/copy", &json!({"path": "c"})).await.status, 201);
    write_adapter(&server.root.join("c"), 'z');
    for name in ["own", "copy"] {
        let archive = download(&server, &format!("/v1/adapters/{name}/download")).await.unwrap();
        assert_eq!(unpack(&archive), expected, "{name}");
    }
    // What it was can be gone back to, as the store has it.
    assert_eq!(server.put("/v1/adapters/own", &json!({"path": "a"})).await.status, 200);
    assert_eq!(server.post("/v1/adapters/own/rollback", &json!({})).await.status, 200);
    let archive = download(&server, "/v1/adapters/own/download").await.unwrap();
    assert_eq!(unpack(&archive), expected);
}

#[tokio::test]
async fn a_damaged_file_is_never_sent_whole() {
    let server = server().await;
    let mut spoiled = files(&server, "b").remove(TENSORS).unwrap();
    let blob = server.blob_with(&spoiled);
    *spoiled.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, &spoiled).unwrap();
    assert_eq!(
        download(&server, "/v1/adapters/x/download").await,
        None,
        "the last bytes are kept back"
    );
    std::fs::write(&blob, &spoiled[1..]).unwrap();
    let reply = server.get("/v1/adapters/x/download").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (503, &json!("adapter_unavailable"))
    );
    std::fs::remove_file(&blob).unwrap();
    let reply = server.get("/v1/adapters/x/download").await;
    assert_eq!(reply.status, 503);
    assert!(
        reply.text.contains("adapter_model.safetensors is missing in the store"),
        "{}",
        reply.text
    );
    assert!(!reply.text.contains(server.blobs.to_str().unwrap()), "no places of the server");
}
