//! The learning loop from feedback to a generation that answers, and everything that ends it before.

use std::sync::atomic::Ordering;

use axum::http::Method;
use pleach_store::{NewFile, Owner, Quotas};
use serde_json::{Value, json};

use crate::{
    learning_support::{GET, Judge, NAME, POLICY, ROUNDS, School, Teacher, at_once, policy, setup},
    support::{OPERATOR_KEY, Setup, serve, write_adapter},
    tenant_support::{metric, tenant, until},
};

#[tokio::test]
async fn feedback_becomes_a_generation_that_answers() {
    let school = School::new(0.5).await;
    let server = &school.server;
    let before = server.generation(NAME).await;
    school.policy(at_once()).await;
    school.judged_by(0..19).await;
    assert_eq!(server.get(ROUNDS).await.json()["data"], json!([]), "not enough yet");
    assert_eq!(school.says().await, 'A');
    school.judged_by(19..20).await;
    let round = school.becomes("promoted").await;
    // The next request has it, and says so.
    let reply = server.chat(json!({"model": NAME})).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "NNNNN");
    assert_eq!(reply["pleach_generation"], round["candidate"]);
    assert_ne!(round["candidate"], before.as_str());
    assert_eq!(round["parent"], before.as_str());
    assert_eq!((&round["trigger"], &round["method"]), (&json!("examples"), &json!("kto")));
    assert_eq!((&round["look"], &round["verdict"]["passed"]), (&json!(1), &json!(true)));
    let data = &round["data"];
    assert_eq!(
        (&data["rows"], &data["users"], &data["opinions"]),
        (&json!(20), &json!(20), &json!(20))
    );

    // Two folds and everything: each row was held out once, and judged by what had not seen it.
    let learned = school.teacher.learned.lock().unwrap().clone();
    let folds: Vec<&str> = learned.iter().map(|(fold, _)| fold.as_str()).collect();
    assert_eq!(folds, ["0", "1", "all"]);
    let lines = |index: usize| learned[index].1.lines().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lines(2).len(), 20);
    let held_out = [&lines(2) - &lines(0), &lines(2) - &lines(1)];
    assert!(held_out[0].is_disjoint(&held_out[1]));
    assert_eq!(held_out[0].len() + held_out[1].len(), 20);
    let exam = school.judge.exams.lock().unwrap()[0].clone();
    for row in &exam.rows {
        assert!(held_out[row.fold as usize].contains(row.value.to_string().as_str()));
    }
    assert_eq!(exam.current.as_ref().unwrap().digest.to_string(), before);

    // Its trainings are the owner's, and are found by the round.
    let id = round["id"].as_str().unwrap();
    let jobs = server.get(&format!("/v1/fine_tuning/jobs?metadata[round]={id}")).await.json();
    assert_eq!(jobs["data"].as_array().unwrap().len(), 3, "{jobs}");
    for job in jobs["data"].as_array().unwrap() {
        assert_eq!((&job["status"], &job["fine_tuned_model"]), (&json!("succeeded"), &Value::Null));
        let path = format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap());
        for path in [format!("{path}/events"), format!("{path}/checkpoints"), path] {
            let shown = server.get(&path).await;
            assert!(shown.status == 200 && !shown.text.contains("candidate:"), "{}", shown.text);
        }
    }
    // It has a name of its own, and nothing is left under the hidden ones.
    let own = format!("ft:tiny:shared:{NAME}:{}", &id[id.len() - 8..]);
    until("cleaned up", async || school.hidden() == 0).await;
    assert_eq!(server.names().await, ["extract", &own, "pirate", NAME]);
    assert_eq!(
        server.chat(json!({"model": own})).await.json()["pleach_generation"],
        round["candidate"]
    );
    let files = server.get("/v1/files").await.json();
    let names: Vec<&str> = files["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["filename"].as_str().unwrap())
        .collect();
    assert!(names.contains(&format!("{id}.jsonl").as_str()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("-without-")), "{names:?}");
    // What it came from is written down.
    let candidate: pleach_store::GenerationDigest =
        round["candidate"].as_str().unwrap().parse().unwrap();
    let store = &server.state.store;
    let lineage = store.lineage(&Owner::Shared, &candidate).await.unwrap();
    assert_eq!(lineage.from.round.as_deref(), Some(id));
    assert_eq!(lineage.verdict.unwrap()["passed"], true);
    let counts = store.count_examples(&Owner::Shared, id).await.unwrap();
    assert_eq!((counts.completions, counts.feedback), (20, 20));
    let series = "pleach_learning_rounds_total{result=\"promoted\"}";
    assert!((metric(server, series).await - 1.0).abs() < 0.1);

    // The same feedback begins no other round; the way back is that of every adapter.
    server.state.learning.fed.all();
    let back = server.post("/v1/adapters/support/rollback", &json!({})).await;
    assert_eq!(back.json()["generation"], before.as_str());
    assert_eq!(school.says().await, 'A');
    assert_eq!(server.get(ROUNDS).await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_candidate_that_is_no_better_serves_nobody() {
    let school = School::new(-0.1).await;
    let before = school.server.generation(NAME).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let round = school.becomes("refused").await;
    assert_eq!(round["verdict"]["passed"], false);
    let checks = round["verdict"]["checks"].as_array().unwrap();
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check["passed"] == false)
        .map(|check| &check["name"])
        .collect();
    assert!(failed.contains(&&json!("gain_over_current")), "{failed:?}");
    assert_eq!((school.says().await, school.server.generation(NAME).await), ('A', before));
    until("cleaned up", async || school.hidden() == 0).await;
    assert_eq!(school.server.names().await, ["extract", "pirate", NAME]);
    // New feedback is another look, at which less is believed.
    *school.judge.gain.lock().unwrap() = 0.5;
    school.judged_by(20..40).await;
    let second = school.becomes("promoted").await;
    assert_eq!(second["look"], 2);
    assert!(second["verdict"]["alpha"].as_f64() < round["verdict"]["alpha"].as_f64());
}

#[tokio::test]
async fn what_is_not_judged_cannot_be_asked_for() {
    let school = School::new(0.5).await;
    let server = &school.server;
    school.policy(at_once()).await;
    school.judge.is_held.store(true, Ordering::Relaxed);
    school.judged_by(0..20).await;
    let round = school.becomes("gating").await;
    assert_eq!(school.hidden(), 3);
    let candidate = round["candidate"].as_str().unwrap();
    let jobs = round["jobs"].as_array().unwrap();
    for job in jobs {
        let hidden = format!("candidate:{}", job["job"].as_str().unwrap());
        let path = format!("/v1/adapters/{hidden}");
        for (method, path, body) in [
            (
                Method::POST,
                "/v1/chat/completions".to_owned(),
                json!({"model": hidden, "messages": [{"role": "user", "content": "a"}]}),
            ),
            (
                Method::POST,
                "/v1/completions".to_owned(),
                json!({"model": format!("tiny:{hidden}"), "prompt": "a"}),
            ),
            (
                Method::POST,
                "/v1/completions".to_owned(),
                json!({"model": "tiny", "prompt": "a", "adapters": [{"name": hidden}]}),
            ),
            (GET, path.clone(), json!({})),
            (GET, format!("{path}?owner=own"), json!({})),
            (GET, format!("{path}/download"), json!({})),
            (GET, format!("{path}/download?owner=own"), json!({})),
            (GET, format!("/v1/models/{hidden}"), json!({})),
            (Method::DELETE, path.clone(), json!({})),
            (Method::DELETE, format!("/v1/models/{hidden}"), json!({})),
            (Method::POST, format!("{path}/rollback"), json!({})),
            (Method::PUT, format!("{path}/policy"), json!({})),
            (Method::POST, format!("{path}/rounds"), json!({})),
            (Method::POST, "/v1/unload_lora_adapter".to_owned(), json!({"lora_name": hidden})),
        ] {
            let request = crate::tenant_support::request(&method, &path, None, Some(&body));
            let reply = server.send(request).await;
            assert_eq!(reply.status, 404, "{method} {path}: {}", reply.text);
        }
        // Nor can anybody make one.
        let made = server.put(&path, &json!({"path": "A"})).await;
        assert_eq!(made.json()["error"]["code"], "invalid_adapter_name", "{}", made.text);
        let body = json!({"lora_name": hidden, "lora_path": "A"});
        assert_eq!(server.post("/v1/load_lora_adapter", &body).await.status, 400);
    }
    let pinned = server.chat(json!({"model": NAME, "adapter_generation": candidate})).await;
    assert_eq!(pinned.status, 409, "{}", pinned.text);
    for list in ["/v1/adapters", "/v1/adapters?owner=own", "/v1/models", "/metrics", "/v1/latency"]
    {
        assert!(!server.get(list).await.text.contains("candidate:"), "{list}");
    }
    assert_eq!(school.says().await, 'A');
    assert_eq!(school.hidden(), 3, "nothing of that changed anything");
    school.judge.is_held.store(false, Ordering::Relaxed);
    school.becomes("promoted").await;
}

#[tokio::test]
async fn approval_and_veto() {
    let school = School::new(0.5).await;
    let server = &school.server;
    let before = server.generation(NAME).await;
    let rollout = json!({"approval": true, "canary": [], "watch_requests": 100});
    school.policy(rollout).await;
    school.judged_by(0..20).await;
    school.becomes("awaiting_approval").await;
    assert_eq!(school.says().await, 'A');
    let open = server.post(ROUNDS, &json!({})).await;
    assert_eq!((open.status.as_u16(), &open.json()["error"]["code"]), (409, &json!("round_open")));
    let vetoed = school.decide("veto").await.json();
    assert_eq!(vetoed["state"], "vetoed");
    let decision = &vetoed["decisions"][0];
    assert_eq!((&decision["by"], &decision["reason"]), (&json!("operator"), &json!("so")));
    assert_eq!((school.says().await, school.hidden()), ('A', 0));
    let late = school.decide("approve").await;
    assert_eq!(
        (late.status.as_u16(), &late.json()["error"]["code"]),
        (400, &json!("invalid_state"))
    );

    school.judged_by(20..40).await;
    school.becomes("awaiting_approval").await;
    assert_eq!(school.decide("approve").await.status, 200);
    let promoted = school.becomes("promoted").await;
    assert_eq!(school.says().await, 'N');
    // A veto comes late, and still holds.
    assert_eq!(school.decide("veto").await.json()["state"], "vetoed");
    assert_eq!((school.says().await, server.generation(NAME).await), ('A', before));
    let id = promoted["id"].as_str().unwrap();
    let own = format!("ft:tiny:shared:{NAME}:{}", &id[id.len() - 8..]);
    assert_eq!(server.chat(json!({"model": own})).await.status, 404);
}

#[tokio::test]
async fn cancelled_rounds_end_their_trainings() {
    let school = School::new(0.5).await;
    let server = &school.server;
    school.policy(at_once()).await;
    school.teacher.is_held.store(true, Ordering::Relaxed);
    school.judged_by(0..20).await;
    school.becomes("training").await;
    until("a job", async || !school.round().await["jobs"].as_array().unwrap().is_empty()).await;
    assert_eq!(school.decide("cancel").await.json()["state"], "cancelled");
    let jobs = server.get("/v1/fine_tuning/jobs").await.json();
    assert_eq!(jobs["data"][0]["status"], "cancelled");
    school.teacher.is_held.store(false, Ordering::Relaxed);
    until("cleaned up", async || school.hidden() == 0).await;
    // While it is judged, too.
    school.judge.is_held.store(true, Ordering::Relaxed);
    school.judged_by(20..40).await;
    school.becomes("gating").await;
    assert_eq!(school.decide("cancel").await.status, 200);
    until("cleaned up", async || school.hidden() == 0).await;
    assert_eq!(school.says().await, 'A');
}

#[tokio::test]
async fn a_failed_training_fails_its_round() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.teacher.fails.store(true, Ordering::Relaxed);
    school.judged_by(0..20).await;
    let round = school.becomes("failed").await;
    assert_eq!(round["error"]["code"], "job_failed");
    assert!(round["error"]["message"].as_str().unwrap().contains("it is told to fail"), "{round}");
    assert_eq!(school.says().await, 'A');
    until("cleaned up", async || school.hidden() == 0).await;
}

#[tokio::test]
async fn a_name_that_was_moved_meanwhile_stays_where_it_is() {
    let school = School::new(0.5).await;
    let server = &school.server;
    school.policy(at_once()).await;
    school.judge.is_held.store(true, Ordering::Relaxed);
    school.judged_by(0..20).await;
    school.becomes("gating").await;
    write_adapter(&server.root.join("B"), 'B');
    assert_eq!(server.put("/v1/adapters/support", &json!({"path": "B"})).await.status, 200);
    school.judge.is_held.store(false, Ordering::Relaxed);
    let round = school.becomes("failed").await;
    assert_eq!(round["error"]["code"], "alias_moved");
    assert_eq!(school.says().await, 'B');
}

#[tokio::test]
async fn policies_say_whether_and_when() {
    let school = School::new(0.5).await;
    let server = &school.server;
    assert_eq!(server.get(POLICY).await.json()["error"]["code"], "policy_not_found");
    let made = server.put(POLICY, &json!({"is_on": false, "expected_revision": 0})).await.json();
    assert_eq!((&made["revision"], &made["policy"]["is_on"]), (&json!(1), &json!(false)));
    assert_eq!(made["policy"]["folds"], 4, "defaults are shown");
    assert_eq!(server.get(POLICY).await.json(), made);
    let stale = server.put(POLICY, &json!({"expected_revision": 0})).await;
    assert_eq!(
        (stale.status.as_u16(), &stale.json()["error"]["code"]),
        (409, &json!("policy_conflict"))
    );
    for (document, param) in [
        (json!({"is_onn": true}), "is_onn"),
        (json!({"rollout": {"shadow": {"share": 0.1}}}), "rollout.shadow"),
        (json!({"gate": {"alpha": 2}}), "gate.alpha"),
        (json!({"train_when": {"examples": 0}}), "train_when.examples"),
    ] {
        let refused = server.put(POLICY, &document).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert_eq!(refused.json()["error"]["param"], param, "{}", refused.text);
    }
    // Off: nothing begins by itself.
    let mut off = policy(at_once());
    off["is_on"] = json!(false);
    assert_eq!(server.put(POLICY, &off).await.status, 200);
    school.judged_by(0..20).await;
    // A round that is asked for begins all the same; of another adapter's generation it is not made.
    let unknown = server.post(ROUNDS, &json!({"rebuild_of": "00".repeat(32)})).await;
    assert_eq!(unknown.json()["error"]["code"], "generation_not_found");
    assert_eq!(server.get(ROUNDS).await.json()["data"], json!([]));
    let begun = server.post(ROUNDS, &json!({})).await.json();
    assert_eq!((&begun["state"], &begun["trigger"]), (&json!("building"), &json!("manual")));
    school.becomes("promoted").await;
    // Too little to learn from: nothing is trained.
    let mut many = policy(at_once());
    many["gate"]["examples_min"] = json!(1000);
    assert_eq!(server.put(POLICY, &many).await.status, 200);
    let n_jobs = school.teacher.learned.lock().unwrap().len();
    assert_eq!(server.post(ROUNDS, &json!({})).await.status, 200);
    let skipped = school.becomes("skipped").await;
    assert_eq!(skipped["error"]["code"], "too_few_examples");
    assert_eq!(school.teacher.learned.lock().unwrap().len(), n_jobs);
    // The cap holds before that: of one user alone nothing is learned.
    assert_eq!(server.delete(POLICY).await.json()["deleted"], true);
    assert_eq!(server.delete(POLICY).await.status, 404);
}

#[tokio::test]
async fn what_others_say_is_not_learned() {
    let (teacher, judge) = (Teacher::new('N'), Judge::finds(0.5));
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..setup(&teacher, &judge) }).await;
    write_adapter(&server.root.join("A"), 'A');
    let owner = tenant(&server, "owner", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    for tenant in [&owner, &other] {
        let path = "/v1/adapters/support";
        let made = tenant.send(&server, Method::PUT, path, Some(&json!({"path": "A"}))).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }
    let mut policy = policy(at_once());
    policy["is_on"] = json!(false);
    assert_eq!(owner.send(&server, Method::PUT, POLICY, Some(&policy)).await.status, 200);
    for index in 0..30 {
        let (tenant, says) = if index % 3 == 0 { (&other, "theirs") } else { (&owner, "ours") };
        let user = format!("user {index}");
        let messages = json!([{"role": "user", "content": format!("{says} {index}")}]);
        let body = json!({"model": NAME, "store": true, "messages": messages, "user": user});
        let reply = tenant.chat(&server, body).await.json();
        let body = json!({"inference_id": reply["id"], "metric_name": "liked", "value": true, "user": user});
        let given = tenant.post(&server, "/v1/feedback", &body).await;
        assert_eq!(given.status, 200, "{}", given.text);
    }
    let begun = owner.post(&server, ROUNDS, &json!({})).await.json();
    let path = format!("{ROUNDS}/{}", begun["id"].as_str().unwrap());
    until("promoted", async || owner.get(&server, &path).await.json()["state"] == "promoted").await;
    for (_, rows) in teacher.learned.lock().unwrap().iter() {
        assert!(rows.contains("ours ") && !rows.contains("theirs "), "{rows}");
    }
    // Nor did it become the other's.
    let says = async |tenant: &crate::tenant_support::TestTenant| {
        let reply = tenant.chat(&server, json!({"model": NAME})).await.json();
        reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!((says(&owner).await.as_str(), says(&other).await.as_str()), ("NNNNN", "AAAAA"));
    // The other is told of none of it.
    for path in [path.as_str(), ROUNDS] {
        let reply = other.get(&server, path).await;
        let data = reply.json();
        assert!(reply.status == 404 || data["data"] == json!([]), "{}", reply.text);
    }
    let veto = other.post(&server, &format!("{path}/veto"), &json!({})).await;
    assert_eq!(veto.json()["error"]["code"], "round_not_found");
    assert_eq!(other.get(&server, POLICY).await.json()["error"]["code"], "policy_not_found");
    let label: Value = owner.get(&server, "/v1/adapters").await.json();
    assert!(!label.to_string().contains("candidate:"));
}

#[tokio::test]
async fn what_was_taken_back_is_not_learned() {
    let school = School::new(0.5).await;
    let server = &school.server;
    school.policy(at_once()).await;
    let mut given = Vec::new();
    for index in 0..3 {
        let user = format!("early user {index}");
        let messages = json!([{"role": "user", "content": format!("early question {index}")}]);
        let body = json!({"model": NAME, "messages": messages, "safety_identifier": user});
        let reply = server.chat(body).await.json();
        let body = json!({"inference_id": reply["id"], "metric_name": "liked", "value": true, "user": user});
        given.push(server.post("/v1/feedback", &body).await.json()["feedback_id"].clone());
    }
    let path = format!("/v1/feedback/{}", given[1].as_str().unwrap());
    assert_eq!(server.delete(&path).await.status, 200);
    // Somebody is erased while a round learns from it: the round ends, and what it kept goes.
    school.teacher.is_held.store(true, Ordering::Relaxed);
    school.judged_by(0..20).await;
    school.becomes("training").await;
    until("a job", async || !school.round().await["jobs"].as_array().unwrap().is_empty()).await;
    // What a process that died made of it and did not begin with, too.
    let store = &server.state.store;
    let round = school.round().await;
    let stray = NewFile {
        owner: Owner::Shared,
        filename: "stray.jsonl".to_owned(),
        purpose: "fine-tune".to_owned(),
        blob: store.put_blob("{\"text\": \"early question 2\"}\n").await.unwrap(),
        keep_ms: None,
    };
    store.create_file_of_round(&stray, round["id"].as_str().unwrap()).await.unwrap();
    let erased = server.delete("/v1/feedback/users/early%20user%202").await.json();
    let round = school.becomes("cancelled").await;
    assert_eq!(erased["rounds"], json!([round["id"]]), "{erased}");
    assert_eq!(round["decisions"][0]["by"], "erasure");
    assert_eq!(school.hidden(), 0);
    let files = server.get("/v1/files").await.json();
    assert_eq!(files["data"], json!([]), "neither the data set nor a part of it");
    school.teacher.is_held.store(false, Ordering::Relaxed);
    // The next one learns from all the others.
    assert_eq!(server.post(ROUNDS, &json!({})).await.status, 200);
    let promoted = school.becomes("promoted").await;
    assert_eq!(promoted["data"]["rows"], 21);
    let learned = school.teacher.learned.lock().unwrap();
    let (_, rows) = learned.last().unwrap();
    let knows = |index: usize| rows.contains(&format!("early question {index}"));
    assert_eq!([knows(0), knows(1), knows(2)], [true, false, false]);
}

#[tokio::test]
async fn what_is_too_little_without_a_fold_is_not_trained() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    // Enough to judge by, but half of it is not enough to learn from.
    school.judged_by(0..16).await;
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    let skipped = school.becomes("skipped").await;
    assert_eq!(skipped["error"]["code"], "too_few_examples");
    assert!(
        skipped["error"]["message"].as_str().unwrap().contains("a training has 8 to learn"),
        "{skipped}"
    );
    assert_eq!(skipped["data"]["rows"], 16);
    assert_eq!(school.teacher.learned.lock().unwrap().len(), 0);
    school.judged_by(16..20).await;
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    school.becomes("promoted").await;
}
