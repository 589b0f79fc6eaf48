//! Where adapters came from: told to their owner, for programs and people; and what learned from what is taken back.

use std::{collections::BTreeMap, io::Read as _};

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request},
};
use pleach::feedback::user_digest;
use pleach_store::{
    Example, ExampleKind, GenerationDigest, NewLineage, NewRound, Owner, Quotas, RoundChange,
    RoundState,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    support::{BASE, OPERATOR_KEY, Server, Setup, serve, write_adapter},
    tenant_support::{TestTenant, tenant, until},
    training_support::{Script, new_file, rows},
};

const JOBS: &str = "/v1/fine_tuning/jobs";

async fn server() -> Server {
    let trainer = Some(Script::steps(2) as _);
    serve(Setup { api_key: Some(OPERATOR_KEY), trainer, capture: true, ..Setup::default() }).await
}

/// What a tenant has trained: the job's id, the model's name, its generation.
async fn trained(server: &Server, owner: &TestTenant) -> (String, String, String) {
    let file = new_file(server, Some(&owner.key), &rows(12)).await;
    let method = json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}});
    let body = json!({"model": BASE, "training_file": file, "seed": 7, "method": method});
    let begun = owner.post(server, JOBS, &body).await.json();
    let id = begun["id"].as_str().unwrap().to_owned();
    let path = format!("{JOBS}/{id}");
    until("it is trained", async || owner.get(server, &path).await.json()["status"] == "succeeded")
        .await;
    let done = owner.get(server, &path).await.json();
    let model = done["fine_tuned_model"].as_str().unwrap().to_owned();
    let card = owner.get(server, &format!("/v1/adapters/{model}")).await.json();
    (id, model, card["generation"].as_str().unwrap().to_owned())
}

fn path(name: &str, generation: &str, what: &str) -> String {
    format!("/v1/adapters/{name}/generations/{generation}/{what}")
}

fn digest(text: &str) -> GenerationDigest {
    text.parse().unwrap()
}

async fn unpacked(server: &Server, path: &str, key: &str) -> BTreeMap<String, String> {
    let request = Request::get(path).header("authorization", format!("Bearer {key}"));
    let response = server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await;
    let bytes = to_bytes(response.unwrap().into_body(), usize::MAX).await.unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        (name, String::from_utf8_lossy(&content).into_owned())
    });
    files.collect()
}

#[tokio::test]
async fn what_a_job_trained_has_a_lineage_and_a_card() {
    let server = server().await;
    let owner = tenant(&server, "owner", Quotas::default()).await;
    let (job, model, generation) = trained(&server, &owner).await;
    let lineage = owner.get(&server, &path(&model, &generation, "lineage")).await;
    assert_eq!(lineage.status, 200, "{}", lineage.text);
    let lineage = lineage.json();
    let expected = json!({
        "generation": generation, "object": "adapter.lineage", "adapter": model,
        "base_digest": "ab".repeat(32), "parent": null, "ancestors": [], "round": null, "job": job,
        "data_sha256": "00", "examples": null, "seed": 7, "verdict": null,
        "recipe": {"method": "supervised", "precision": "f32", "hyperparameters": {
            "batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": 2,
            "beta": "auto", "lora_rank": "auto",
        }},
        "created_at": lineage["created_at"], "kept": true,
    });
    assert_eq!(lineage, expected);

    let card = owner.get(&server, &path(&model, &generation, "card")).await;
    assert_eq!(card.headers["content-type"], "text/markdown; charset=utf-8");
    for part in
        ["library_name: peft", &generation, &job, "hyperparameters.n\\_epochs", "not judged"]
    {
        assert!(card.text.contains(part), "{part:?} is not in\n{}", card.text);
    }
    // It comes with the files, and the folder is still an adapter's.
    let files = unpacked(&server, &format!("/v1/adapters/{model}/download"), &owner.key).await;
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(files["README.md"], card.text);

    // So has what was on the way.
    let checkpoint = format!("{model}:ckpt-step-1");
    let of_checkpoint = owner.get(&server, &format!("/v1/adapters/{checkpoint}")).await.json();
    let at = of_checkpoint["generation"].as_str().unwrap();
    let of_checkpoint = owner.get(&server, &path(&checkpoint, at, "lineage")).await;
    assert_eq!(of_checkpoint.json()["job"], job);
    assert_ne!(at, generation);
    // It is that of its own name, and outlives it.
    let wrong = owner.get(&server, &path(&checkpoint, &generation, "lineage")).await;
    assert_eq!((wrong.status.as_u16(), code(&wrong.json())), (404, "lineage_not_found".to_owned()));
    owner.send(&server, Method::DELETE, &format!("/v1/models/{model}"), None).await;
    until("its generation is gone", async || {
        let lineage = owner.get(&server, &path(&model, &generation, "lineage")).await;
        lineage.status == 200 && lineage.json()["kept"] == false
    })
    .await;
}

fn code(error: &Value) -> String {
    error["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_lineage_is_its_owners_alone() {
    let server = server().await;
    let owner = tenant(&server, "owner", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let (_, model, generation) = trained(&server, &owner).await;
    for what in ["lineage", "card"] {
        let theirs = other.get(&server, &path(&model, &generation, what)).await;
        let nobodys = other.get(&server, &path("nobody", &generation, what)).await;
        assert_eq!((theirs.status.as_u16(), &theirs.text), (404, &nobodys.text));
        let no_digest = owner.get(&server, &path(&model, "x", what)).await;
        assert_eq!(no_digest.status, 400);
        assert_eq!(no_digest.json()["error"]["param"], "generation");
    }
    // What was not trained here has none.
    write_adapter(&server.root.join("A"), 'A');
    let body = json!({"path": "A"});
    let put = owner.send(&server, Method::PUT, "/v1/adapters/mine", Some(&body)).await.json();
    let uploaded = put["generation"].as_str().unwrap();
    let none = owner.get(&server, &path("mine", uploaded, "lineage")).await;
    assert_eq!((none.status.as_u16(), code(&none.json())), (404, "lineage_not_found".to_owned()));
    let files = unpacked(&server, "/v1/adapters/mine/download", &owner.key).await;
    assert_eq!(files.len(), 2);
}

/// A chat of `user` that is kept, and feedback on it of `rater`: both ids.
async fn rated(server: &Server, owner: &TestTenant, user: &str, rater: &str) -> (String, String) {
    let chat = owner.chat(server, json!({"store": true, "user": user})).await.json();
    let id = chat["id"].as_str().unwrap().to_owned();
    let body = json!({"inference_id": id, "metric_name": "liked", "value": true, "user": rater});
    let given = owner.post(server, "/v1/feedback", &body).await;
    assert_eq!(given.status, 200, "{}", given.text);
    (id, given.json()["feedback_id"].as_str().unwrap().to_owned())
}

/// A round that trains on these, with a generation for the first and one that goes on from that: both.
async fn new_round(
    server: &Server,
    owner: &Owner,
    name: &str,
    examples: Vec<Example>,
    first: u8,
) -> (String, [GenerationDigest; 2]) {
    let store = &server.state.store;
    let new = NewRound { name, parent: None, rebuild_of: None, progress: Value::Null };
    let made = store.create_round(owner, &new).await.unwrap();
    store.claim_round("test", std::time::Duration::from_mins(1), true).await.unwrap().unwrap();
    let state = Some(RoundState::Training);
    let step = RoundChange { state, examples, ..RoundChange::default() };
    store.advance_round(&made, "test", &step).await.unwrap();
    let [trained, next] = [first, first + 1].map(|byte| GenerationDigest([byte; 32]));
    let lineage = NewLineage {
        generation: trained,
        base_sha256: "ab".repeat(32),
        parent: None,
        round: Some(made.id.clone()),
        job: None,
        data_sha256: None,
        recipe: json!({}),
        seed: 1,
    };
    store.put_lineage(owner, &lineage).await.unwrap();
    let next_one = NewLineage { generation: next, parent: Some(trained), round: None, ..lineage };
    store.put_lineage(owner, &next_one).await.unwrap();
    (made.id, [trained, next])
}

#[tokio::test]
async fn who_takes_something_back_is_told_what_learned_from_it() {
    let server = server().await;
    let tenant = tenant(&server, "owner", Quotas::default()).await;
    let owner = Owner::Tenant(tenant.id.clone());
    let (asked, liked) = rated(&server, &tenant, "ann", "joe").await;
    let examples = vec![
        Example {
            kind: ExampleKind::Completion,
            id: asked.clone(),
            user_sha256: Some(user_digest(&owner, "ann")),
        },
        Example {
            kind: ExampleKind::Feedback,
            id: liked.clone(),
            user_sha256: Some(user_digest(&owner, "joe")),
        },
    ];
    let (id, [trained, next]) = new_round(&server, &owner, "mia", examples, 1).await;
    let learned = json!([
        {"generation": trained.to_string(), "direct": true, "kept": false},
        {"generation": next.to_string(), "direct": false, "kept": false},
    ]);
    // It belongs to the round's name before any name points at it.
    let lineage = tenant.get(&server, &path("mia", &trained.to_string(), "lineage")).await.json();
    assert_eq!((&lineage["round"], &lineage["kept"]), (&json!(id), &json!(false)));
    assert_eq!(lineage["examples"], json!({"completions": 1, "feedback": 1}));

    let delete = async |path: &str| {
        let reply = tenant.send(&server, Method::DELETE, path, None).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    };
    // Withdrawn, again, and of what nothing learned from.
    for _ in 0..2 {
        let withdrawn = delete(&format!("/v1/feedback/{liked}")).await;
        assert_eq!((&withdrawn["id"], &withdrawn["value"]), (&json!(liked), &Value::Null));
        assert_eq!(withdrawn["generations"], learned);
    }
    let (other, other_liked) = rated(&server, &tenant, "tom", "tom").await;
    assert_eq!(delete(&format!("/v1/feedback/{other_liked}")).await["generations"], json!([]));
    let gone = delete(&format!("/v1/chat/completions/{other}")).await;
    let expected = json!({
        "id": other, "object": "chat.completion.deleted", "deleted": true, "generations": [],
    });
    assert_eq!(gone, expected);

    let erased = delete("/v1/feedback/users/ann").await;
    let expected = json!({
        "object": "user.erased", "completions": 1, "feedback": 1, "generations": learned,
        "rounds": [id],
    });
    assert_eq!(erased, expected);
    let round = server.state.store.round(&owner, &id).await.unwrap();
    assert_eq!(round.state, RoundState::Cancelled);
    let erased = delete("/v1/feedback/users/ann").await;
    assert_eq!((&erased["generations"], &erased["rounds"]), (&json!([]), &json!([])));
    // Who only rated is known by that.
    assert_eq!(delete("/v1/feedback/users/joe").await["generations"], learned);

    let (asked, _) = rated(&server, &tenant, "ann", "joe").await;
    let examples =
        vec![Example { kind: ExampleKind::Completion, id: asked.clone(), user_sha256: None }];
    let (_, [trained, next]) = new_round(&server, &owner, "tom", examples, 8).await;
    let gone = delete(&format!("/v1/chat/completions/{asked}")).await;
    let names: Vec<_> = gone["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|learned| digest(learned["generation"].as_str().unwrap()))
        .collect();
    assert_eq!(names, [trained, next]);
}
