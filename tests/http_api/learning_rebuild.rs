//! A generation that is made again: from the base, of what is left of its data, and judged as one that forgets.

use pleach_store::Owner;
use serde_json::{Value, json};

use crate::learning_support::{NAME, ROUNDS, School, at_once};

/// The parents of a round's trainings.
async fn parents(school: &School, round: &Value) -> Vec<Value> {
    let mut parents = Vec::new();
    for job in round["jobs"].as_array().unwrap() {
        let id = job["job"].as_str().unwrap();
        let job = school.server.state.store.job(&Owner::Shared, id).await.unwrap();
        parents.push(serde_json::from_str::<Value>(&job.spec).unwrap()["parent"].clone());
    }
    parents
}

async fn rebuild(school: &School, generation: &Value) {
    let begun = school.server.post(ROUNDS, &json!({"rebuild_of": generation})).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
}

#[tokio::test]
async fn it_begins_at_the_base_without_what_was_erased() {
    let school = School::new(0.5).await;
    let server = &school.server;
    let first = json!(server.generation(NAME).await);
    let messages = json!([{"role": "user", "content": "my secret question"}]);
    let chat = json!({"model": NAME, "messages": messages, "safety_identifier": "ann"});
    let answer = server.chat(chat).await.json();
    school.likes(answer["id"].as_str().unwrap(), "ann", true).await;
    // More than the policy waits for.
    school.judged_by(0..23).await;
    school.policy(at_once()).await;
    let learned = school.becomes("promoted").await;
    let tainted = &learned["candidate"];
    assert_eq!(learned["data"]["rows"], 24);
    assert_eq!(parents(&school, &learned).await, vec![first; 3]);

    let erased = server.delete("/v1/feedback/users/ann").await.json();
    // Beside it those of the folds.
    let named = json!({"generation": tainted, "direct": true, "kept": true});
    assert!(erased["generations"].as_array().unwrap().contains(&named), "{erased}");
    let n_learned = school.teacher.learned.lock().unwrap().len();
    // What forgets something need not be better for it.
    *school.judge.gain.lock().unwrap() = -0.02;
    *school.teacher.letter.lock().unwrap() = 'O';
    rebuild(&school, tainted).await;
    let rebuilt = school.becomes("promoted").await;
    assert_eq!((&rebuilt["rebuild_of"], &rebuilt["parent"]), (tainted, tainted));
    assert_eq!(rebuilt["data"]["rows"], 23);
    assert_eq!(parents(&school, &rebuilt).await, vec![Value::Null; 3]);
    for (fold, rows) in &school.teacher.learned.lock().unwrap()[n_learned..] {
        assert!(!rows.contains("my secret question"), "of fold {fold}");
    }
    // It is compared with what it replaces.
    let current = school.judge.exams.lock().unwrap().last().unwrap().current.clone().unwrap();
    assert_eq!(json!(current.digest.to_string()), *tainted);
    assert_eq!(school.says().await, 'O');
    let path = format!(
        "/v1/adapters/{NAME}/generations/{}/lineage",
        rebuilt["candidate"].as_str().unwrap()
    );
    let lineage = server.get(&path).await.json();
    assert_eq!((&lineage["parent"], &lineage["ancestors"]), (&Value::Null, &json!([])));
    assert_eq!(lineage["examples"], json!({"completions": 23, "feedback": 23}));
    // No generation that learned from her is left to be named but the old one, of which nobody knows any more by whom.
    let again = server.delete("/v1/feedback/users/ann").await.json();
    assert_eq!(again["generations"], json!([]));
}

#[tokio::test]
async fn it_has_to_be_no_worse_than_is_tolerated() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let learned = school.becomes("promoted").await;
    *school.judge.gain.lock().unwrap() = -0.2;
    rebuild(&school, &learned["candidate"]).await;
    school.becomes("refused").await;
    // What is no rebuild has to be better.
    *school.judge.gain.lock().unwrap() = -0.02;
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    school.becomes("refused").await;
    assert_eq!(school.says().await, 'N');
}
