//! Keys, full queues, vanishing clients, failing steps, shut-down.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use futures_util::StreamExt;
use pleach_engine::engine::EngineConfig;
use serde_json::json;
use tower::ServiceExt;

use crate::support::{Server, Setup, ids, post, says, serve};

async fn slow(step: Duration) -> Server {
    let server = serve(Setup { tokens: ids(&"x".repeat(200)), ..Setup::default() }).await;
    server.script.lock().unwrap().step = step;
    server
}

fn chat_body(stream: bool) -> String {
    json!({"model": "tiny", "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
        .to_string()
}

#[tokio::test]
async fn without_the_key_v1_is_closed_and_probes_are_open() {
    let server = serve(Setup { api_key: Some("secret"), ..Setup::default() }).await;
    let with = |authorization: Option<&str>| {
        let mut request = Request::get("/v1/models");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        request.body(Body::empty()).unwrap()
    };
    for authorization in
        [None, Some("Bearer wrong"), Some("Bearer "), Some("secret"), Some("Basic secret")]
    {
        let reply = server.send(with(authorization)).await;
        assert_eq!(reply.status, 401, "{authorization:?}");
        assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        assert!(!reply.text.contains("secret"));
    }
    assert_eq!(server.send(with(Some("Bearer secret"))).await.status, 200);
    assert_eq!(server.send(with(Some("bearer secret"))).await.status, 200);
    assert_eq!(server.chat(json!({})).await.status, 401);
    for path in ["/health", "/ping", "/version", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_full_queue_is_429_and_nothing_of_the_request_stays_queued() {
    let engine = EngineConfig { max_batch: 1, max_step_rows: 64, max_queue: 2, prefix_cache: true };
    let server = serve(Setup { tokens: ids(&"x".repeat(100)), engine, ..Setup::default() }).await;
    server.script.lock().unwrap().step = Duration::from_millis(5);
    // Room for three: more will never fit, and three not while another one runs.
    let reply = server.chat(json!({"n": 5})).await;
    assert_eq!(reply.status, 400);
    let error = &reply.json()["error"];
    assert_eq!((&error["param"], &error["code"]), (&json!("n"), &json!("invalid_value")));
    let (reply, other) =
        tokio::join!(biased; server.chat(json!({"n": 3})), server.chat(json!({"n": 1})));
    let (reply, other) = if reply.status == 200 { (other, reply) } else { (reply, other) };
    assert_eq!((reply.status, other.status), (StatusCode::TOO_MANY_REQUESTS, StatusCode::OK));
    assert_eq!(reply.headers["retry-after"], "1");
    let error = &reply.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("rate_limit_exceeded"))
    );
    server.script.lock().unwrap().step = Duration::ZERO;
    // The refused choices leave at the next step.
    for _ in 0..200 {
        if server.chat(json!({"n": 3})).await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the queue stays full");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_its_sequences() {
    let server = slow(Duration::from_millis(5)).await;
    let response =
        server.router.clone().oneshot(post("/v1/chat/completions", chat_body(true))).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    body.next().await.unwrap().unwrap();
    // The numbers follow the events by a moment.
    while server.state.engine.stats().running != 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(body);
    server.idle().await;
    assert!(server.state.engine.stats().completion_tokens < 100);
    assert!(server.get("/metrics").await.text.contains("finished_reason=\"abort\""));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_cancels_its_sequences() {
    let server = slow(Duration::from_millis(5)).await;
    let waiting = server.chat(json!({"n": 3}));
    assert!(tokio::time::timeout(Duration::from_millis(60), waiting).await.is_err());
    server.idle().await;
    assert!(server.state.engine.stats().completion_tokens < 3 * 100);
}

#[tokio::test]
async fn a_failing_step_is_500_or_an_event_and_harms_no_later_request() {
    let server = says("x").await;
    server.script.lock().unwrap().fail = true;
    let reply = server.chat(json!({})).await;
    assert_eq!(reply.status, 500);
    assert_eq!(reply.json()["error"]["type"], "server_error");
    let events = server.chat(json!({"stream": true})).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "internal_error");
    server.script.lock().unwrap().fail = false;
    assert_eq!(server.chat(json!({})).await.status, 200);
    assert!(
        server
            .get("/metrics")
            .await
            .text
            .contains("pleach_request_errors_total{code=\"internal_error\"} 2")
    );
}

#[tokio::test]
async fn while_stopping_health_and_new_requests_are_503() {
    let server = says("x").await;
    assert_eq!(server.get("/health").await.status, 200);
    server.state.stopping.store(true, Ordering::Relaxed);
    for reply in [
        server.get("/health").await,
        server.chat(json!({})).await,
        server.complete(json!({})).await,
    ] {
        assert_eq!(reply.status, 503);
        assert_eq!(reply.json()["error"]["code"], "shutting_down");
    }
}

#[tokio::test]
async fn health_is_503_once_the_engine_has_ended() {
    let server = says("x").await;
    server.state.engine.shutdown(Duration::ZERO).await;
    assert_eq!(server.get("/health").await.status, 503);
    assert_eq!(server.chat(json!({})).await.status, 503);
}

#[tokio::test]
async fn shutting_down_ends_running_streams_with_an_error_after_the_grace() {
    let server = slow(Duration::from_millis(20)).await;
    let router = server.router.clone();
    let request = post("/v1/chat/completions", chat_body(true));
    let stream = tokio::spawn(async move {
        let body = router.oneshot(request).await.unwrap().into_body();
        axum::body::to_bytes(body, usize::MAX).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.state.engine.shutdown(Duration::from_millis(50)).await;
    let text = String::from_utf8(stream.await.unwrap().to_vec()).unwrap();
    assert!(text.contains("\"shutting_down\""), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"));
    assert_eq!(server.chat(json!({})).await.status, 503);
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let server = says("x").await;
    let made = server.get("/health").await.headers["x-request-id"].clone();
    assert!(made.to_str().unwrap().starts_with("req-"));
    let with =
        |id: &str| Request::get("/nowhere").header("x-request-id", id).body(Body::empty()).unwrap();
    assert_eq!(server.send(with("mine-1")).await.headers["x-request-id"], "mine-1");
    assert_ne!(server.send(with("not sane")).await.headers["x-request-id"], "not sane");
}
