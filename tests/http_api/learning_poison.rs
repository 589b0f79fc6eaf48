//! What nobody learns from: users whom all others contradict.

use serde_json::json;

use crate::learning_support::{LIE, NAME, POLICY, SPOILT, School, answered, at_once, policy};

/// Eighteen users say something, and one what all others contradict, on two answers.
pub(crate) async fn with_a_liar(school: &School, lie: &str) {
    school.judged_by(0..18).await;
    for _ in 0..2 {
        let said = json!([{"role": "user", "content": format!("I say that {lie}, do you?")}]);
        let body = json!({"model": NAME, "safety_identifier": "liar", "messages": said});
        let (id, _) = answered(&school.server.chat(body).await);
        school.likes(&id, "liar", true).await;
    }
}

/// By training, how many rows were learned from and how many of them lie.
pub(crate) fn learned(school: &School) -> Vec<(String, usize, usize)> {
    let learned = school.teacher.learned.lock().unwrap();
    let counts = learned.iter().map(|(fold, rows)| {
        let lies = rows.lines().filter(|row| row.contains(LIE)).count();
        (fold.clone(), rows.lines().count(), lies)
    });
    counts.collect()
}

/// Rows that say something, of those that the candidate was judged by.
fn judged_by(school: &School, said: &str) -> usize {
    let exams = school.judge.exams.lock().unwrap();
    exams[0].rows.iter().filter(|row| row.value.to_string().contains(said)).count()
}

#[tokio::test]
async fn whoever_is_contradicted_is_not_learned_from() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    with_a_liar(&school, LIE).await;
    let round = school.becomes("promoted").await;
    let [(_, n_first, lies_first), (_, n_second, lies_second), (all, n_all, lies_all)] =
        learned(&school).try_into().unwrap();
    // One of the folds has learned from it, the other one tells.
    assert_eq!((n_first + n_second, lies_first + lies_second), (20, 2));
    assert_eq!((all.as_str(), n_all, lies_all), ("all", 18, 0));
    let left_out = round["left_out"].as_array().unwrap();
    assert_eq!(left_out.len(), 1, "{round}");
    assert_eq!((&left_out[0]["rows"], &left_out[0]["score_after"]), (&json!(2), &json!(-3.0)));
    // What was as unlikely before says nothing of the candidate.
    assert_eq!((&left_out[0]["judges"], judged_by(&school, LIE)), (&json!(false), 0));
    // What it came from says so, and no file of a part is left.
    let candidate = round["candidate"].as_str().unwrap();
    let path = format!("/v1/adapters/{NAME}/generations/{candidate}/lineage");
    let lineage = school.server.get(&path).await.json();
    assert_eq!(lineage["recipe"]["rows_left_out"], 2, "{lineage}");
    let files = school.server.get("/v1/files").await;
    assert!(!files.text.contains("-without-"), "{}", files.text);
}

#[tokio::test]
async fn whoever_was_told_well_before_judges() {
    let school = School::new(0.5).await;
    school.policy(at_once()).await;
    with_a_liar(&school, SPOILT).await;
    let round = school.becomes("promoted").await;
    assert_eq!(round["left_out"][0]["rows"], 2, "{round}");
    assert_eq!((&round["left_out"][0]["judges"], judged_by(&school, SPOILT)), (&json!(true), 2));
}

#[tokio::test]
async fn a_policy_may_learn_from_everybody() {
    let school = School::new(0.5).await;
    let mut everybody = policy(at_once());
    everybody["leaves_out_contradicted"] = json!(false);
    let put = school.server.put(POLICY, &everybody).await;
    assert_eq!(put.status, 200, "{}", put.text);
    with_a_liar(&school, LIE).await;
    let round = school.becomes("promoted").await;
    assert_eq!(learned(&school)[2], ("all".to_owned(), 20, 2));
    assert!(round["left_out"].is_null(), "{round}");
}
