//! A generation that is made again: from the base, of what is left of its data, and judged as one that forgets.

use pleach_store::{GenerationDigest, Owner};
use serde_json::{Value, json};

use crate::{
    learning_poison::{learned, with_a_liar},
    learning_support::{LIE, NAME, POLICY, ROUNDS, School, at_once, policy},
    support::Reply,
    tenant_support::until,
};

/// What a round's trainings go on from, and whose shape they have.
async fn begun_at(school: &School, round: &Value) -> Vec<(Value, Value)> {
    let mut begun = Vec::new();
    for job in round["jobs"].as_array().unwrap() {
        let id = job["job"].as_str().unwrap();
        let job = school.server.state.store.job(&Owner::Shared, id).await.unwrap();
        let spec: Value = serde_json::from_str(&job.spec).unwrap();
        begun.push((spec["parent"].clone(), spec["shape_of"].clone()));
    }
    begun
}

async fn ask_for(school: &School, generation: &Value) -> Reply {
    school.server.post(ROUNDS, &json!({"rebuild_of": generation})).await
}

/// Makes a generation again, which says a letter then, and waits until that has come to an end.
async fn rebuilt(school: &School, generation: &Value, letter: char, end: &str) -> Value {
    *school.teacher.letter.lock().unwrap() = letter;
    let begun = ask_for(school, generation).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    school.becomes(end).await
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
    assert_eq!(begun_at(&school, &learned).await, vec![(first, Value::Null); 3]);

    let erased = server.delete("/v1/feedback/users/ann").await.json();
    // What served, and none of the folds: one of them has not even seen her.
    let named = json!([{"generation": tainted, "direct": true, "kept": true}]);
    assert_eq!(erased["generations"], named);
    let n_learned = school.teacher.learned.lock().unwrap().len();
    // What forgets something need not be better for it.
    *school.judge.gain.lock().unwrap() = -0.02;
    let rebuilt = rebuilt(&school, tainted, 'O', "promoted").await;
    assert_eq!((&rebuilt["rebuild_of"], &rebuilt["parent"]), (tainted, tainted));
    assert_eq!(rebuilt["data"]["rows"], 23);
    // One training, as large as what it replaces.
    assert_eq!(begun_at(&school, &rebuilt).await, [(Value::Null, tainted.clone())]);
    let trained = school.teacher.learned.lock().unwrap()[n_learned..].to_vec();
    assert_eq!(trained.iter().map(|(fold, _)| fold.as_str()).collect::<Vec<_>>(), ["all"]);
    assert!(!trained[0].1.contains("my secret question"));
    // It is compared with what it replaces, on rows that both have learned from.
    let exam = school.judge.exams.lock().unwrap().last().unwrap().clone();
    let digest = |generation: &pleach_adapters::Generation| json!(generation.digest.to_string());
    assert_eq!(digest(exam.current.as_ref().unwrap()), *tainted);
    assert_eq!(
        exam.folds.iter().map(|fold| digest(fold)).collect::<Vec<_>>(),
        [rebuilt["candidate"].clone()]
    );
    assert_eq!(exam.rows.iter().map(|row| row.fold).collect::<Vec<_>>(), [0; 23]);
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
async fn generations_of_folds_are_gone_when_a_round_has_ended() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let round = school.becomes("promoted").await;
    // Whoever holds one keeps it, as an examination that runs does.
    school.judge.exams.lock().unwrap().clear();
    let store = &school.server.state.store;
    let kept = async || {
        let mut kept = Vec::new();
        for job in round["jobs"].as_array().unwrap() {
            let generation: GenerationDigest = job["generation"].as_str().unwrap().parse().unwrap();
            let is_fold = !job["fold"].is_null();
            kept.push((is_fold, store.generation(&Owner::Shared, &generation).await.is_ok()));
        }
        kept
    };
    let wanted = [(true, false), (true, false), (false, true)];
    until("generations of folds are gone", async || kept().await == wanted).await;
}

#[tokio::test]
async fn it_has_to_be_no_worse_than_is_tolerated() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let learned = school.becomes("promoted").await;
    *school.judge.gain.lock().unwrap() = -0.2;
    rebuilt(&school, &learned["candidate"], 'O', "refused").await;
    // What is no rebuild has to be better.
    *school.judge.gain.lock().unwrap() = -0.02;
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    school.becomes("refused").await;
    assert_eq!(school.says().await, 'N');
}

#[tokio::test]
async fn earlier_generations_are_nothing_to_it() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    school.becomes("promoted").await;
    *school.teacher.letter.lock().unwrap() = 'O';
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    let second = school.becomes("promoted").await;
    rebuilt(&school, &second["candidate"], 'P', "promoted").await;
    // There is one that was judged to be better than the base. It may have learned from what is to be forgotten.
    assert!(school.judge.exams.lock().unwrap().last().unwrap().best.is_none());
    *school.teacher.letter.lock().unwrap() = 'Q';
    assert_eq!(school.server.post(ROUNDS, &json!({})).await.status, 200);
    school.becomes("promoted").await;
    assert!(school.judge.exams.lock().unwrap().last().unwrap().best.is_some());
}

#[tokio::test]
async fn it_learns_from_nothing_that_came_later() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let first = school.becomes("promoted").await;
    school.judged_by(20..25).await;
    let second = rebuilt(&school, &first["candidate"], 'O', "promoted").await;
    assert_eq!(second["data"]["rows"], 20);
    // That is still waited for with what comes.
    school.judged_by(25..40).await;
    until("the next one", async || school.round().await["id"] != second["id"]).await;
    let third = school.becomes("promoted").await;
    assert_eq!((&third["trigger"], &third["data"]["rows"]), (&json!("examples"), &json!(40)));
    assert_eq!(third["parent"], second["candidate"]);
}

#[tokio::test]
async fn who_was_left_out_stays_left_out() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    with_a_liar(&school, LIE).await;
    let first = school.becomes("promoted").await;
    let second = rebuilt(&school, &first["candidate"], 'O', "promoted").await;
    assert_eq!(learned(&school)[3..], [("all".to_owned(), 18, 0)]);
    assert_eq!((&second["left_out"], &second["data"]["rows"]), (&first["left_out"], &json!(20)));
    // Unless the owner wants everybody.
    let mut everybody = policy(at_once());
    everybody["leaves_out_contradicted"] = json!(false);
    assert_eq!(school.server.put(POLICY, &everybody).await.status, 200);
    let third = rebuilt(&school, &second["candidate"], 'P', "promoted").await;
    assert_eq!(learned(&school)[4..], [("all".to_owned(), 20, 2)]);
    assert!(third["left_out"].is_null(), "{third}");
}

#[tokio::test]
async fn too_little_may_be_left_of_its_data() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    school.judged_by(0..20).await;
    let first = school.becomes("promoted").await;
    for user in 0..11 {
        let erased = school.server.delete(&format!("/v1/feedback/users/user%20{user}")).await;
        assert_eq!(erased.json()["feedback"], 1, "{}", erased.text);
    }
    let skipped = rebuilt(&school, &first["candidate"], 'O', "skipped").await;
    assert_eq!(skipped["error"]["code"], "too_few_examples");
    let message = skipped["error"]["message"].as_str().unwrap();
    assert!(message.contains("9 rows, of which a training has 9"), "{message}");
    assert_eq!(school.says().await, 'N');
}

#[tokio::test]
async fn only_what_serves_and_a_round_made_is_made_again() {
    let school = School::new(0.5).await;
    let uploaded = json!(school.server.generation(NAME).await);
    let refused = async |generation: &Value, why: &str| {
        let refused = ask_for(&school, generation).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert_eq!(refused.json()["error"]["param"], "rebuild_of", "{}", refused.text);
        assert!(refused.text.contains(why), "{}", refused.text);
    };
    school.policy(at_once()).await;
    refused(&uploaded, "no round made it").await;
    school.judged_by(0..20).await;
    school.becomes("promoted").await;
    refused(&uploaded, "points at another generation").await;
}
