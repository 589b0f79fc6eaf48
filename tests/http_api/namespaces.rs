//! Two tenants and the operator on one server: each sees, uses and changes its own adapters and the shared ones, and
//! another's are told exactly like those that do not exist.

use axum::{body::Body, http::Request};
use pleach::tenants::Caller;
use pleach_store::{Owner, Scope, Scopes, TenantSettings};
use serde_json::{Value, json};

use crate::support::{Reply, Server, says, write_adapter};

/// A tenant of the server's store, with all scopes.
pub(crate) async fn tenant(server: &Server, name: &str) -> Caller {
    let settings = TenantSettings::named(name);
    let id = server.state.store.create_tenant(settings).await.unwrap().id;
    Caller { owner: Owner::Tenant(id), scopes: Scope::ALL.into_iter().collect() }
}

fn with_scopes(caller: &Caller, scopes: &str) -> Caller {
    Caller { owner: caller.owner.clone(), scopes: Scopes::parse(scopes).unwrap() }
}

async fn server() -> Server {
    let server = says("-----").await;
    for letter in ["a", "b", "c", "d"] {
        write_adapter(&server.root.join(letter), letter.chars().next().unwrap());
    }
    server
}

async fn text(server: &Server, model: &str) -> String {
    let reply = server.complete(json!({"model": model})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["text"].as_str().unwrap().to_owned()
}

async fn put(server: &Server, path: &str, folder: &str) -> Reply {
    let reply = server.put(path, &json!({"path": folder})).await;
    assert!(reply.status.is_success(), "{}", reply.text);
    reply
}

#[tokio::test]
async fn own_names_go_before_shared_ones_and_changes_stay_at_home() {
    let server = server().await;
    let one = server.seen_by(&tenant(&server, "one").await);
    let two = server.seen_by(&tenant(&server, "two").await);
    put(&server, "/v1/adapters/x", "a").await;
    assert_eq!(put(&one, "/v1/adapters/x", "b").await.status, 201, "it is new to this tenant");
    assert_eq!(text(&server, "x").await, "aaaaa");
    assert_eq!(
        (text(&one, "x").await, text(&one, "tiny:x").await),
        ("bbbbb".into(), "bbbbb".into())
    );
    assert_eq!(text(&two, "x").await, "aaaaa");
    let (shared, own) = (server.generation("x").await, one.generation("x").await);
    let card = one.get("/v1/adapters/x").await.json();
    assert_eq!((&card["owner"], &card["requests"]), (&json!("own"), &json!(2)));
    let card = one.get("/v1/adapters/x?owner=shared").await.json();
    assert_eq!((&card["owner"], &card["generation"]), (&json!("shared"), &json!(shared)));
    let card = two.get("/v1/adapters/x").await.json();
    assert_eq!((&card["owner"], &card["requests"]), (&json!("shared"), &Value::Null));
    // Who insists on a generation gets it from the name that it sees.
    let insist = json!({"model": "x", "adapter_generation": shared});
    assert_eq!(one.complete(insist.clone()).await.json()["error"]["code"], "generation_conflict");
    assert_eq!(two.complete(insist).await.status, 200);
    // Its own name goes, the shared one comes through.
    put(&one, "/v1/adapters/x", "c").await;
    assert_eq!(one.post("/v1/adapters/x/rollback", &json!({})).await.json()["generation"], own);
    assert_eq!(one.delete("/v1/adapters/x").await.status, 200);
    assert_eq!(text(&one, "x").await, "aaaaa");
    assert_eq!(one.delete("/v1/adapters/x").await.status, 404, "the shared one is not its own");
    assert_eq!(server.names().await, ["extract", "pirate", "x"]);
    // vLLM's endpoints are about the caller's own too.
    let load = json!({"lora_name": "x", "lora_path": "d"});
    assert_eq!(two.post("/v1/load_lora_adapter", &load).await.status, 200);
    assert_eq!((text(&two, "x").await, text(&one, "x").await), ("ddddd".into(), "aaaaa".into()));
    let unload = json!({"lora_name": "x"});
    assert_eq!(two.post("/v1/unload_lora_adapter", &unload).await.status, 200);
    assert_eq!(two.post("/v1/unload_lora_adapter", &unload).await.status, 404);
}

/// Everything that can be asked about a name, with `NAME` and `DIGEST` in it.
fn questions() -> Vec<(&'static str, &'static str, Value)> {
    let generation = json!({"model": "NAME", "prompt": "ab", "adapter_generation": "DIGEST"});
    vec![
        ("GET", "/v1/adapters/NAME", Value::Null),
        ("GET", "/v1/adapters/NAME?owner=own", Value::Null),
        ("GET", "/v1/adapters/NAME?owner=shared", Value::Null),
        ("GET", "/v1/adapters/NAME/download", Value::Null),
        ("GET", "/v1/adapters/NAME/download?generation=DIGEST", Value::Null),
        ("GET", "/v1/models/NAME", Value::Null),
        ("GET", "/v1/models/tiny:NAME", Value::Null),
        ("DELETE", "/v1/adapters/NAME", Value::Null),
        ("DELETE", "/v1/adapters/NAME?expected_generation=DIGEST", Value::Null),
        ("PUT", "/v1/adapters/NAME", json!({"pinned": true})),
        ("PUT", "/v1/adapters/NAME", json!({"path": "a", "expected_generation": "DIGEST"})),
        ("POST", "/v1/adapters/NAME/rollback", json!({})),
        ("POST", "/v1/adapters/NAME/rollback", json!({"generation": "DIGEST"})),
        ("POST", "/v1/completions", json!({"model": "NAME", "prompt": "ab"})),
        ("POST", "/v1/completions", generation.clone()),
        (
            "POST",
            "/v1/completions",
            json!({"model": "theirs", "prompt": "ab", "adapter_generation": "DIGEST"}),
        ),
        (
            "POST",
            "/v1/chat/completions",
            json!({"model": "NAME", "messages": [{"role": "user", "content": "hi"}]}),
        ),
        ("POST", "/v1/unload_lora_adapter", json!({"lora_name": "NAME"})),
        (
            "POST",
            "/v1/load_lora_adapter",
            json!({"lora_name": "NAME", "lora_path": "a", "expected_generation": "DIGEST"}),
        ),
    ]
}

async fn ask(server: &Server, question: &(&str, &str, Value), name: &str, digest: &str) -> Reply {
    let fill = |text: &str| text.replace("NAME", name).replace("DIGEST", digest);
    let (method, path, body) = question;
    let body = if body.is_null() { String::new() } else { fill(&body.to_string()) };
    let request = Request::builder().method(*method).uri(fill(path));
    let request = request.header("content-type", "application/json").body(Body::from(body));
    server.send(request.unwrap()).await
}

#[tokio::test]
async fn anothers_adapter_is_told_like_one_that_does_not_exist() {
    let server = server().await;
    let one = server.seen_by(&tenant(&server, "one").await);
    let two = server.seen_by(&tenant(&server, "two").await);
    for folder in ["a", "b"] {
        put(&one, "/v1/adapters/secret", folder).await;
    }
    put(&two, "/v1/adapters/theirs", "c").await;
    put(&server, "/v1/adapters/theirs", "c").await;
    let digest = one.generation("secret").await;
    // A digest of the same length that nobody has.
    let nobodys = "0".repeat(64);
    for other in [&two, &server] {
        for question in questions() {
            let found = ask(other, &question, "secret", &digest).await;
            let unknown = ask(other, &question, "nobody", &nobodys).await;
            assert!(found.status.is_client_error(), "{question:?}: {}", found.text);
            assert_eq!(found.status, unknown.status, "{question:?}");
            let same = |text: &str| {
                text.replace("secret", "nobody")
                    .replace(&digest, &nobodys)
                    .replace(&digest[..12], &nobodys[..12])
            };
            assert_eq!(same(&found.text), unknown.text, "{question:?}");
            let type_of = |reply: &Reply| reply.headers.get("content-type").cloned();
            assert_eq!(type_of(&found), type_of(&unknown));
        }
        for list in
            ["/v1/adapters", "/v1/adapters?owner=own", "/v1/adapters?owner=shared", "/v1/models"]
        {
            let text = other.get(list).await.text;
            assert!(!text.contains("secret") && !text.contains(&digest), "{list}: {text}");
        }
    }
    // Nothing of all that changed anything.
    assert_eq!(one.generation("secret").await, digest);
    assert_eq!(text(&one, "secret").await, "bbbbb");
    // The name is free for the others.
    assert_eq!(put(&two, "/v1/adapters/secret", "d").await.status, 201);
    assert_eq!(
        (text(&two, "secret").await, text(&one, "secret").await),
        ("ddddd".into(), "bbbbb".into())
    );
}

#[tokio::test]
async fn equal_files_of_two_tenants_are_in_memory_once_and_apart_otherwise() {
    let server = server().await;
    let one = server.seen_by(&tenant(&server, "one").await);
    let two = server.seen_by(&tenant(&server, "two").await);
    put(&one, "/v1/adapters/x", "a").await;
    // The same weights, with other settings in a file that says the same.
    let config = server.root.join("a/adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    settings["base_model_name_or_path"] = json!("tiny");
    std::fs::write(&config, settings.to_string()).unwrap();
    put(&two, "/v1/adapters/y", "a").await;
    assert_eq!(one.generation("x").await, two.generation("y").await);
    let stats = server.state.adapters.tier_facts().stats;
    assert_eq!(stats.device_generations, 3, "two of the server and one of both tenants");
    let base_of =
        async |server: &Server, path| server.get(path).await.json()["base_model_name"].clone();
    assert_eq!(base_of(&one, "/v1/adapters/x").await, Value::Null);
    assert_eq!(base_of(&two, "/v1/adapters/y").await, "tiny");
    // One lets it go, the other has it still, also when it has to be read again.
    assert_eq!(one.delete("/v1/adapters/x").await.status, 200);
    assert_eq!(text(&two, "y").await, "aaaaa");
    assert_eq!(two.get("/v1/adapters/y/download").await.status, 200);
}

#[tokio::test]
async fn scopes_and_owners_decide_who_may_change_what() {
    let server = server().await;
    let caller = tenant(&server, "one").await;
    put(&server, "/v1/adapters/x", "a").await;
    let refused = |reply: Reply, scope: &str| {
        assert_eq!(reply.status, 403, "{}", reply.text);
        let error = &reply.json()["error"];
        assert_eq!(error["code"], "insufficient_scope", "{}", reply.text);
        assert!(
            error["message"].as_str().unwrap().contains(&format!("'{scope}'")),
            "{}",
            reply.text
        );
    };
    let infer = server.seen_by(&with_scopes(&caller, "infer,feedback"));
    assert_eq!(infer.names().await, ["extract", "pirate", "x"]);
    assert_eq!(text(&infer, "x").await, "aaaaa");
    let body = json!({"path": "a"});
    refused(infer.put("/v1/adapters/y", &body).await, "train");
    refused(infer.delete("/v1/adapters/y").await, "train");
    refused(infer.post("/v1/adapters/y/rollback", &json!({})).await, "train");
    refused(infer.get("/v1/adapters/x/download").await, "train");
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        let reply = infer.post(path, &json!({"lora_name": "y", "lora_path": "a"})).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (403, &json!(403)));
        assert!(reply.text.contains("'train'"), "{}", reply.text);
    }
    let train = server.seen_by(&with_scopes(&caller, "train"));
    put(&train, "/v1/adapters/y", "b").await;
    refused(train.complete(json!({"model": "y"})).await, "infer");
    refused(train.chat(json!({"model": "y"})).await, "infer");
    refused(train.put("/v1/adapters/y", &json!({"pinned": true})).await, "admin");
    refused(train.put("/v1/adapters/x?owner=shared", &body).await, "admin");
    refused(train.delete("/v1/adapters/x?owner=shared").await, "admin");
    refused(train.post("/v1/adapters/x/rollback?owner=shared", &json!({})).await, "admin");
    assert_eq!(train.put("/v1/adapters/x?owner=them", &body).await.status, 400);
    let admin = server.seen_by(&with_scopes(&caller, "admin"));
    put(&admin, "/v1/adapters/x?owner=shared", "c").await;
    assert_eq!(text(&server, "x").await, "ccccc");
    refused(admin.put("/v1/adapters/y", &body).await, "train");
    assert_eq!(admin.post("/v1/adapters/x/rollback?owner=shared", &json!({})).await.status, 200);
    assert_eq!(admin.delete("/v1/adapters/x?owner=shared").await.status, 200);
    assert_eq!(server.get("/v1/adapters/x").await.status, 404);
}

#[tokio::test]
async fn quotas_of_a_tenant_refuse_with_their_numbers() {
    let server = server().await;
    let mut settings = TenantSettings::named("small");
    settings.quotas.adapters = Some(1);
    settings.quotas.adapter_bytes = Some(1200);
    let id = server.state.store.create_tenant(settings).await.unwrap().id;
    let caller = Caller { owner: Owner::Tenant(id), scopes: Scope::ALL.into_iter().collect() };
    let small = server.seen_by(&caller);
    put(&small, "/v1/adapters/x", "a").await;
    for (name, folder, what) in [("y", "a", "2 adapters"), ("x", "b", "adapter bytes")] {
        let reply = small.put(&format!("/v1/adapters/{name}"), &json!({"path": folder})).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (403, &json!("quota_exceeded")),
            "{}",
            reply.text
        );
        assert!(reply.text.contains(what), "{}", reply.text);
    }
    assert_eq!(text(&small, "x").await, "aaaaa");
    // What was refused is not left in the store.
    let blobs = server.stored().await.1;
    assert_eq!(blobs, 2, "the files of the one adapter");
}
