//! The shadow stage: requests are answered as always, and some of them run on the candidate once more, for nobody to see.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    learning_support::{NAME, ROUNDS, School, at_once},
    tenant_support::until,
};

async fn school(share: f64, requests: u64) -> School {
    let school = School::new(0.5).await;
    let mut rollout = at_once();
    rollout["shadow"] = json!({"share": share, "requests": requests});
    school.policy(rollout).await;
    school.judged_by(0..20).await;
    school.becomes("shadow").await;
    until("on trial", async || !school.server.state.learning.rollouts.is_empty()).await;
    school
}

fn trial(school: &School) -> pleach::learning::trial::Trial {
    school.on_trial().unwrap()
}

#[tokio::test]
async fn shadows_are_counted_and_nobody_sees_them() {
    let school = school(0.5, 10).await;
    let server = &school.server;
    let before = trial(&school);
    assert_eq!((before.candidate.requests, before.shadows.requests), (0, 0));
    let kept = async || {
        let list = server.get("/v1/chat/completions?limit=100").await.json();
        list["data"].as_array().unwrap().len()
    };
    let n_kept = kept().await;
    for index in 0..18 {
        let (_, text) = school.ask(&format!("user {index}")).await;
        assert_eq!(text, "AAAAA", "the candidate answers nobody");
    }
    until("shadows", async || trial(&school).candidate.requests == 9).await;
    let now = trial(&school);
    // One of two, evenly; as long as the answers that they are shadows of.
    assert_eq!((now.shadows.requests, now.shadows.dropped), (18, 0));
    assert_eq!((now.current.requests, now.current.tokens), (18, 18 * 6));
    assert_eq!((now.candidate.answers, now.candidate.tokens), (9, 9 * 6));
    assert!(now.candidate.errors == 0 && now.candidate.judged == 0);
    assert_eq!(kept().await, n_kept + 18, "no shadow is a completion");
    assert!(!server.get("/v1/chat/completions?limit=100").await.text.contains("NNNNN"));
    let metrics = server.get("/metrics").await.text;
    assert!(!metrics.contains("candidate:"));
    assert_eq!(school.round().await["state"], "shadow");

    // The tenth is the last; there is no canary, so the candidate serves.
    for index in 18..20 {
        school.ask(&format!("user {index}")).await;
    }
    let round = school.becomes("promoted").await;
    assert_eq!(school.says().await, 'N');
    let rollout = &round["rollout"];
    assert_eq!(
        (&rollout["shadows"]["requests"], &rollout["candidate"]["requests"]),
        (&json!(20), &json!(10))
    );
}

#[tokio::test]
async fn a_canary_follows_and_another_process_goes_on_with_the_shadows() {
    let school = School::new(0.5).await;
    let canary = json!([{"share": 0.5, "requests": 100_000}]);
    let shadow = json!({"share": 1.0, "requests": 6});
    let rollout =
        json!({"approval": true, "shadow": shadow, "canary": canary, "watch_requests": 0});
    school.policy(rollout).await;
    school.judged_by(0..20).await;
    school.becomes("awaiting_approval").await;
    assert_eq!(school.decide("approve").await.status, 200);
    school.becomes("shadow").await;
    let school = school.restart().await;
    until("on trial", async || !school.server.state.learning.rollouts.is_empty()).await;
    for index in 0..6 {
        assert_eq!(school.ask(&format!("user {index}")).await.1, "AAAAA");
    }
    school.becomes("canary").await;
    let mut said: Vec<String> = Vec::new();
    for index in 0..30 {
        said.push(school.ask(&format!("user {index}")).await.1);
    }
    said.sort_unstable();
    said.dedup();
    assert_eq!(said, ["AAAAA", "NNNNN"]);
    assert_eq!(trial(&school).shadows.requests, 6, "the canary has none");
    // It can be ended by a person in either stage.
    assert_eq!(school.decide("veto").await.json()["state"], "vetoed");
    assert_eq!(school.says().await, 'A');
}

#[tokio::test]
async fn a_veto_in_the_shadow_ends_it() {
    let school = school(1.0, 1000).await;
    school.ask("somebody").await;
    assert_eq!(school.decide("veto").await.json()["state"], "vetoed");
    until("cleaned up", async || school.hidden() == 0).await;
    assert!(school.server.state.learning.rollouts.is_empty());
    assert_eq!(school.says().await, 'A');
    let rounds = school.server.get(ROUNDS).await.json();
    assert_eq!(rounds["data"][0]["state"], "vetoed");
}

#[tokio::test]
async fn what_finds_no_room_is_dropped_and_harms_nobody() {
    let school = school(1.0, 1_000_000).await;
    school.server.script.lock().unwrap().step = Duration::from_millis(2);
    let mut n_asked = 0;
    for _ in 0..4 {
        let bodies =
            (0..50).map(|user| json!({"model": NAME, "safety_identifier": format!("u{user}")}));
        let replies = join_all(bodies.map(|body: Value| school.server.chat(body))).await;
        for reply in replies {
            assert_eq!(reply.status, 200, "{}", reply.text);
            assert!(reply.text.contains("AAAAA"), "{}", reply.text);
            n_asked += 1;
        }
    }
    let now = trial(&school);
    assert_eq!(now.shadows.requests, n_asked);
    assert!(now.shadows.dropped > 0, "{now:?}");
    assert!(now.candidate.requests + now.shadows.dropped <= n_asked, "{now:?}");
    assert_eq!((now.candidate.errors, now.breach), (0, None));
}
