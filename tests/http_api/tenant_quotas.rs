//! Limits: each refuses by its name, tells when to come again, and gets back what was not used.

use std::time::Duration;

use axum::http::{HeaderMap, Method};
use futures_util::StreamExt as _;
use pleach_engine::engine::EngineConfig;
use pleach_store::Quotas;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    support::{OPERATOR_KEY, Reply, Server, Setup, ids, serve},
    tenant_support::{TestTenant, chat_body, metric, request, tenant, until},
};

fn assert_limited(reply: &Reply, words: &str) {
    let error = reply.json()["error"].clone();
    assert_eq!(reply.status, 429, "{error}");
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("rate_limit_exceeded"))
    );
    assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    assert!(reply.headers.contains_key("retry-after"));
}

fn number(headers: &HeaderMap, name: &str) -> u64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

/// A server that says `hello`.
async fn hello() -> Server {
    serve(Setup { api_key: Some(OPERATOR_KEY), tokens: ids("hello"), ..Setup::default() }).await
}

/// A server that says 200 letters, one each `step`.
async fn slow(step: Duration, engine: EngineConfig) -> Server {
    let server = serve(Setup {
        api_key: Some(OPERATOR_KEY),
        tokens: ids(&"x".repeat(200)),
        engine,
        ..Setup::default()
    })
    .await;
    server.script.lock().unwrap().step = step;
    server
}

async fn begin_stream(server: &Server, tenant: &TestTenant) -> axum::body::BodyDataStream {
    let body = chat_body(json!({"stream": true}));
    let path = "/v1/chat/completions";
    let request = request(&Method::POST, path, Some(&tenant.key), Some(&body));
    let response = server.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().into_data_stream()
}

#[tokio::test]
async fn requests_a_minute() {
    let server = hello().await;
    let quotas = Quotas { requests_per_minute: Some(3), ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    // Chats, completions, streams: all count, and all tell.
    let whole = one.chat(&server, json!({})).await;
    let body = json!({"model": "tiny", "prompt": "ab"});
    let plain = one.post(&server, "/v1/completions", &body).await;
    let stream = one.chat(&server, json!({"stream": true})).await;
    for (reply, remaining) in [(&whole, "2"), (&plain, "1"), (&stream, "0")] {
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.headers["x-ratelimit-limit-requests"], "3");
        assert_eq!(reply.headers["x-ratelimit-remaining-requests"], remaining);
        let reset = reply.headers["x-ratelimit-reset-requests"].to_str().unwrap();
        assert!(reset.ends_with('s') && reset != "0s", "{reset}");
        assert!(!reply.headers.contains_key("x-ratelimit-limit-tokens"), "no such limit is set");
    }
    let refused = one.chat(&server, json!({})).await;
    assert_limited(&refused, "3 requests a minute");
    // One comes back every 20 s.
    assert!((15..=20).contains(&number(&refused.headers, "retry-after")), "{:?}", refused.headers);
    assert_eq!(refused.headers["x-ratelimit-remaining-requests"], "0");
    // Nothing else is limited by it.
    assert_eq!(one.get(&server, "/v1/models").await.status, 200);
    let series = "pleach_tenant_refused_total{reason=\"requests_per_minute\",tenant=\"one\"}";
    assert!((metric(&server, series).await - 1.0).abs() < 0.1);
    for (status, n) in [("200", 4.0), ("429", 1.0)] {
        let series = format!("pleach_tenant_requests_total{{status=\"{status}\",tenant=\"one\"}}");
        assert!((metric(&server, &series).await - n).abs() < 0.1, "{series}");
    }
}

#[tokio::test]
async fn a_request_that_is_refused_elsewhere_costs_nothing() {
    let server = hello().await;
    let quotas = Quotas {
        requests_per_minute: Some(1),
        tokens_per_minute: Some(200),
        concurrent_requests: Some(1),
        queued_requests: Some(1),
        ..Quotas::default()
    };
    let one = tenant(&server, "one", quotas).await;
    for bad in [json!({"model": "none"}), json!({"n": "x"}), json!({"max_tokens": 201})] {
        assert!(one.chat(&server, bad).await.status.is_client_error());
    }
    let reply = one.chat(&server, json!({"max_tokens": 5})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn tokens_a_minute_are_set_aside_and_what_is_not_used_comes_back() {
    let server = hello().await;
    // Five come back each second: a few may have while the test runs.
    let quotas = Quotas { tokens_per_minute: Some(300), ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    let whole = one.chat(&server, json!({"max_tokens": 180})).await;
    let used = whole.json()["usage"]["total_tokens"].as_u64().unwrap();
    assert!((20..100).contains(&used), "{used}");
    assert_eq!(number(&whole.headers, "x-ratelimit-limit-tokens"), 300);
    let left = number(&whole.headers, "x-ratelimit-remaining-tokens");
    assert!((300 - used..330 - used).contains(&left), "{left} of 300 are left after {used}");
    // The head of a stream goes out before its end is known.
    let stream = one.chat(&server, json!({"max_tokens": 180, "stream": true})).await;
    assert!(number(&stream.headers, "x-ratelimit-remaining-tokens") <= left - 180);
    let after = one.chat(&server, json!({"max_tokens": 1})).await;
    assert!(number(&after.headers, "x-ratelimit-remaining-tokens") > 300 - 3 * used);

    let refused = one.chat(&server, json!({"max_tokens": 270})).await;
    assert_limited(&refused, "300 tokens a minute");
    assert!(number(&refused.headers, "retry-after") >= 1);
    for (kind, n) in [("prompt", used - 6), ("completion", 6)] {
        let series = format!("pleach_tenant_tokens_total{{kind=\"{kind}\",tenant=\"one\"}}");
        assert!(metric(&server, &series).await >= n as f64, "{series}");
    }
}

#[tokio::test]
async fn a_request_that_can_never_pass_is_told_so() {
    let server = hello().await;
    let quotas = Quotas { tokens_per_minute: Some(100), ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    let reply = one.chat(&server, json!({"max_tokens": 100})).await;
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status.as_u16(), &error["code"]), (400, &json!("request_exceeds_limit")));
    assert!(error["message"].as_str().unwrap().contains("can never pass"), "{error}");
    assert!(!reply.headers.contains_key("retry-after"));
    assert_eq!(reply.headers["x-ratelimit-remaining-tokens"], "100");
}

/// A chat without `max_tokens` may take the whole context: it may owe what was not set aside for it.
#[tokio::test]
async fn who_names_no_length_pays_afterwards() {
    let server =
        slow(Duration::ZERO, EngineConfig { max_batch: 8, ..EngineConfig::default() }).await;
    let quotas = Quotas { tokens_per_minute: Some(320), ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    let reply = one.chat(&server, json!({})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let used = reply.json()["usage"]["total_tokens"].as_u64().unwrap();
    assert!(used > 200);
    assert!(number(&reply.headers, "x-ratelimit-remaining-tokens") <= 345 - used);
}

#[tokio::test]
async fn concurrent_requests_and_a_client_that_vanishes() {
    let server = slow(Duration::from_millis(5), EngineConfig::default()).await;
    let quotas = Quotas { concurrent_requests: Some(1), ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let mut stream = begin_stream(&server, &one).await;
    stream.next().await.unwrap().unwrap();
    assert_limited(&one.chat(&server, json!({})).await, "1 requests at the same time");
    assert_eq!(other.chat(&server, json!({"max_tokens": 1})).await.status, 200);
    drop(stream);
    assert_eq!(one.chat(&server, json!({"max_tokens": 1})).await.status, 200);
    // Before the answer has begun, too.
    let waiting = one.chat(&server, json!({}));
    assert!(tokio::time::timeout(Duration::from_millis(60), waiting).await.is_err());
    assert_eq!(one.chat(&server, json!({"max_tokens": 1})).await.status, 200);
    server.idle().await;
}

#[tokio::test]
async fn queued_requests() {
    let engine = EngineConfig { max_batch: 1, ..EngineConfig::default() };
    let server = slow(Duration::from_millis(5), engine).await;
    let quotas = Quotas { queued_requests: Some(1), ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    let mut running = begin_stream(&server, &one).await;
    running.next().await.unwrap().unwrap();
    let queued = begin_stream(&server, &one).await;
    assert_limited(&one.chat(&server, json!({})).await, "1 waiting requests");
    let series = "pleach_tenant_refused_total{reason=\"queued_requests\",tenant=\"one\"}";
    assert!((metric(&server, series).await - 1.0).abs() < 0.1);
    drop(queued);
    let queued = begin_stream(&server, &one).await;
    drop((running, queued));
    server.idle().await;
}

#[tokio::test]
async fn nothing_is_shared_in_the_prefix_cache() {
    let server = hello().await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let two = tenant(&server, "two", Quotas::default()).await;
    let operator = another_operator(&server).await;
    let long = json!({"messages": [{"role": "user", "content": "a".repeat(100)}]});
    let salted = |salt: &str| {
        let mut long = long.clone();
        long["cache_salt"] = json!(salt);
        long
    };
    let cached = |reply: Reply| {
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(one.chat(&server, long.clone()).await), 0);
    assert!(cached(one.chat(&server, long.clone()).await) >= 96);
    assert_eq!(cached(two.chat(&server, long.clone()).await), 0);
    assert_eq!(cached(operator.chat(&server, long.clone()).await), 0);
    // Nor by a salt that is made to look like the other's.
    for salt in [one.id.as_str(), &format!("\u{14}\0\0\0\0\0\0\0{}", one.id)] {
        assert_eq!(cached(two.chat(&server, salted(salt)).await), 0);
        assert_eq!(cached(operator.chat(&server, salted(salt)).await), 0);
    }
    assert!(cached(two.chat(&server, long.clone()).await) >= 96);
}

/// The operator, as if it were a tenant with a key.
async fn another_operator(server: &Server) -> TestTenant {
    let anyone = tenant(server, "anyone", Quotas::default()).await;
    TestTenant { key: OPERATOR_KEY.to_owned(), ..anyone }
}

#[tokio::test]
async fn limits_that_are_changed_hold_at_once() {
    let server = hello().await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let operator = another_operator(&server).await;
    assert_eq!(one.chat(&server, json!({})).await.status, 200);
    let path = format!("/v1/admin/tenants/{}", one.id);
    let change = |quotas: Value| json!({"quotas": quotas});
    let limit = change(json!({"requests_per_minute": 0}));
    let changed = operator.send(&server, Method::PATCH, &path, Some(&limit)).await;
    assert_eq!(changed.json()["quotas"]["requests_per_minute"], 0, "{}", changed.text);
    assert_limited(&one.chat(&server, json!({})).await, "0 requests a minute");
    let limit = change(json!({"requests_per_minute": null}));
    operator.send(&server, Method::PATCH, &path, Some(&limit)).await;
    assert_eq!(one.chat(&server, json!({})).await.status, 200);
    until("nothing is in progress", async || server.state.engine.stats().running == 0).await;
}
