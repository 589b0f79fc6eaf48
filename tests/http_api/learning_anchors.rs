//! Trusted rows of a policy: which of them every training learns from, and what the others decide.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    learning_support::{NAME, POLICY, School, at_once, policy},
    training_support::new_file,
};

const N_TRUSTED: usize = 12;

fn trusted(n: usize) -> Value {
    json!({"prompt": format!("trusted question {n}"), "completion": "well", "label": true})
}

/// A policy by which a fifth of what is learned from is trusted, and the id of the file.
async fn with_anchors(school: &School) -> String {
    let rows: String = (0..N_TRUSTED).map(|n| trusted(n).to_string() + "\n").collect();
    let file = new_file(&school.server, None, &rows).await;
    let mut policy = policy(at_once());
    policy["anchors"] = json!(file);
    policy["anchor_share"] = json!(0.2);
    let put = school.server.put(POLICY, &policy).await;
    assert_eq!(put.status, 200, "{}", put.text);
    file
}

/// What rows ask that are trusted.
fn questions<'a>(rows: impl Iterator<Item = &'a Value>) -> BTreeSet<String> {
    let questions = rows.filter_map(|row| row["prompt"].as_str());
    questions.map(ToOwned::to_owned).collect()
}

fn check<'a>(round: &'a Value, name: &str) -> &'a Value {
    let checks = round["verdict"]["checks"].as_array().unwrap_or_else(|| panic!("{round}"));
    checks.iter().find(|check| check["name"] == name).unwrap()
}

#[tokio::test]
async fn what_is_judged_by_is_learned_by_nothing() {
    let school = School::new(0.5).await;
    with_anchors(&school).await;
    school.judged_by(0..20).await;
    let round = school.becomes("promoted").await;
    let (data, check) = (&round["data"], check(&round, "anchors"));
    // Five of 25.
    assert_eq!((&data["anchors_learned"], &data["anchors_judged"]), (&json!(5), &json!(7)));
    assert_eq!((&check["passed"], data["rows"].as_u64()), (&json!(true), Some(20)));

    let learned = school.teacher.learned.lock().unwrap().clone();
    assert_eq!(learned.len(), 3);
    let of_jobs: Vec<_> = learned
        .iter()
        .map(|(_, text)| {
            let rows: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let (trusted, others): (Vec<_>, Vec<_>) =
                rows.iter().partition(|row| row["trusted"] == true);
            // Trusted rows are held out of nothing.
            assert_eq!(questions(others.into_iter()), BTreeSet::new());
            questions(trusted.into_iter())
        })
        .collect();
    assert_eq!(of_jobs[0].len(), 5);
    assert!(of_jobs.iter().all(|questions| *questions == of_jobs[0]), "{of_jobs:?}");
    let exam = school.judge.exams.lock().unwrap()[0].clone();
    let judged = questions(exam.anchors.as_ref().unwrap().iter());
    assert!(judged.is_disjoint(&of_jobs[0]), "{judged:?} {:?}", of_jobs[0]);
    let all: Vec<Value> = (0..N_TRUSTED).map(trusted).collect();
    assert_eq!(&judged | &of_jobs[0], questions(all.iter()));
    // They are nobody's feedback.
    assert!(exam.rows.iter().all(|row| row.value.get("prompt").is_none()));
}

#[tokio::test]
async fn a_candidate_that_is_worse_on_trusted_rows_is_refused() {
    let school = School::new(0.5).await;
    with_anchors(&school).await;
    let before = school.server.generation(NAME).await;
    *school.judge.anchor_gain.lock().unwrap() = -0.2;
    school.judged_by(0..20).await;
    let refused = school.becomes("refused").await;
    let checks = refused["verdict"]["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["passed"] == false).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0]["name"], "anchors");
    assert_eq!((school.says().await, school.server.generation(NAME).await), ('A', before));
    // A loss within the tolerance is none.
    *school.judge.anchor_gain.lock().unwrap() = -0.02;
    school.judged_by(20..40).await;
    let promoted = school.becomes("promoted").await;
    assert!(check(&promoted, "anchors")["value"].as_f64().unwrap() < 0.0);
    assert_eq!(school.says().await, 'N');
}

#[tokio::test]
async fn without_its_trusted_rows_a_round_fails() {
    let school = School::new(0.5).await;
    let file = with_anchors(&school).await;
    let deleted = school.server.delete(&format!("/v1/files/{file}")).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text);
    school.judged_by(0..20).await;
    let failed = school.becomes("failed").await;
    assert_eq!(failed["error"]["code"], "anchors_not_found", "{failed}");
    assert_eq!(school.teacher.learned.lock().unwrap().len(), 0);
    assert_eq!(school.says().await, 'A');
}
