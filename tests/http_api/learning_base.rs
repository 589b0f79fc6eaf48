//! A name that has no adapter yet: the base answers under it until the first candidate is promoted, and again when that is
//! taken back.

use axum::http::Method;
use pleach_store::Quotas;
use serde_json::{Value, json};

use crate::{
    learning_support::{NAME, POLICY, ROUNDS, School, answered, at_once, policy},
    support::{BASE, OPERATOR_KEY, Setup, says, serve, write_adapter},
    tenant_support::{request, tenant, until},
};

fn begins_at_base(rollout: Value) -> Value {
    let mut policy = policy(rollout);
    policy["begins_at_base"] = json!(true);
    policy
}

async fn school(gain: f64, rollout: Value) -> School {
    let school = School::without_adapter(gain).await;
    let put = school.server.put(POLICY, &begins_at_base(rollout)).await;
    assert_eq!(put.status, 200, "{}", put.text);
    school
}

#[tokio::test]
async fn the_base_answers_until_the_first_candidate_is_promoted() {
    let school = school(0.5, at_once()).await;
    let server = &school.server;
    let reply = server.chat(json!({"model": NAME})).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "BBBBB");
    assert_eq!((&reply["model"], &reply["pleach_generation"]), (&json!(NAME), &Value::Null));
    let plain = json!({"model": NAME, "prompt": "ab"});
    assert_eq!(server.post("/v1/completions", &plain).await.status, 200);
    // A model like any other, but no adapter.
    let listed = server.get("/v1/models").await.json();
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|card| &card["id"]).collect();
    assert!(names.contains(&&json!(NAME)), "{names:?}");
    let card = server.get(&format!("/v1/models/{NAME}")).await.json();
    assert_eq!((&card["id"], &card["pleach_generation"]), (&json!(NAME), &Value::Null));
    assert_eq!(server.get(&format!("/v1/adapters/{NAME}")).await.status, 404);
    assert_eq!(server.get(ROUNDS).await.json()["data"], json!([]));

    school.judged_by(0..20).await;
    let round = school.becomes("promoted").await;
    assert_eq!(round["parent"], Value::Null);
    assert!(
        school.judge.exams.lock().unwrap()[0].current.is_none(),
        "it is compared with the base"
    );
    assert_eq!(server.generation(NAME).await, round["candidate"].as_str().unwrap());
    let reply = server.chat(json!({"model": NAME})).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "NNNNN");
    assert_eq!(reply["pleach_generation"], round["candidate"]);
    let listed = server.get("/v1/models").await.json();
    let n_listed = |name: &str| {
        listed["data"].as_array().unwrap().iter().filter(|card| card["id"] == name).count()
    };
    assert_eq!(n_listed(NAME), 1);
    // The next round goes on from there.
    *school.teacher.letter.lock().unwrap() = 'O';
    school.judged_by(20..40).await;
    until("the next one", async || school.says().await == 'O').await;
    assert_eq!(school.round().await["parent"], round["candidate"]);
    // Who removes the adapter has the base again.
    assert_eq!(server.delete(&format!("/v1/adapters/{NAME}")).await.status, 200);
    assert_eq!(school.says().await, 'B');
    assert_eq!(server.delete(POLICY).await.status, 200);
    assert_eq!(server.chat(json!({"model": NAME})).await.status, 404);
}

#[tokio::test]
async fn a_trial_is_between_the_base_and_the_candidate() {
    let canary = json!([{"share": 0.5, "requests": 100_000}]);
    let school = school(0.5, json!({"canary": canary, "watch_requests": 0})).await;
    school.judged_by(0..20).await;
    school.becomes("canary").await;
    until("on trial", async || school.on_trial().is_some()).await;
    let mut said = Vec::new();
    for index in 0..40 {
        let user = format!("trial user {index}");
        let (_, first) = school.ask(&user).await;
        let (_, second) = school.ask(&user).await;
        assert_eq!(first, second, "who has one side keeps it");
        said.push(first);
    }
    assert!(said.iter().any(|text| text == "BBBBB") && said.iter().any(|text| text == "NNNNN"));
    let labels = school.server.get("/metrics").await.text;
    assert!(!labels.contains("candidate:"), "{labels}");
    // What is said of the base counts for its side; nobody likes the candidate. First some whose side is the base's: that of
    // those who come by chance one is, is not certain. Fewer than begin the next round, which would be on trial, too.
    let of_side = |letter: char| {
        let users = said.iter().enumerate().filter(|(_, text)| text.starts_with(letter));
        users.map(|(index, _)| format!("trial user {index}")).collect::<Vec<_>>()
    };
    let (of_base, of_candidate) = (of_side('B'), of_side('N'));
    for user in of_base[..3].iter().chain(&of_candidate) {
        let (id, text) = school.ask(user).await;
        school.likes(&id, user, text.starts_with('B')).await;
        if school.on_trial().is_none_or(|trial| trial.breach.is_some()) {
            break;
        }
    }
    let round = school.becomes("rolled_back").await;
    assert_eq!(round["error"]["code"], "negative_share_more_max");
    // Twenty are usual, of the data.
    let judged = &round["rollout"]["current"]["judged"];
    assert_eq!(judged, 23, "{round}");
    for index in 0..40 {
        assert_eq!(school.ask(&format!("trial user {index}")).await.1, "BBBBB");
    }
    until("cleaned up", async || school.hidden() == 0).await;
    assert_eq!(school.server.get(&format!("/v1/adapters/{NAME}")).await.status, 404);
}

#[tokio::test]
async fn what_is_taken_back_after_the_first_promotion_leaves_the_base() {
    let school = school(0.5, json!({"canary": [], "watch_requests": 1000})).await;
    school.judged_by(0..20).await;
    let promoted = school.becomes("promoted").await;
    assert_eq!(school.says().await, 'N');
    // It is watched by another process, too.
    let school = school.restart().await;
    assert_eq!(school.says().await, 'N');
    assert_eq!(school.decide("veto").await.json()["state"], "vetoed");
    assert_eq!(school.says().await, 'B');
    let id = promoted["id"].as_str().unwrap();
    let own = format!("ft:tiny:shared:{NAME}:{}", &id[id.len() - 8..]);
    assert_eq!(school.server.chat(json!({"model": own})).await.status, 404);
    assert_eq!(school.server.get(&format!("/v1/adapters/{NAME}")).await.status, 404);
    // The next feedback is another chance.
    school.judged_by(20..40).await;
    let second = school.becomes("promoted").await;
    assert_eq!((&second["parent"], school.says().await), (&Value::Null, 'N'));
}

#[tokio::test]
async fn a_name_that_somebody_makes_meanwhile_stays_theirs() {
    let rollout = json!({"approval": true, "canary": [], "watch_requests": 0});
    let school = school(0.5, rollout).await;
    school.judged_by(0..20).await;
    school.becomes("awaiting_approval").await;
    write_adapter(&school.server.root.join("A"), 'A');
    let put = school.server.put(&format!("/v1/adapters/{NAME}"), &json!({"path": "A"})).await;
    assert_eq!(put.status, 201, "{}", put.text);
    assert_eq!(school.says().await, 'A');
    assert_eq!(school.decide("approve").await.status, 200);
    let round = school.becomes("failed").await;
    assert_eq!(round["error"]["code"], "alias_moved");
    assert_eq!(school.says().await, 'A');
}

#[tokio::test]
async fn names_that_cannot_begin_so_are_refused() {
    let server = says("x").await;
    let path = |name: &str| format!("/v1/adapters/{name}/policy");
    // Unless it is asked for, a name has to be there: a slip is no new name.
    assert_eq!(server.put(&path("slip"), &json!({})).await.status, 404);
    assert_eq!(server.chat(json!({"model": "slip"})).await.status, 404);
    let begins = json!({"begins_at_base": true});
    for (name, status) in [(BASE, 400), ("candidate:x", 404), ("a%20b", 400), ("tiny:x", 400)] {
        assert_eq!(server.put(&path(name), &begins).await.status, status, "{name}");
    }
    assert_eq!(server.put(&path("pirate"), &begins).await.status, 200, "it is the operator's own");
    let wrong = server.put(&path("new"), &json!({"begins_at_base": "yes"})).await;
    assert_eq!(wrong.json()["error"]["param"], "begins_at_base");
    assert_eq!(server.put(&path("new"), &begins).await.status, 200);
    for body in [
        json!({"model": "new", "adapter_generation": "ab".repeat(32)}),
        json!({"model": "new", "adapters": [{"name": "pirate"}]}),
        json!({"model": "tiny:new"}),
    ] {
        assert_eq!(server.chat(body.clone()).await.status, 404, "{body}");
    }
}

#[tokio::test]
async fn a_tenants_name_is_its_own_and_the_operators_is_everybodys() {
    let setup = Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() };
    let server = serve(setup).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let begins = json!({"begins_at_base": true});
    let put = one.send(&server, Method::PUT, POLICY, Some(&begins)).await;
    assert_eq!(put.status, 200, "{}", put.text);
    answered(&one.chat(&server, json!({"model": NAME})).await);
    assert_eq!(other.chat(&server, json!({"model": NAME})).await.status, 404);
    assert!(!other.get(&server, "/v1/models").await.text.contains(NAME));
    // Shared names answer for everybody; a tenant's policy would not change that.
    let shared = one.send(&server, Method::PUT, "/v1/adapters/pirate/policy", Some(&begins)).await;
    assert_eq!(shared.json()["error"]["param"], "begins_at_base", "{}", shared.text);
    let put = request(&Method::PUT, "/v1/adapters/ours/policy", Some(OPERATOR_KEY), Some(&begins));
    let put = server.send(put).await;
    assert_eq!(put.status, 200, "{}", put.text);
    answered(&other.chat(&server, json!({"model": "ours"})).await);
    assert!(other.get(&server, "/v1/models").await.text.contains("\"ours\""));
    assert_eq!(other.get(&server, "/v1/adapters/ours/policy").await.status, 404);
}
