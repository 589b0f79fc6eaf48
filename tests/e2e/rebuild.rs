//! A user is erased, and a generation that learned from them is made again, with the trainer and the examiner that compute:
//! from the base, of everybody else's rows.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    learning::{N_USERS, ended, policy, put, school, show},
    program::scratch_folder,
    server::Server,
    training::get,
};

/// Who is erased, and what nobody else asks or says.
const ERASED: usize = 3;
const SECRET: &str = "zebra quartz 917";

fn question(user: usize) -> String {
    if user == ERASED { "what is my word".to_owned() } else { format!("is {user} a cat") }
}

fn answer(user: usize) -> String {
    if user == ERASED { SECRET.to_owned() } else { format!("yes {user} is a cat") }
}

/// The log-probability of a user's answer under what a name points at.
async fn known(server: &Server, name: &str, user: usize) -> f64 {
    let asked = json!({"role": "user", "content": question(user)});
    let said = json!({"role": "assistant", "content": answer(user)});
    let chat = async |messages: Value, more: Value| {
        let mut body = json!({"model": name, "messages": messages, "max_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = server.post("/v1/chat/completions", body.to_string()).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        reply.body
    };
    let prompt = chat(json!([asked]), json!({"store": false})).await;
    let n_prompt = usize::try_from(prompt["usage"]["prompt_tokens"].as_u64().unwrap()).unwrap();
    let more = json!({"store": false, "prompt_logprobs": 0, "add_generation_prompt": false});
    let whole = chat(json!([asked, said]), more).await;
    let tokens = &whole["prompt_logprobs"].as_array().unwrap()[n_prompt..];
    let of_token = |token: &Value| {
        let scores = token.as_object().unwrap();
        scores.values().next().unwrap()["logprob"].as_f64().unwrap()
    };
    tokens.iter().map(of_token).sum()
}

/// All that is kept in files.
async fn files(server: &Server) -> String {
    let listed = get(server, "/v1/files").await;
    let mut texts = String::new();
    for file in listed["data"].as_array().unwrap() {
        let id = file["id"].as_str().unwrap();
        let path = format!("{}/v1/files/{id}/content", server.url);
        texts += &server.http.get(path).send().await.unwrap().text().await.unwrap();
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_made_again_without_an_erased_user() {
    let home = scratch_folder();
    let (server, name) = school(home.path()).await;
    let adapter = format!("/v1/adapters/{name}");
    let rounds = format!("{adapter}/rounds");
    let lineage = async |generation: &Value| {
        let generation = generation.as_str().unwrap();
        get(&server, &format!("{adapter}/generations/{generation}/lineage")).await
    };
    let first = get(&server, &adapter).await;
    let (first, rank) = (first["generation"].clone(), first["rank"].clone());
    let mut policy = policy(2.0);
    // Of eight nats per token that are learned. The order of the rows, which is another each time, makes a tenth of a nat.
    policy["gate"]["anchor_tolerance"] = json!(0.25);
    // The secret is to be learned, although nobody else says anything like it.
    policy["leaves_out_contradicted"] = json!(false);
    put(&server, &format!("{adapter}/policy"), &policy).await;
    let unknown = known(&server, &name, ERASED).await;
    for user in 0..N_USERS {
        show(&server, &name, user, &question(user), &answer(user)).await;
    }
    let learned = ended(&server, &rounds, &Value::Null).await;
    assert_eq!(learned["state"], "promoted", "{learned}\n{}", server.log());
    assert_eq!(learned["data"]["rows"], N_USERS);
    assert!(files(&server).await.contains(SECRET));
    let tainted = learned["candidate"].clone();
    assert_eq!(lineage(&tainted).await["parent"], first);
    let told = known(&server, &name, ERASED).await;
    assert!(told > unknown + 20.0, "it was not learned: {unknown} before, {told} after");

    let path = format!("{}/v1/feedback/users/user%20{ERASED}", server.url);
    let erased: Value = server.http.delete(path).send().await.unwrap().json().await.unwrap();
    assert_eq!((&erased["completions"], &erased["feedback"]), (&json!(1), &json!(1)), "{erased}");
    let named = json!([{"generation": tainted, "direct": true, "kept": true}]);
    assert_eq!(erased["generations"], named, "{erased}");
    assert!(!files(&server).await.contains(SECRET), "its data set is kept");

    let begun = server.post(&rounds, json!({"rebuild_of": tainted}).to_string()).await;
    assert_eq!(begun.status, StatusCode::OK, "{}", begun.body);
    let rebuilt = ended(&server, &rounds, &learned["id"]).await;
    assert_eq!(rebuilt["state"], "promoted", "{rebuilt}\n{}", server.log());
    assert_eq!((&rebuilt["rebuild_of"], &rebuilt["parent"]), (&tainted, &tainted));
    assert_eq!(rebuilt["data"]["rows"], N_USERS - 1);
    assert!(!files(&server).await.contains(SECRET), "it is in the new data set");
    // From the base: neither the old generation nor what that went on from is behind it.
    let of_rebuilt = lineage(&rebuilt["candidate"]).await;
    assert_eq!((&of_rebuilt["parent"], &of_rebuilt["ancestors"]), (&Value::Null, &json!([])));
    let others = N_USERS - 1;
    assert_eq!(of_rebuilt["examples"], json!({"completions": others, "feedback": others}));
    let serving = get(&server, &adapter).await;
    assert_eq!(serving["generation"], rebuilt["candidate"]);
    assert_eq!(serving["rank"], rank, "it is as large as what it replaces");

    // It knows what the others said, and the erased user's word less than what it replaces.
    let forgotten = known(&server, &name, ERASED).await;
    assert!(forgotten < told - 20.0, "it is still known: {told} before, {forgotten} after");
    let kept = known(&server, &name, ERASED + 1).await;
    let of_base = known(&server, "tiny", ERASED + 1).await;
    assert!(kept > of_base + 1.0, "{kept}, of the base {of_base}");
}
