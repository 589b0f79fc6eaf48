//! What cannot be wanted of the learning loop is told by its field, when it is asked for; what is found later ends the round.

use pleach_store::{NewFile, Owner};
use serde_json::json;

use crate::{
    learning_support::{NAME, POLICY, ROUNDS, School, at_once, policy},
    training_support::{new_file, rows},
};

/// Largest file of trusted rows, bytes.
const ANCHORS_MAX: usize = 64 << 20;

/// A file of the operator's that nobody has read before.
async fn unread_file(school: &School, purpose: &str, text: String) -> String {
    let store = &school.server.state.store;
    let (owner, filename) = (Owner::Shared, "rows.jsonl".to_owned());
    let (purpose, blob) = (purpose.to_owned(), store.put_blob(text).await.unwrap());
    let new = NewFile { owner, filename, purpose, blob, keep_ms: None };
    store.create_file(&new).await.unwrap().id
}

#[tokio::test]
async fn anchors_that_no_round_could_use_are_refused_with_the_policy() {
    let school = School::new(0.5).await;
    let good = new_file(&school.server, None, &rows(3)).await;
    let large = " ".repeat(ANCHORS_MAX + 1);
    for (anchors, told) in [
        ("file-none".to_owned(), "no such file"),
        (unread_file(&school, "fine-tune-results", rows(3)).await, "fine-tune-results"),
        (unread_file(&school, "fine-tune", large).await, "at most 67108864"),
        (unread_file(&school, "fine-tune", rows(2) + "{\"messages\": 7}\n").await, "line 3"),
        (unread_file(&school, "fine-tune", String::new()).await, "no rows"),
    ] {
        let refused = school.server.put(POLICY, &json!({ "anchors": anchors })).await;
        assert_eq!(refused.status, 400, "{told}: {}", refused.text);
        let error = &refused.json()["error"];
        assert_eq!(error["param"], "anchors", "{error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{told}: {error}");
    }
    assert_eq!(school.server.get(POLICY).await.status, 404, "nothing of that was kept");
    assert_eq!(school.server.put(POLICY, &json!({ "anchors": good })).await.status, 200);
}

/// It was not tried again and again.
#[tokio::test]
async fn data_that_is_too_large_ends_its_round() {
    let school = School::new(0.5).await;
    let mut wanted = policy(at_once());
    wanted["anchors"] = json!(unread_file(&school, "fine-tune", " ".repeat(ANCHORS_MAX + 1)).await);
    // As an earlier version would have taken it.
    let put = school.server.state.store.put_policy(&Owner::Shared, NAME, &wanted, None).await;
    put.unwrap();
    school.judged_by(0..20).await;
    let round = school.becomes("failed").await;
    assert_eq!(round["error"]["code"], "data_too_large", "{round}");
}

#[tokio::test]
async fn reasons_and_names_that_cannot_be_are_told_by_their_field() {
    let school = School::new(0.5).await;
    school.policy(json!({"approval": true})).await;
    school.judged_by(0..20).await;
    let round = school.becomes("awaiting_approval").await;
    let veto = format!("{ROUNDS}/{}/veto", round["id"].as_str().unwrap());
    for reason in ["one\ntwo".to_owned(), "\0".to_owned(), "\u{7f}".to_owned(), "x".repeat(513)] {
        let refused = school.server.post(&veto, &json!({ "reason": reason })).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status.as_u16(), &error["param"]), (400, &json!("reason")), "{error}");
    }
    let long = "m".repeat(200_000);
    for (document, param) in [
        (json!({"signals": {"metrics": {long: {"good": true}}}}), "signals.metrics.mmm"),
        (json!({"probes": vec!["\u{1}".repeat(4000); 64]}), "probes"),
    ] {
        let refused = school.server.put(POLICY, &document).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        let named = refused.json()["error"]["param"].as_str().unwrap().to_owned();
        assert!(named.starts_with(param) && named.len() < 100, "{named}");
    }
    assert_eq!(school.round().await["state"], "awaiting_approval");
}
