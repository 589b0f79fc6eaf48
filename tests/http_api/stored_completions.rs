//! Completions that are kept: those that ask for it, those of tenants that want it, and no others; without personal data;
//! and never at the cost of an answer.

use std::time::Duration;

use axum::http::Method;
use pleach_store::{Owner, Quotas};
use serde_json::{Value, json};

use crate::{
    support::{BASE, LOGPROB, OPERATOR_KEY, Server, Setup, ids, says, serve},
    tenant_support::{TestTenant, chat_body, metric, request, tenant},
};

const PATH: &str = "/v1/chat/completions";

async fn kept(server: &Server) -> Vec<Value> {
    server.get(&format!("{PATH}?limit=100")).await.json()["data"].as_array().unwrap().clone()
}

fn id(reply: &crate::support::Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_asks_for_it_is_kept_read_changed_and_deleted() {
    let server = says("hello").await;
    id(&server.chat(json!({})).await);
    id(&server.chat(json!({"store": false, "metadata": {"a": "b"}})).await);
    assert_eq!(kept(&server).await, [Value::Null; 0]);
    let messages = json!([
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]);
    let answer = server
        .chat(json!({
            "store": true, "metadata": {"topic": "bread", "n": "1"}, "messages": messages,
            "temperature": 0.5, "seed": 7, "model": "pirate", "episode_id": "talk-1", "max_tokens": 9,
        }))
        .await;
    let id = id(&answer);
    let answer = answer.json();
    let path = format!("{PATH}/{id}");
    let found = server.get(&path).await.json();
    for field in ["id", "created", "model", "usage", "system_fingerprint", "pleach_generation"] {
        assert_eq!(found[field], answer[field], "{field}");
    }
    assert_eq!(found["object"], "chat.completion");
    assert_eq!(found["choices"][0]["message"], answer["choices"][0]["message"]);
    assert_eq!(found["choices"][0]["finish_reason"], answer["choices"][0]["finish_reason"]);
    assert_eq!(found["metadata"], json!({"topic": "bread", "n": "1"}));
    assert_eq!((&found["temperature"], &found["seed"]), (&json!(0.5), &json!(7)));
    assert_eq!(found["episode_id"], "talk-1");

    let asked = server.get(&format!("{path}/messages")).await.json();
    let expected = json!([
        {"id": format!("{id}-0000"), "role": "system", "content": "Be short.", "content_parts": null},
        {"id": format!("{id}-0001"), "role": "user", "content": null,
         "content_parts": [{"type": "text", "text": "hi"}]},
    ]);
    assert_eq!(asked["data"], expected);
    let second = server.get(&format!("{path}/messages?limit=1&after={id}-0000")).await.json();
    assert_eq!((&second["data"][0], &second["has_more"]), (&expected[1], &json!(false)));
    let last = server.get(&format!("{path}/messages?limit=1&order=desc")).await.json();
    assert_eq!((&last["data"][0], &last["has_more"]), (&expected[1], &json!(true)));

    let changed = server.post(&path, &json!({"metadata": {"topic": "rye"}})).await.json();
    assert_eq!(changed["metadata"], json!({"topic": "rye"}));
    let server = server.restart(Setup::default()).await;
    assert_eq!(server.get(&path).await.json()["metadata"], json!({"topic": "rye"}));
    let deleted = server.delete(&path).await.json();
    let expected = json!({
        "id": id, "object": "chat.completion.deleted", "deleted": true, "generations": [],
    });
    assert_eq!(deleted, expected);
    for gone in [
        server.get(&path).await,
        server.get(&format!("{path}/messages")).await,
        server.post(&path, &json!({"metadata": {}})).await,
        server.delete(&path).await,
    ] {
        let code = &gone.json()["error"]["code"];
        assert_eq!((gone.status.as_u16(), code), (404, &json!("completion_not_found")));
    }
}

#[tokio::test]
async fn lists_are_by_model_and_pairs_in_pages() {
    let server = says("x").await;
    for n in 0..7 {
        let model = if n % 2 == 0 { BASE } else { "pirate" };
        let metadata = json!({"n": n.to_string(), "parity": (n % 2).to_string()});
        id(&server.chat(json!({"store": true, "model": model, "metadata": metadata})).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let numbers = async |query: &str| {
        let page = server.get(&format!("{PATH}?{query}")).await.json();
        let cards = page["data"].as_array().unwrap().iter();
        cards.map(|card| card["metadata"]["n"].as_str().unwrap().to_owned()).collect::<String>()
    };
    assert_eq!(numbers("").await, "0123456");
    assert_eq!(numbers("order=desc&limit=3").await, "654");
    assert_eq!(numbers("model=pirate").await, "135");
    assert_eq!(numbers("metadata%5Bparity%5D=0").await, "0246");
    assert_eq!(numbers("metadata[parity]=1&metadata[n]=3").await, "3");
    assert_eq!(numbers("metadata[parity]=1&metadata[n]=4").await, "");
    let first = server.get(&format!("{PATH}?limit=4")).await.json();
    assert_eq!(first["has_more"], true);
    let after = first["last_id"].as_str().unwrap();
    assert_eq!(numbers(&format!("after={after}")).await, "456");
}

#[tokio::test]
async fn streams_and_several_choices_are_kept_with_their_tokens() {
    let server = says("hello").await;
    let body = json!({"store": true, "stream": true, "n": 2, "metadata": {"a": "b"}});
    let streamed = server.chat(body).await;
    let events = streamed.events();
    let id = events[0]["id"].as_str().unwrap();
    let found = server.get(&format!("{PATH}/{id}")).await.json();
    for index in 0..2 {
        assert_eq!(found["choices"][index]["message"]["content"], "hello");
        assert_eq!(found["choices"][index]["finish_reason"], "stop");
    }
    assert_eq!(found["usage"]["completion_tokens"], 12);
    // Scores were not asked for and are not shown, but kept.
    assert!(streamed.text.contains("\"logprobs\":null"), "{}", streamed.text);
    let stored = server.state.store.completion(&Owner::Shared, id).await.unwrap();
    let body: Value = serde_json::from_str(&stored.body).unwrap();
    let mut tokens = ids("hello");
    tokens.push(crate::support::IM_END);
    assert_eq!(body["choices"][0]["tokens"], json!(tokens));
    assert_eq!(body["choices"][1]["logprobs"], json!(vec![LOGPROB; 6]));
    assert_eq!(stored.generation, None);
}

#[tokio::test]
async fn personal_data_is_taken_out_and_with_it_the_tokens_that_tell_it() {
    let server = says("write to joe@example.org").await;
    let messages =
        json!([{"role": "user", "content": "I am joe@example.org, not ann@example.org"}]);
    let reply = server.chat(json!({"store": true, "messages": messages, "user": "joe"})).await;
    // The answer itself is as it was.
    assert!(reply.text.contains("joe@example.org"), "{}", reply.text);
    let id = id(&reply);
    let found = server.get(&format!("{PATH}/{id}")).await.json();
    assert_eq!(found["choices"][0]["message"]["content"], "write to <EMAIL_1>");
    assert_eq!(found["redacted"], json!({"EMAIL": 3}));
    let asked = server.get(&format!("{PATH}/{id}/messages")).await.json();
    assert_eq!(asked["data"][0]["content"], "I am <EMAIL_1>, not <EMAIL_2>");
    let stored = server.state.store.completion(&Owner::Shared, &id).await.unwrap();
    assert!(!stored.body.contains("example.org"), "{}", stored.body);
    let body: Value = serde_json::from_str(&stored.body).unwrap();
    assert_eq!(body["choices"][0]["tokens"], json!([]));
    assert_ne!(stored.user_sha256.as_deref(), Some("joe"));
}

#[tokio::test]
async fn a_tenant_says_whether_its_completions_are_kept_unasked_and_for_how_long() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let change = json!({"capture": true, "keep_days": 3});
    let path = format!("/v1/admin/tenants/{}", one.id);
    let admin = request(&Method::PATCH, &path, Some(OPERATOR_KEY), Some(&change));
    assert_eq!(server.send(admin).await.status, 200);
    let n_kept = async |tenant: &TestTenant| {
        tenant.get(&server, PATH).await.json()["data"].as_array().unwrap().len()
    };
    let first = id(&one.chat(&server, json!({})).await);
    id(&other.chat(&server, json!({})).await);
    assert_eq!((n_kept(&one).await, n_kept(&other).await), (1, 0));
    // A request may say no, or yes.
    id(&one.chat(&server, json!({"store": false})).await);
    id(&other.chat(&server, json!({"store": true})).await);
    assert_eq!((n_kept(&one).await, n_kept(&other).await), (1, 1));
    let card = one.get(&server, &format!("{PATH}/{first}")).await.json();
    let days = (card["expires_at"].as_i64().unwrap() - card["created"].as_i64().unwrap()) / 86_400;
    assert_eq!(days, 3);
    // Neither sees the other's, nor changes it.
    let path = format!("{PATH}/{first}");
    assert_eq!(other.get(&server, &path).await.status, 404);
    assert_eq!(other.send(&server, Method::DELETE, &path, None).await.status, 404);
    assert_eq!(n_kept(&one).await, 1);
}

#[tokio::test]
async fn the_operators_are_kept_unasked_only_if_the_server_is_told_so() {
    let server = serve(Setup { capture: true, ..Setup::default() }).await;
    id(&server.chat(json!({})).await);
    id(&server.chat(json!({"store": false})).await);
    assert_eq!(kept(&server).await.len(), 1);
}

#[tokio::test]
async fn answers_that_were_not_finished_are_not_kept() {
    let server = says("hello").await;
    server.script.lock().unwrap().fail = true;
    assert_eq!(server.chat(json!({"store": true})).await.status, 500);
    assert_eq!(kept(&server).await.len(), 0);
}

#[tokio::test]
async fn a_store_that_fails_costs_no_answer_and_is_counted() {
    // Its key is not in the store.
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    server.state.store.clone().close().await.unwrap();
    for _ in 0..3 {
        let body = chat_body(json!({"store": true}));
        let asked = request(&Method::POST, PATH, Some(OPERATOR_KEY), Some(&body));
        let reply = server.send(asked).await;
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "hello");
    }
    server.state.capture.settled().await;
    let failed = metric(&server, "pleach_captured_completions_total{result=\"failed\"}").await;
    assert!((failed - 3.0).abs() < 0.1, "{failed}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_by_name() {
    let server = says("hello").await;
    let pairs: serde_json::Map<String, Value> =
        (0..17).map(|n| (n.to_string(), json!("x"))).collect();
    for (field, value) in [
        ("store", json!("yes")),
        ("metadata", json!(pairs)),
        ("metadata", json!({"a": 1})),
        ("metadata", json!({"a": "x".repeat(513)})),
        ("metadata", json!({"a": "\0"})),
        ("user", json!(7)),
        ("episode_id", json!("a b")),
    ] {
        let mut body = json!({"store": true});
        body[field] = value;
        let refused = server.chat(body).await;
        assert_eq!(refused.status, 400, "{field}: {}", refused.text);
        let param = refused.json()["error"]["param"].as_str().unwrap().to_owned();
        assert!(param.starts_with(field), "{param}");
    }
    assert_eq!(kept(&server).await.len(), 0);
}
