//! What people say of a candidate on trial, whoever they are and however they write its name.

use axum::http::Method;
use pleach_store::Quotas;
use serde_json::{Value, json};

use crate::{
    learning_support::{Judge, NAME, POLICY, ROUNDS, Teacher, policy, setup},
    support::{BASE, OPERATOR_KEY, Setup, serve, write_adapter},
    tenant_support::{TestTenant, request, tenant, until},
};

#[tokio::test]
async fn what_is_said_of_the_candidate_counts_whoever_says_it_of_whatever_name() {
    let (teacher, judge) = (Teacher::new('N'), Judge::finds(0.5));
    let setup = Setup { api_key: Some(OPERATOR_KEY), ..setup(&teacher, &judge) };
    let server = serve(setup).await;
    let operator = async |method: Method, path: &str, body: Value| {
        let reply = server.send(request(&method, path, Some(OPERATOR_KEY), Some(&body))).await;
        assert!(reply.status.is_success(), "{path}: {}", reply.text);
        reply.json()
    };
    write_adapter(&server.root.join("A"), 'A');
    operator(Method::PUT, "/v1/adapters/support", json!({"path": "A"})).await;
    let stages = json!([{"share": 1.0, "requests": 100_000}]);
    let mut wanted = policy(json!({"canary": stages, "watch_requests": 0}));
    wanted["is_on"] = json!(false);
    operator(Method::PUT, POLICY, wanted).await;
    let full_name = format!("{BASE}:{NAME}");
    // What was said of the long name is learned from, too.
    for index in 0..20 {
        let body = json!({"model": full_name, "safety_identifier": format!("user {index}"),
                          "messages": [{"role": "user", "content": "hi"}]});
        let reply = operator(Method::POST, "/v1/chat/completions", body).await;
        assert_eq!(reply["model"], full_name.as_str(), "answers are called as they were asked for");
        let body = json!({"inference_id": reply["id"], "metric_name": "liked",
                          "value": index % 4 != 0, "user": format!("user {index}")});
        operator(Method::POST, "/v1/feedback", body).await;
    }
    operator(Method::POST, ROUNDS, json!({})).await;
    let space = pleach_adapters::Namespace::new("shared");
    let trial = || server.state.learning.rollouts.trial_of(&space, NAME);
    until("on trial", async || trial().is_some()).await;
    let kept = format!("/v1/chat/completions?limit=100&model={full_name}");
    let kept = operator(Method::GET, &kept, json!({})).await;
    assert_eq!(kept["data"].as_array().unwrap().len(), 20);

    let one = tenant(&server, "one", Quotas::default()).await;
    let own = tenant(&server, "own", Quotas::default()).await;
    let body = json!({"path": "A"});
    let made = own.send(&server, Method::PUT, "/v1/adapters/support", Some(&body)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let says = async |tenant: &TestTenant, model: &str, expected: &str| {
        let reply = tenant.chat(&server, json!({"model": model, "store": true})).await.json();
        assert_eq!(reply["choices"][0]["message"]["content"], expected, "{reply}");
        let body = json!({"inference_id": reply["id"], "metric_name": "liked", "value": false});
        // Said twice of one answer, it counts once.
        for _ in 0..2 {
            let given = tenant.post(&server, "/v1/feedback", &body).await;
            assert_eq!(given.status, 200, "{}", given.text);
        }
        let candidate = trial().unwrap().candidate;
        (candidate.requests, candidate.judged, candidate.negative)
    };
    assert_eq!(says(&one, NAME, "NNNNN").await, (1, 1, 1));
    assert_eq!(says(&one, &full_name, "NNNNN").await, (2, 2, 2));
    assert_eq!(says(&own, NAME, "AAAAA").await, (2, 2, 2), "that is another's adapter");
}
