//! A candidate on its way into service, and out of it: canary, guardrails, watching; and whatever a process dies in.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use pleach_store::Page;
use serde_json::json;

use crate::{
    learning_support::{NAME, POLICY, ROUNDS, School, answered, at_once, policy, setup},
    support::{Setup, write_adapter},
    tenant_support::until,
};

/// Users who ask during a trial.
fn users(n: usize) -> Vec<String> {
    (0..n).map(|user| format!("trial user {user}")).collect()
}

/// What each user is answered.
async fn letters(school: &School, users: &[String]) -> BTreeMap<String, char> {
    let mut letters = BTreeMap::new();
    for user in users {
        let (_, text) = school.ask(user).await;
        letters.insert(user.clone(), text.chars().next().unwrap());
    }
    letters
}

#[tokio::test]
async fn a_canary_is_sticky_and_grows() {
    let school = School::new(0.5).await;
    let stages = json!([{"share": 0.3, "requests": 30}, {"share": 0.8, "requests": 20}]);
    school.policy(json!({"canary": stages, "watch_requests": 0})).await;
    school.judged_by(0..20).await;
    school.becomes("canary").await;
    until("on trial", async || !school.server.state.learning.rollouts.is_empty()).await;
    let users = users(40);
    let first = letters(&school, &users).await;
    let n_first = first.values().filter(|letter| **letter == 'N').count();
    // Three of ten, give or take four standard deviations.
    assert!((1..=24).contains(&n_first), "{n_first}");
    assert!(n_first < 30, "the stage is not over yet");
    let second = letters(&school, &users).await;
    for (user, letter) in &first {
        // Who has it keeps it; meanwhile others may have got it, too.
        assert!(*letter == 'A' || second[user] == 'N', "{user} was sent back");
    }
    // Who insists on a generation gets that, and its requests count for nothing.
    let current = school.server.generation(NAME).await;
    let pinned = school.server.chat(json!({
        "model": NAME, "adapter_generation": current, "safety_identifier": users[0],
    }));
    assert_eq!(pinned.await.json()["pleach_generation"], current.as_str());
    // An episode keeps to one side whoever asks in it.
    let mut of_episode = Vec::new();
    for user in &users[..10] {
        let body = json!({"model": NAME, "episode_id": "e1", "safety_identifier": user});
        of_episode.push(school.server.chat(body).await.json()["pleach_generation"].clone());
    }
    if school.round().await["state"] == "canary" {
        of_episode.dedup();
        assert_eq!(of_episode.len(), 1);
    }
    until("promoted", async || {
        letters(&school, &users).await;
        school.round().await["state"] == "promoted"
    })
    .await;
    assert!(letters(&school, &users).await.values().all(|letter| *letter == 'N'));
}

#[tokio::test]
async fn a_guardrail_takes_it_back_and_no_request_fails() {
    let school = School::new(0.5).await;
    let before = school.server.generation(NAME).await;
    let canary = json!([{"share": 0.5, "requests": 100_000}]);
    school.policy(json!({"canary": canary, "watch_requests": 0})).await;
    school.judged_by(0..20).await;
    school.becomes("canary").await;
    until("on trial", async || !school.server.state.learning.rollouts.is_empty()).await;
    // Nobody likes the candidate. Of the others not so many speak that the next round begins.
    let (mut n_negative, mut n_positive) = (0, 0);
    for user in users(200) {
        let (id, text) = school.ask(&user).await;
        let is_candidate = text.starts_with('N');
        n_negative += usize::from(is_candidate);
        n_positive += usize::from(!is_candidate);
        if is_candidate || n_positive <= 10 {
            school.likes(&id, &user, !is_candidate).await;
        }
        if n_negative == 5 {
            break;
        }
    }
    // From the next request on.
    assert!(letters(&school, &users(60)).await.values().all(|letter| *letter == 'A'));
    let round = school.becomes("rolled_back").await;
    assert_eq!(round["error"]["code"], "negative_share_more_max");
    assert_eq!(round["rollout"]["candidate"]["negative"], 5);
    assert_eq!(school.server.generation(NAME).await, before);
    until("cleaned up", async || school.hidden() == 0).await;
}

#[tokio::test]
async fn failed_requests_of_the_candidate_take_it_back() {
    let school = School::new(0.5).await;
    let canary = json!([{"share": 1.0, "requests": 10}]);
    school.policy(json!({"canary": canary, "watch_requests": 0})).await;
    school.judged_by(0..20).await;
    school.becomes("canary").await;
    until("on trial", async || !school.server.state.learning.rollouts.is_empty()).await;
    assert_eq!(school.says().await, 'N');
    school.server.script.lock().unwrap().fail = true;
    let body = json!({"model": NAME, "safety_identifier": "somebody"});
    assert_eq!(school.server.chat(body).await.status, 500);
    school.server.script.lock().unwrap().fail = false;
    // One of ten is more than one of fifty.
    assert_eq!(school.says().await, 'A');
    let round = school.becomes("rolled_back").await;
    assert_eq!(round["error"]["code"], "error_share_max");
}

#[tokio::test]
async fn what_is_watched_after_it_serves_all_goes_back_too() {
    let school = School::new(0.5).await;
    let before = school.server.generation(NAME).await;
    school.policy(json!({"canary": [], "watch_requests": 1000})).await;
    school.judged_by(0..20).await;
    school.becomes("promoted").await;
    for user in users(5) {
        let (id, text) = school.ask(&user).await;
        assert!(text.starts_with('N'), "{text}");
        school.likes(&id, &user, false).await;
    }
    let round = school.becomes("rolled_back").await;
    assert_eq!(round["decisions"][0]["by"], "guardrail");
    assert_eq!(round["decisions"][0]["decision"], "roll_back");
    until("taken back", async || school.server.generation(NAME).await == before).await;
    assert_eq!(school.says().await, 'A');
}

/// However long that takes, whoever lives then, and whatever has become of its policy.
#[tokio::test]
async fn what_cannot_be_taken_back_is_taken_back_as_soon_as_it_can() {
    let mut school = School::new(0.5).await;
    let before = school.server.generation(NAME).await;
    school.policy(json!({"canary": [], "watch_requests": 1000})).await;
    school.judged_by(0..20).await;
    let promoted = school.becomes("promoted").await;
    // A later round of the same name has nothing to take back.
    *school.teacher.letter.lock().unwrap() = 'O';
    school.policy(json!({"approval": true})).await;
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    school.becomes("awaiting_approval").await;
    school.decide("veto").await;
    assert_eq!(school.server.delete(POLICY).await.status, 200);
    let full = "CREATE TRIGGER no_moves BEFORE UPDATE ON aliases \
                BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    sqlx::raw_sql(full).execute(&school.server.raw().await).await.unwrap();
    let veto = format!("{ROUNDS}/{}/veto", promoted["id"].as_str().unwrap());
    let vetoed = school.server.post(&veto, &json!({})).await.json();
    assert_eq!(vetoed["state"], "vetoed");
    assert_eq!(school.says().await, 'N', "it cannot be moved");
    school = school.restart().await;
    assert_eq!(school.says().await, 'N');
    let raw = school.server.raw().await;
    sqlx::raw_sql("DROP TRIGGER no_moves").execute(&raw).await.unwrap();
    until("taken back", async || school.says().await == 'A').await;
    assert_eq!(school.server.generation(NAME).await, before);
    let store = &school.server.state.store;
    until("nothing is left", async || {
        store.rounds_not_done(&Page::FIRST).await.unwrap().items.is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_was_promoted_is_watched_whatever_became_of_its_policy() {
    let mut school = School::new(0.5).await;
    school.policy(json!({"canary": [], "watch_requests": 1000})).await;
    school.judged_by(0..20).await;
    school.becomes("promoted").await;
    assert_eq!(school.server.delete(POLICY).await.status, 200);
    school = school.restart().await;
    until("watched again", async || !school.server.state.learning.rollouts.is_empty()).await;
    for user in users(6) {
        let (id, _) = school.ask(&user).await;
        school.likes(&id, &user, false).await;
    }
    school.becomes("rolled_back").await;
    until("taken back", async || school.says().await == 'A').await;
}

#[tokio::test]
async fn a_name_that_is_moved_during_its_trial_ends_it() {
    let school = School::new(0.5).await;
    let canary = json!([{"share": 1.0, "requests": 1000}]);
    school.policy(json!({"canary": canary})).await;
    school.judged_by(0..20).await;
    school.becomes("canary").await;
    until("on trial", async || school.says().await == 'N').await;
    write_adapter(&school.server.root.join("B"), 'B');
    assert_eq!(school.server.put("/v1/adapters/support", &json!({"path": "B"})).await.status, 200);
    assert_eq!(school.says().await, 'B', "at once");
    school.server.state.learning.wake.all();
    let round = school.becomes("failed").await;
    assert_eq!(round["error"]["code"], "alias_moved");
    assert_eq!(school.says().await, 'B');
}

#[tokio::test]
async fn whatever_state_a_process_dies_in_another_goes_on() {
    let mut school = School::new(0.5).await;
    let canary = json!([{"share": 0.5, "requests": 60}]);
    school.policy(json!({"approval": true, "canary": canary, "watch_requests": 1000})).await;
    // In the middle of a training.
    school.teacher.is_held.store(true, Ordering::Relaxed);
    school.judged_by(0..20).await;
    school.becomes("training").await;
    school = school.restart().await;
    school.teacher.is_held.store(false, Ordering::Relaxed);
    // While it is judged.
    school.judge.is_held.store(true, Ordering::Relaxed);
    let round = school.becomes("gating").await;
    school = school.restart().await;
    assert_eq!(school.hidden(), 3, "what was trained is still there");
    school.judge.is_held.store(false, Ordering::Relaxed);
    // While it waits.
    school.becomes("awaiting_approval").await;
    school = school.restart().await;
    assert_eq!(school.says().await, 'A');
    assert_eq!(school.decide("approve").await.status, 200);
    // On trial: the same users are on the same side after it.
    school.becomes("canary").await;
    until("on trial", async || !school.server.state.learning.rollouts.is_empty()).await;
    let users = users(30);
    let before = letters(&school, &users).await;
    school = school.restart().await;
    until("on trial again", async || !school.server.state.learning.rollouts.is_empty()).await;
    assert_eq!(letters(&school, &users).await, before);
    until("promoted", async || {
        letters(&school, &users).await;
        school.round().await["state"] == "promoted"
    })
    .await;
    assert_eq!(school.round().await["id"], round["id"], "one round all the time");
    assert_eq!(school.round().await["look"], 1);
    let n_jobs = school.server.get("/v1/fine_tuning/jobs").await.json()["data"].clone();
    assert_eq!(n_jobs.as_array().unwrap().len(), 3, "nothing was trained twice");
    // Watched: what is promoted can be taken back by the next process, too.
    school = school.restart().await;
    until("watched again", async || !school.server.state.learning.rollouts.is_empty()).await;
    assert_eq!(school.says().await, 'N');
    for user in &users[..6] {
        let (id, _) = school.ask(user).await;
        school.likes(&id, user, false).await;
    }
    school.becomes("rolled_back").await;
    until("taken back", async || school.says().await == 'A').await;
    assert_eq!(school.server.get(ROUNDS).await.json()["data"].as_array().unwrap().len(), 1);
}

/// A canary of nobody's requests may wait for ever.
#[tokio::test]
async fn rounds_that_only_wait_keep_no_other_from_being_worked_on() {
    let mut school = School::of_one_place(0.5).await;
    let stages = json!([{"share": 0.5, "requests": 1000}]);
    let mut policy = policy(json!({"canary": stages}));
    (policy["begins_at_base"], policy["is_on"]) = (json!(true), json!(false));
    for name in ["first", "second", "third"] {
        let path = |what: &str| format!("/v1/adapters/{name}/{what}");
        assert_eq!(school.server.put(&path("policy"), &policy).await.status, 200);
        for user in users(20) {
            let body = json!({"model": name, "safety_identifier": user});
            let (id, _) = answered(&school.server.chat(body).await);
            school.likes(&id, &user, true).await;
        }
        assert_eq!(school.server.post(&path("rounds"), &json!({})).await.status, 200);
        let state = async |school: &School| {
            school.server.get(&path("rounds")).await.json()["data"][0]["state"].clone()
        };
        until("canary", async || state(&school).await == "canary").await;
        if name == "second" {
            // Whoever comes after takes care of both.
            let setup = Setup { rounds_max: 1, ..setup(&school.teacher, &school.judge) };
            school.server = school.server.restart(setup).await;
            let space = pleach_adapters::Namespace::new("shared");
            for name in ["first", "second"] {
                let rollouts =
                    async || school.server.state.learning.rollouts.trial_of(&space, name).is_some();
                until("on trial again", rollouts).await;
            }
        }
    }
}

#[tokio::test]
async fn a_round_whose_follower_panics_is_taken_up_again_after_a_rest() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judge.panics.store(1, Ordering::Relaxed);
    school.judged_by(0..20).await;
    school.becomes("gating").await;
    until("a panic", async || school.judge.panics.load(Ordering::Relaxed) == 0).await;
    let began = Instant::now();
    assert!(school.judge.exams.lock().unwrap().is_empty());
    school.becomes("promoted").await;
    assert!(began.elapsed() > Duration::from_secs(4), "at once would be again and again");
    assert_eq!(school.judge.exams.lock().unwrap().len(), 1);
    assert_eq!(school.teacher.learned.lock().unwrap().len(), 3, "nothing was trained twice");
}

#[tokio::test]
async fn the_best_of_what_served_before_is_compared_with() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let first = school.becomes("promoted").await;
    *school.teacher.letter.lock().unwrap() = 'O';
    school.judged_by(20..40).await;
    until("another", async || school.round().await["id"] != first["id"]).await;
    let second = school.becomes("promoted").await;
    assert_eq!(second["parent"], first["candidate"]);
    *school.teacher.letter.lock().unwrap() = 'P';
    school.judged_by(40..60).await;
    until("another", async || school.round().await["id"] != second["id"]).await;
    school.becomes("promoted").await;
    assert_eq!(school.says().await, 'P');
    let exams = school.judge.exams.lock().unwrap();
    let best = |index: usize| exams[index].best.as_ref().map(|best| json!(best.digest.to_string()));
    assert_eq!(
        (best(0), best(1)),
        (None, None),
        "what was not trained here has no gain to compare"
    );
    assert_eq!(best(2).as_ref(), Some(&first["candidate"]));
}
