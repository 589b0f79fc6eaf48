//! Trusted rows in a round with the trainer and the examiner that compute: some are learned from, the others judge, and a
//! candidate that forgets them is refused however much it gains elsewhere.

use serde_json::{Value, json};

use crate::{
    learning::{N_USERS, check, ended, policy, put, school, show},
    program::scratch_folder,
    server::Server,
    training::{get, new_file},
};

const TOLERANCE: f64 = 0.2;

fn trusted(n: usize) -> Value {
    json!({"messages": [
        {"role": "user", "content": format!("who sat on mat {n}")},
        {"role": "assistant", "content": format!("the cat {n} sat there")},
    ]})
}

/// The questions of the rows that a round learned from, by whether they are trusted.
async fn questions(server: &Server, round: &Value, is_trusted: bool) -> Vec<String> {
    let file = round["training_file"].as_str().unwrap();
    let path = format!("{}/v1/files/{file}/content", server.url);
    let text = server.http.get(path).send().await.unwrap().text().await.unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows = rows.filter(|row| (row["trusted"] == true) == is_trusted);
    rows.map(|row| row["messages"][0]["content"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trusted_rows_are_learned_from_and_judge() {
    let home = scratch_folder();
    let (server, name) = school(home.path()).await;
    let adapter = format!("/v1/adapters/{name}");
    let rounds = format!("{adapter}/rounds");
    let anchors = new_file(&server, &(0..N_USERS).map(trusted).collect::<Vec<_>>()).await;
    let with_anchors = |share: f64| {
        let mut policy = policy(20.0);
        policy["gate"]["anchor_tolerance"] = json!(TOLERANCE);
        policy["anchors"] = json!(anchors);
        policy["anchor_share"] = json!(share);
        policy
    };

    put(&server, &format!("{adapter}/policy"), &with_anchors(0.25)).await;
    for user in 0..N_USERS {
        let question = format!("is {user} a cat in turn 0");
        show(&server, &name, user, &question, &format!("yes {user} is a cat")).await;
    }
    let first = ended(&server, &rounds, &Value::Null).await;
    assert_eq!(first["state"], "promoted", "{first}\n{}", server.log());
    let count = |what: &str| first["data"][what].as_u64().unwrap();
    assert!(count("anchors_learned") > 0 && count("anchors_judged") > 0, "{first}");
    assert_eq!(count("anchors_learned") + count("anchors_judged"), N_USERS as u64);
    let learned = questions(&server, &first, true).await;
    assert_eq!(learned.len() as u64, count("anchors_learned"));
    assert!(learned.iter().all(|question| question.starts_with("who sat on mat ")), "{learned:?}");
    assert_eq!(questions(&server, &first, false).await.len(), N_USERS);
    // What was learned of some shows on the others, which nothing learned from.
    let judged = check(&first, "anchors");
    assert!(judged["value"].as_f64().unwrap() > 0.0, "{first}");
    let second = get(&server, &adapter).await["generation"].clone();
    assert_eq!(second, first["candidate"]);

    // People show nonsense on what the trusted rows are about.
    put(&server, &format!("{adapter}/policy"), &with_anchors(0.0)).await;
    for user in 0..N_USERS {
        let question = format!("who sat on mat {}", 100 + user);
        show(&server, &name, user, &question, &format!("zq {user} zq zq zq")).await;
    }
    let refused = ended(&server, &rounds, &first["id"]).await;
    assert_eq!(refused["state"], "refused", "{refused}\n{}", server.log());
    assert_eq!(refused["data"]["anchors_learned"], 0);
    let gain = check(&refused, "gain_over_current");
    assert_eq!(gain["passed"], true, "people's own rows are learned: {refused}");
    let judged = check(&refused, "anchors");
    assert_eq!(judged["passed"], false, "{refused}");
    assert!(judged["value"].as_f64().unwrap() < -TOLERANCE, "{refused}");
    assert_eq!(get(&server, &adapter).await["generation"], second);

    // Nothing else stood in its way: without trusted rows the same is promoted.
    put(&server, &format!("{adapter}/policy"), &policy(20.0)).await;
    let begun = server.post(&rounds, "{}").await;
    let third = ended(&server, &rounds, &refused["id"]).await;
    assert_eq!(begun.body["id"], third["id"]);
    assert_eq!(third["state"], "promoted", "{third}\n{}", server.log());
    assert_eq!(get(&server, &adapter).await["generation"], third["candidate"]);
}
