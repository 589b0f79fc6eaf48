//! `/v1/feedback`: every kind, once for each key, changed and withdrawn, and about nothing that the caller has not.

use axum::http::{Method, Request};
use pleach_store::{Owner, Quotas};
use serde_json::{Value, json};

use crate::{
    support::{OPERATOR_KEY, Reply, Server, Setup, says, serve},
    tenant_support::{another_key, metric, tenant},
};

const PATH: &str = "/v1/feedback";

async fn chat(server: &Server, extra: Value) -> String {
    let mut body = json!({"store": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let reply = server.chat(body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["id"].as_str().unwrap().to_owned()
}

async fn give(server: &Server, body: &Value) -> String {
    let given = server.post(PATH, body).await;
    assert_eq!(given.status, 200, "{body}: {}", given.text);
    given.json()["feedback_id"].as_str().unwrap().to_owned()
}

async fn all(server: &Server) -> Vec<Value> {
    server.get(PATH).await.json()["data"].as_array().unwrap().clone()
}

fn code(reply: &Reply) -> (u16, String) {
    let code = reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
    (reply.status.as_u16(), code)
}

#[tokio::test]
async fn every_kind_is_taken_as_it_is_meant() {
    let server = says("hello").await;
    let two = json!({"n": 2, "temperature": 0.0, "episode_id": "e1"});
    let (one, other) = (chat(&server, two.clone()).await, chat(&server, two).await);
    let kinds = [
        ("liked", json!(true), "boolean", json!(true)),
        ("score", json!(0.25), "float", json!(0.25)),
        ("score", json!(2), "float", json!(2.0)),
        ("demonstration", json!("a better answer"), "demonstration", json!("a better answer")),
        (
            "demonstration",
            json!([{"type": "text", "text": "mail a@b.org"}]),
            "demonstration",
            json!("mail <EMAIL_1>"),
        ),
        ("comment", json!("too long"), "comment", json!("too long")),
        (
            "comparison",
            json!({"inference_id": other, "choice": 1}),
            "comparison",
            json!({"inference_id": other, "choice": 1}),
        ),
        (
            "comparison",
            json!({"choice": 1}),
            "comparison",
            json!({"inference_id": one, "choice": 1}),
        ),
    ];
    for (metric_name, value, kind, kept) in kinds {
        let body = json!({
            "inference_id": one, "metric_name": metric_name, "value": value,
            "tags": {"page": "home"}, "user": "joe",
        });
        let id = give(&server, &body).await;
        let card = server.get(&format!("{PATH}/{id}")).await.json();
        let expected = json!({
            "id": id, "object": "feedback", "inference_id": one, "episode_id": null, "choice": 0,
            "metric_name": metric_name, "kind": kind, "value": kept, "tags": {"page": "home"},
            "created_at": card["created_at"], "updated_at": card["updated_at"], "withdrawn_at": null,
        });
        assert_eq!(card, expected);
    }
    let episode = json!({"episode_id": "e1", "metric_name": "solved", "value": false});
    give(&server, &episode).await;
    assert_eq!(all(&server).await.len(), 9);
    let of = async |query: &str| {
        server.get(&format!("{PATH}?{query}")).await.json()["data"].as_array().unwrap().len()
    };
    assert_eq!(of(&format!("inference_id={one}")).await, 8);
    assert_eq!(of("episode_id=e1").await, 1);
    assert_eq!(of("metric_name=score&limit=1").await, 1);
    let count = metric(&server, "pleach_feedback_total{kind=\"comparison\"}").await;
    assert!((count - 2.0).abs() < 0.1, "{count}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name() {
    let server = says("hello").await;
    let id = chat(&server, json!({"episode_id": "e1"})).await;
    let elsewhere =
        chat(&server, json!({"messages": [{"role": "user", "content": "another question"}]})).await;
    give(&server, &json!({"inference_id": id, "metric_name": "liked", "value": true})).await;
    for (extra, param) in [
        (json!({"inference_id": null}), "inference_id"),
        (json!({"episode_id": "e1"}), "episode_id"),
        (json!({"metric_name": null}), "metric_name"),
        (json!({"metric_name": "a b"}), "metric_name"),
        (json!({"value": null}), "value"),
        (json!({"value": "yes"}), "value"),
        (json!({"value": 1.5}), "value"),
        (json!({"choice": 1}), "choice"),
        (json!({"choice": -1}), "choice"),
        (json!({"tags": {"a": 1}}), "tags.a"),
        (json!({"dryrun": "no"}), "dryrun"),
        (json!({"colour": "blue"}), "colour"),
        (json!({"metric_name": "comment"}), "value"),
        (json!({"metric_name": "comment", "value": ""}), "value"),
        (json!({"metric_name": "demonstration", "value": [{"type": "image"}]}), "value[0]"),
        (json!({"metric_name": "comparison"}), "value"),
        (json!({"metric_name": "comparison", "value": {}}), "value"),
        (json!({"metric_name": "comparison", "value": {"choice": 3}}), "value.choice"),
        (json!({"metric_name": "comparison", "value": {"inference_id": elsewhere}}), "value"),
        (json!({"metric_name": "comparison", "value": {"worse": 1}}), "value.worse"),
        (
            json!({"inference_id": null, "episode_id": "e1", "metric_name": "demonstration", "value": "x"}),
            "episode_id",
        ),
        (json!({"idempotency_key": ""}), "idempotency_key"),
    ] {
        let mut body = json!({"inference_id": id, "metric_name": "liked", "value": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let refused = server.post(PATH, &body).await;
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status.as_u16(), &error["param"]),
            (400, &json!(param)),
            "{body}: {error}"
        );
    }
    assert_eq!(all(&server).await.len(), 1);
}

#[tokio::test]
async fn a_key_has_one_effect() {
    let server = says("hello").await;
    let id = chat(&server, json!({})).await;
    let body =
        json!({"inference_id": id, "metric_name": "liked", "value": true, "idempotency_key": "k1"});
    let first = give(&server, &body).await;
    assert_eq!(give(&server, &body).await, first);
    // In the header, as clients send it; and not between two requests.
    let request = |value: bool| {
        let body = json!({"inference_id": id, "metric_name": "liked", "value": value});
        Request::post(PATH)
            .header("content-type", "application/json")
            .header("idempotency-key", "k1")
            .body(body.to_string().into())
            .unwrap()
    };
    assert_eq!(server.send(request(true)).await.json()["feedback_id"], first.as_str());
    let other = server.send(request(false)).await;
    assert_eq!(code(&other), (422, "idempotency_key_reused".to_owned()));
    // Nor does a repeated request bring back what was withdrawn.
    server.delete(&format!("{PATH}/{first}")).await;
    assert_eq!(give(&server, &body).await, first);
    let cards = all(&server).await;
    assert_eq!(cards.len(), 1);
    assert_eq!(cards[0]["value"], Value::Null);
    // Many at once are one, too.
    let body =
        json!({"inference_id": id, "metric_name": "liked", "value": true, "idempotency_key": "k2"});
    let given = futures_util::future::join_all((0..8).map(|_| give(&server, &body))).await;
    assert!(given.iter().all(|id| *id == given[0]), "{given:?}");
    assert_eq!(all(&server).await.len(), 2);
}

#[tokio::test]
async fn a_dry_run_checks_all_and_keeps_nothing() {
    let server = says("hello").await;
    let id = chat(&server, json!({})).await;
    let body = json!({"inference_id": id, "metric_name": "liked", "value": true, "dryrun": true});
    assert!(give(&server, &body).await.starts_with("fb-"));
    assert_eq!(all(&server).await.len(), 0);
    // Not even of what kind the metric is.
    give(&server, &json!({"inference_id": id, "metric_name": "liked", "value": 0.5})).await;
    let refused = server.post(PATH, &body).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    let unknown =
        json!({"inference_id": "chatcmpl-0", "metric_name": "x", "value": 1, "dryrun": true});
    assert_eq!(server.post(PATH, &unknown).await.status, 404);
}

#[tokio::test]
async fn feedback_is_changed_and_withdrawn() {
    let server = says("hello").await;
    let target = chat(&server, json!({})).await;
    let body =
        json!({"inference_id": target, "metric_name": "liked", "value": true, "tags": {"a": "b"}});
    let id = give(&server, &body).await;
    let path = format!("{PATH}/{id}");
    let change = async |body: Value| {
        let request = Request::patch(path.as_str()).header("content-type", "application/json");
        server.send(request.body(body.to_string().into()).unwrap()).await
    };
    let changed = change(json!({"value": false})).await.json();
    assert_eq!((&changed["value"], &changed["tags"]), (&json!(false), &json!({"a": "b"})));
    let changed = change(json!({"tags": {}})).await.json();
    assert_eq!((&changed["value"], &changed["tags"]), (&json!(false), &json!({})));
    for (body, param) in [
        (json!({"value": 3}), "value"),
        (json!({"value": "x"}), "value"),
        (json!({"metric_name": "x"}), "metric_name"),
    ] {
        let refused = change(body).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.json()["error"]["param"]),
            (400, &json!(param))
        );
    }
    let withdrawn = server.delete(&path).await.json();
    assert_eq!((&withdrawn["value"], &withdrawn["tags"]), (&Value::Null, &json!({})));
    assert!(withdrawn["withdrawn_at"].is_i64(), "{withdrawn}");
    assert_eq!(server.delete(&path).await.json(), withdrawn);
    assert_eq!(code(&change(json!({"value": true})).await), (400, "invalid_state".to_owned()));
    let nobody = server.delete("/v1/feedback/fb-0").await;
    assert_eq!(code(&nobody), (404, "feedback_not_found".to_owned()));
}

#[tokio::test]
async fn anothers_and_nobodys_are_one_404_and_what_is_over_too() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let target = one.chat(&server, json!({"store": true, "episode_id": "e1"})).await.json();
    let target = target["id"].as_str().unwrap();
    let nobodys = format!("{}0000", &target[..target.len() - 4]);
    for (theirs, nobodys) in [
        (json!({"inference_id": target}), json!({"inference_id": nobodys})),
        (json!({"episode_id": "e1"}), json!({"episode_id": "e2"})),
    ] {
        let ask = async |mut body: Value| {
            body["metric_name"] = json!("liked");
            body["value"] = json!(true);
            other.post(&server, PATH, &body).await
        };
        let (asked, control) = (ask(theirs).await, ask(nobodys.clone()).await);
        assert_eq!(code(&asked), code(&control));
        assert_eq!(asked.status, 404, "{}", asked.text);
        let mask = |text: &str| {
            text.replace(target, "ID")
                .replace(nobodys["inference_id"].as_str().unwrap_or("e2"), "ID")
                .replace("e1", "ID")
        };
        assert_eq!(mask(&asked.text), mask(&control.text));
    }
    // Late is good enough, as long as it is there; then not.
    let body = json!({"inference_id": target, "metric_name": "liked", "value": true});
    assert_eq!(one.post(&server, PATH, &body).await.status, 200);
    let owner = Owner::Tenant(one.id.clone());
    let mut over = server.state.store.completion(&owner, target).await.unwrap();
    (over.id, over.expires_ms) = (format!("{target}0"), 1);
    server.state.store.put_completions(&[(owner, over)]).await.unwrap();
    let body = json!({"inference_id": format!("{target}0"), "metric_name": "liked", "value": true});
    assert_eq!(
        code(&one.post(&server, PATH, &body).await),
        (404, "completion_not_found".to_owned())
    );
    let expired = server.state.store.sweep_expired().await.unwrap();
    assert_eq!(expired.completions, 1);
    assert_eq!(one.get(&server, PATH).await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn feedback_follows_an_answer_at_once() {
    let server = says("hello").await;
    for _ in 0..20 {
        let id = chat(&server, json!({"episode_id": "e1"})).await;
        give(&server, &json!({"inference_id": id, "metric_name": "liked", "value": true})).await;
    }
    assert_eq!(all(&server).await.len(), 20);
}

#[tokio::test]
async fn a_user_is_erased_and_nobody_else() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let ask = async |tenant: &crate::tenant_support::TestTenant, user: &str, episode: &str| {
        let body = json!({"store": true, "safety_identifier": user, "episode_id": episode});
        tenant.chat(&server, body).await.json()["id"].as_str().unwrap().to_owned()
    };
    let say = async |tenant: &crate::tenant_support::TestTenant, mut body: Value, user: &str| {
        body["metric_name"] = json!("liked");
        body["value"] = json!(true);
        body["user"] = json!(user);
        assert_eq!(tenant.post(&server, PATH, &body).await.status, 200);
    };
    let joes = ask(&one, "joe", "joes").await;
    let anns = ask(&one, "ann", "anns").await;
    let other_joes = ask(&other, "joe", "joes").await;
    say(&one, json!({"inference_id": joes}), "ann").await;
    say(&one, json!({"inference_id": anns}), "joe").await;
    say(&one, json!({"inference_id": anns}), "ann").await;
    say(&one, json!({"episode_id": "joes"}), "ann").await;
    say(&other, json!({"inference_id": other_joes}), "joe").await;
    let erase =
        async || one.send(&server, Method::DELETE, "/v1/feedback/users/joe", None).await.json();
    let erased = |completions, feedback| {
        json!({
            "object": "user.erased", "completions": completions, "feedback": feedback,
            "generations": [], "rounds": [],
        })
    };
    assert_eq!(erase().await, erased(1, 3));
    assert_eq!(erase().await, erased(0, 0));
    let left = one.get(&server, PATH).await.json();
    assert_eq!(left["data"].as_array().unwrap().len(), 1);
    assert_eq!(left["data"][0]["inference_id"], anns.as_str());
    let path = |id: &str| format!("/v1/chat/completions/{id}");
    assert_eq!(one.get(&server, &path(&joes)).await.status, 404);
    assert_eq!(one.get(&server, &path(&anns)).await.status, 200);
    assert_eq!(other.get(&server, &path(&other_joes)).await.status, 200);
    assert_eq!(other.get(&server, PATH).await.json()["data"].as_array().unwrap().len(), 1);
    // With a completion goes what was said of it.
    assert_eq!(one.send(&server, Method::DELETE, &path(&anns), None).await.status, 200);
    assert_eq!(one.get(&server, PATH).await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_key_that_gives_feedback_reads_nothing() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let target = one.chat(&server, json!({"store": true})).await.json()["id"].clone();
    let giver = another_key(&server, &one.id, "feedback", None).await;
    let body = json!({"inference_id": target, "metric_name": "liked", "value": true});
    assert_eq!(giver.post(&server, PATH, &body).await.status, 200);
    assert_eq!(giver.get(&server, PATH).await.status, 403);
    let path = format!("/v1/chat/completions/{}", target.as_str().unwrap());
    assert_eq!(giver.get(&server, &path).await.status, 403);
}
