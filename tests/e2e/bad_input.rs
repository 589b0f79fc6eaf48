//! Requests and clients that are wrong, slow, gone, or too many: each gets its answer, and the server goes on serving.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    raw_client::RawClient,
    server::{BASE, Reply, Server, chat_body},
};

/// More than any test waits for: about half a minute of tokens.
const ENDLESS: u32 = 8000;

fn endless(stream: bool) -> Value {
    let mut body = chat_body(BASE, "Count.", ENDLESS);
    body["ignore_eos"] = json!(true);
    body["stream"] = json!(stream);
    body
}

/// Checks the whole error, and that the server answers others.
async fn assert_refused(server: &Server, reply: &Reply, status: u16, code: &str, param: &Value) {
    let error = &reply.body["error"];
    assert_eq!(reply.status.as_u16(), status, "{}", reply.body);
    assert_eq!((&error["code"], &error["param"]), (&json!(code), param), "{}", reply.body);
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    assert!(error["type"].is_string(), "{error}");
    assert!(reply.headers.contains_key("x-request-id"), "{:?}", reply.headers);
    server.assert_serves().await;
}

#[tokio::test]
async fn bodies_that_are_no_json() {
    let server = Server::shared();
    let not_utf8 =
        b"{\"model\":\"smollm2\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}";
    let deep = "[".repeat(100_000);
    let cases: [(&[u8], &str); 6] = [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{\"model\": \"smollm2\",}", "invalid_json"),
        (b"[]", "invalid_json"),
        (deep.as_bytes(), "invalid_json"),
        (not_utf8, "invalid_utf8"),
    ];
    for (body, code) in cases {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let reply = server.post(path, body.to_vec()).await;
            assert_refused(&server, &reply, 400, code, &Value::Null).await;
        }
    }
}

#[tokio::test]
async fn fields_of_wrong_type_or_range() {
    let server = Server::shared();
    let cases = [
        ("messages", json!([]), "invalid_value"),
        ("messages", json!("hello"), "invalid_type"),
        ("temperature", json!(-0.5), "invalid_value"),
        ("temperature", json!("warm"), "invalid_type"),
        ("top_p", json!(1.5), "invalid_value"),
        ("top_k", json!(-7), "invalid_value"),
        ("n", json!(-1), "invalid_value"),
        ("n", json!(1.5), "invalid_type"),
        ("max_tokens", json!(-5), "invalid_value"),
        ("seed", json!("x"), "invalid_type"),
        ("stop", json!([1]), "invalid_type"),
        ("presence_penalty", json!(-3), "invalid_value"),
        ("logit_bias", json!({"x": 1}), "invalid_value"),
        ("stream", json!("yes"), "invalid_type"),
        ("tools", json!([{"type": "function"}]), "unsupported_parameter"),
    ];
    for (param, value, code) in cases {
        let mut body = chat_body(BASE, "Hi", 1);
        body[param] = value;
        let reply = server.chat(&body).await;
        assert_refused(&server, &reply, 400, code, &json!(param)).await;
    }
    let reply = server.chat(&json!({"model": BASE})).await;
    assert_refused(&server, &reply, 400, "missing_required_parameter", &json!("messages")).await;
}

#[tokio::test]
async fn models_that_are_not_served() {
    let server = Server::shared();
    for name in ["nobody", "smollm2:nobody", "nobody:pirate", ""] {
        let reply = server.chat(&chat_body(name, "Hi", 1)).await;
        assert_refused(&server, &reply, 404, "model_not_found", &json!("model")).await;
    }
}

#[tokio::test]
async fn prompts_and_bodies_that_are_too_long() {
    let server = Server::shared();
    // The context is 8192 tokens, and this many words are more.
    let reply = server.chat(&chat_body(BASE, &"word ".repeat(9000), 1)).await;
    assert_refused(&server, &reply, 400, "context_length_exceeded", &json!("messages")).await;
    let reply = server
        .post("/v1/completions", json!({"model": BASE, "prompt": vec![5; 8192]}).to_string())
        .await;
    assert_refused(&server, &reply, 400, "context_length_exceeded", &json!("prompt")).await;
    // The limit is 2 MiB.
    let reply = server.chat(&chat_body(BASE, &"x".repeat(3 << 20), 1)).await;
    assert_refused(&server, &reply, 413, "request_too_large", &Value::Null).await;
}

#[tokio::test]
async fn clients_that_stop_in_the_middle_hold_up_nobody() {
    let server = Server::shared();
    let mut in_head = RawClient::connect(&server).await;
    in_head.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-").await;
    let mut in_body = RawClient::connect(&server).await;
    in_body
        .write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
              content-length: 1000\r\n\r\n{\"model\": ",
        )
        .await;
    server.assert_serves().await;
    drop(in_head);
    drop(in_body);
    let mut no_http = RawClient::connect(&server).await;
    no_http.write(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n").await;
    no_http.read_to_end().await;
    assert!(no_http.received.starts_with("HTTP/1.1 400"), "{}", no_http.received);
    server.assert_serves().await;
}

#[tokio::test]
async fn sequences_of_clients_that_vanish_are_cancelled() {
    let server = Server::start(&[]);
    let mut streaming = RawClient::chat(&server, &endless(true)).await;
    streaming.read_until("\"content\":").await;
    let whole = RawClient::chat(&server, &endless(false)).await;
    server.wait_for_running(2).await;
    drop(streaming);
    server.wait_for_running(1).await;
    drop(whole);
    server.wait_for_running(0).await;
    let n_tokens = server.metric("vllm:generation_tokens_total").await;
    assert!(n_tokens < f64::from(ENDLESS), "it ran to its end: {n_tokens} tokens");
    server.assert_serves().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let server = Server::start(&["--max-batch", "1", "--max-queue", "1"]);
    let mut running = RawClient::chat(&server, &endless(true)).await;
    running.read_until("\"content\":").await;
    let waiting = RawClient::chat(&server, &endless(true)).await;
    server.wait_for_waiting(1).await;
    let reply = server.chat(&chat_body(BASE, "Hi", 1)).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{}", reply.body);
    assert_eq!(reply.body["error"]["code"], "rate_limit_exceeded", "{}", reply.body);
    let seconds = reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap();
    assert!(seconds >= 1);
    // Who waits is no more bound to stay than who runs.
    drop(waiting);
    server.wait_for_waiting(0).await;
    drop(running);
    server.wait_for_running(0).await;
    server.assert_serves().await;
}
