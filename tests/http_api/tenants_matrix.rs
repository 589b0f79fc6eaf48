//! What one tenant has is nothing to another: whatever it asks about another's name, it is answered as about a name that
//! nobody has, byte for byte.

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, header},
};
use pleach_store::Quotas;
use serde_json::{Value, json};

use crate::{
    support::{BASE, OPERATOR_KEY, Reply, Server, Setup, serve, write_adapter},
    tenant_support::{TestTenant, another_key, chat_body, request, tenant},
    training_support::{Script, new_file, rows},
};

/// Another's name, and nobody's: of one length, so that all else can be the same.
const THEIRS: &str = "secret";
const NOBODYS: &str = "absent";
/// Questions, the first ones, that generate for who has the name.
const N_GENERATING: usize = 11;
/// A round that there is not.
const NO_ROUND: &str = "round-fedcba9876543210fedcba9876543210";
/// A generation that there is not.
const NO_GENERATION: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct World {
    /// With the shared adapter `shared-one`.
    server: Server,
    /// Has [`THEIRS`], with a history of two.
    owner: TestTenant,
    /// Asks.
    other: TestTenant,
    /// Where [`THEIRS`] points, and where it pointed before.
    generations: [String; 2],
}

impl World {
    async fn new() -> Self {
        let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
        let owner = tenant(&server, "owner", Quotas::default()).await;
        let other = tenant(&server, "other", Quotas::default()).await;
        let mut generations = Vec::new();
        for letter in ['A', 'B'] {
            write_adapter(&server.root.join(letter.to_string()), letter);
            let path = format!("/v1/adapters/{THEIRS}");
            let body = json!({"path": letter.to_string()});
            let made = owner.send(&server, Method::PUT, &path, Some(&body)).await;
            assert!(made.status.is_success(), "{}", made.text);
            generations.insert(0, made.json()["generation"].as_str().unwrap().to_owned());
        }
        write_adapter(&server.root.join("C"), 'C');
        let put = request(
            &Method::PUT,
            "/v1/adapters/shared-one",
            Some(OPERATOR_KEY),
            Some(&json!({"path": "C"})),
        );
        assert_eq!(server.send(put).await.status, 201);
        let generations = generations.try_into().unwrap();
        Self { server, owner, other, generations }
    }
}

/// What can be asked about a name, and a generation.
fn questions(name: &str, generation: &str) -> Vec<(Method, String, Option<Value>)> {
    let adapter = format!("/v1/adapters/{name}");
    let completion = json!({"model": name, "prompt": "ab"});
    let parts = json!([{"name": name, "scale": 0.5}, {"name": "shared-one"}]);
    let chat = |extra| (Method::POST, "/v1/chat/completions".to_owned(), Some(chat_body(extra)));
    let prefixed = format!("tiny:{name}");
    vec![
        chat(json!({"model": name})),
        chat(json!({"model": name, "stream": true})),
        chat(json!({"model": prefixed})),
        chat(json!({"model": name, "adapter_generation": generation})),
        (Method::POST, "/v1/completions".to_owned(), Some(completion)),
        // As a part of a sum: alone, beside a shared one, and of a scale at which it would not count.
        (
            Method::POST,
            "/v1/completions".to_owned(),
            Some(json!({"model": "tiny", "prompt": "ab", "adapters": parts})),
        ),
        chat(json!({"adapters": parts})),
        chat(json!({"adapters": parts, "stream": true})),
        chat(json!({"adapters": [{"name": name}]})),
        chat(json!({"adapters": [{"name": "shared-one"}, {"name": prefixed, "scale": 0}]})),
        chat(json!({"adapters": [{"name": name, "generation": generation}]})),
        // Shared names, with the generation of another.
        (
            Method::POST,
            "/v1/completions".to_owned(),
            Some(json!({"model": "pirate", "prompt": "ab", "adapter_generation": generation})),
        ),
        chat(json!({"adapters": [{"name": "shared-one", "generation": generation}]})),
        (Method::GET, format!("/v1/models/{name}"), None),
        (Method::GET, format!("/v1/models/{prefixed}"), None),
        (Method::GET, adapter.clone(), None),
        (Method::GET, format!("{adapter}?owner=own"), None),
        (Method::GET, format!("{adapter}?owner=shared"), None),
        (
            Method::PUT,
            adapter.clone(),
            Some(json!({"path": "A", "expected_generation": generation})),
        ),
        (
            Method::PUT,
            format!("{adapter}?expected_generation={generation}"),
            Some(json!({"path": "A"})),
        ),
        (Method::PUT, adapter.clone(), Some(json!({"pinned": false}))),
        (Method::PUT, adapter.clone(), Some(json!({"pinned": true}))),
        (Method::PUT, format!("{adapter}?owner=shared"), Some(json!({"path": "A"}))),
        (Method::DELETE, adapter.clone(), None),
        (Method::DELETE, format!("{adapter}?expected_generation={generation}"), None),
        (Method::DELETE, format!("{adapter}?owner=shared"), None),
        (Method::PUT, format!("{adapter}/policy"), Some(json!({"is_on": false}))),
        (Method::GET, format!("{adapter}/policy"), None),
        (Method::DELETE, format!("{adapter}/policy"), None),
        (Method::POST, format!("{adapter}/rounds"), Some(json!({}))),
        (Method::POST, format!("{adapter}/rounds"), Some(json!({"rebuild_of": generation}))),
        (Method::GET, format!("{adapter}/rounds"), None),
        (Method::GET, format!("{adapter}/rounds/{NO_ROUND}"), None),
        (Method::POST, format!("{adapter}/rounds/{NO_ROUND}/veto"), Some(json!({}))),
        (Method::POST, format!("{adapter}/rollback"), Some(json!({}))),
        (Method::POST, format!("{adapter}/rollback"), Some(json!({"generation": generation}))),
        (
            Method::POST,
            format!("{adapter}/rollback"),
            Some(json!({"expected_generation": generation})),
        ),
        (Method::POST, "/v1/unload_lora_adapter".to_owned(), Some(json!({"lora_name": name}))),
        (
            Method::POST,
            "/v1/unload_lora_adapter".to_owned(),
            Some(json!({"lora_name": name, "expected_generation": generation})),
        ),
        (
            Method::POST,
            "/v1/load_lora_adapter".to_owned(),
            Some(json!({"lora_name": name, "lora_path": "A", "expected_generation": generation})),
        ),
        (Method::GET, format!("{adapter}/download"), None),
        (Method::GET, format!("{adapter}/download?owner=own"), None),
        (Method::GET, format!("{adapter}/download?owner=shared"), None),
        (Method::GET, format!("{adapter}/download?generation={generation}"), None),
        (Method::GET, format!("/v1/adapters/shared-one/download?generation={generation}"), None),
        (Method::GET, format!("{adapter}/generations/{generation}/lineage"), None),
        (Method::GET, format!("{adapter}/generations/{generation}/card"), None),
        (Method::GET, format!("/v1/adapters/shared-one/generations/{generation}/lineage"), None),
    ]
}

/// Everything that a client can see, but for what names the question itself.
fn seen(reply: &Reply, name: &str, generation: &str) -> (u16, Vec<(String, String)>, String) {
    // Messages have the first digits.
    let mask = |text: &str| {
        text.replace(generation, "GENERATION")
            .replace(&generation[..12], "GENER")
            .replace(name, "NAME")
    };
    let of_question = ["x-request-id"];
    let headers = |headers: &HeaderMap| {
        let mut shown: Vec<_> = headers
            .iter()
            .filter(|(name, _)| !of_question.contains(&name.as_str()))
            .map(|(name, value)| (name.to_string(), mask(value.to_str().unwrap())))
            .collect();
        shown.sort_unstable();
        shown
    };
    (reply.status.as_u16(), headers(&reply.headers), mask(&reply.text))
}

#[tokio::test]
async fn anothers_name_answers_as_nobodys_does() {
    let world = World::new().await;
    let World { server, owner, other, generations } = &world;
    let card = async || {
        let mut card = owner.get(server, &format!("/v1/adapters/{THEIRS}")).await.json();
        // Where it is changes by itself.
        card["tier"].take();
        card
    };
    let before = card().await;
    for generation in generations {
        let asked = questions(THEIRS, generation).into_iter();
        for (theirs, nobodys) in asked.zip(questions(NOBODYS, NO_GENERATION)) {
            let what = format!("{} {} {:?}", theirs.0, theirs.1, theirs.2);
            let reply = other.send(server, theirs.0, &theirs.1, theirs.2.as_ref()).await;
            let control = other.send(server, nobodys.0, &nobodys.1, nobodys.2.as_ref()).await;
            assert_eq!(
                seen(&reply, THEIRS, generation),
                seen(&control, NOBODYS, NO_GENERATION),
                "{what}"
            );
            assert!(reply.status.is_client_error(), "{what}: {}", reply.text);
            for known in generations.iter().filter(|known| *known != generation) {
                assert!(!reply.text.contains(known.as_str()), "{what}: {}", reply.text);
            }
        }
    }
    // Nor has any of it changed anything.
    assert_eq!(card().await, before);
    for question in questions(THEIRS, &generations[0]).into_iter().take(N_GENERATING) {
        let reply = owner.send(server, question.0, &question.1, question.2.as_ref()).await;
        assert_eq!(reply.status, 200, "else the questions ask nothing: {}", reply.text);
    }
}

#[tokio::test]
async fn lists_and_numbers_hold_nothing_of_another() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    let owner = tenant(&server, "owner", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let lists = [
        "/v1/models",
        "/v1/adapters",
        "/v1/adapters?owner=own",
        "/v1/adapters?owner=shared",
        "/v1/latency",
    ];
    let all = async || {
        let mut texts = Vec::new();
        for path in lists {
            texts.push(other.get(&server, path).await.text);
        }
        texts
    };
    let before = all().await;
    write_adapter(&server.root.join("A"), 'A');
    let path = format!("/v1/adapters/{THEIRS}");
    let made = owner.send(&server, Method::PUT, &path, Some(&json!({"path": "A"}))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    for _ in 0..3 {
        assert_eq!(owner.chat(&server, json!({"model": THEIRS})).await.status, 200);
    }
    server.idle().await;
    assert_eq!(all().await, before);
    // The owner sees it, and so does the operator.
    let latency = owner.get(&server, "/v1/latency").await.json();
    assert_eq!(latency["adapters"][THEIRS]["since_start"]["e2e"]["count"], 3, "{latency}");
    assert_eq!((&latency["overall"], &latency["base"]), (&Value::Null, &Value::Null));
    let operator = request(&Method::GET, "/v1/latency", Some(OPERATOR_KEY), None);
    let latency = server.send(operator).await.json();
    let label = format!("{}/{THEIRS}", owner.id);
    assert_eq!(latency["adapters"][&label]["since_start"]["e2e"]["count"], 3, "{latency}");
    assert_eq!(latency["overall"]["since_start"]["e2e"]["count"], 3);
}

/// Two tenants with the same name, and with the same files: neither is told anything by what it may do.
#[tokio::test]
async fn the_same_name_and_the_same_weights_are_two() {
    let world = World::new().await;
    let World { server, owner, other, generations } = &world;
    let path = format!("/v1/adapters/{THEIRS}");
    // The owner's first weights: new to the other.
    let made = other.send(server, Method::PUT, &path, Some(&json!({"path": "A"}))).await;
    assert_eq!((made.status.as_u16(), &made.json()["history"]), (201, &json!([])), "{}", made.text);
    assert_eq!(made.json()["requests"], 0);
    let says = async |tenant: &TestTenant| {
        let reply = tenant.chat(server, json!({"model": THEIRS})).await.json();
        reply["choices"][0]["message"]["content"].as_str().unwrap().chars().next().unwrap()
    };
    assert_eq!((says(owner).await, says(other).await), ('B', 'A'));
    let card = owner.get(server, &path).await.json();
    assert_eq!(card["generation"], generations[0].as_str());
    // What is removed here stays there.
    assert_eq!(owner.send(server, Method::DELETE, &path, None).await.status, 200);
    assert_eq!((owner.get(server, &path).await.status.as_u16(), says(other).await), (404, 'A'));
    // Its earlier generation is the other's now, and still none of the owner's.
    let pinned = json!({"model": "pirate", "adapter_generation": generations[1]});
    let unknown = json!({"model": "pirate", "adapter_generation": NO_GENERATION});
    let (reply, control) = (owner.chat(server, pinned).await, owner.chat(server, unknown).await);
    assert_eq!(seen(&reply, THEIRS, &generations[1]), seen(&control, NOBODYS, NO_GENERATION));
}

/// What a tenant may own is limited, by a refusal that waiting does not end.
#[tokio::test]
async fn adapters_and_their_bytes() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    for letter in ['A', 'B'] {
        write_adapter(&server.root.join(letter.to_string()), letter);
    }
    let adapters = Quotas { adapters: Some(1), ..Quotas::default() };
    let bytes = Quotas { adapter_bytes: Some(100), ..Quotas::default() };
    let put = async |tenant: &TestTenant, name: &str, path: &str| {
        let body = json!({"path": path});
        tenant.send(&server, Method::PUT, &format!("/v1/adapters/{name}"), Some(&body)).await
    };
    let one = tenant(&server, "one", adapters).await;
    assert_eq!(put(&one, "first", "A").await.status, 201);
    let few = tenant(&server, "few", bytes).await;
    for (refused, reason) in [
        (put(&one, "second", "B").await, "adapters"),
        (put(&few, "first", "A").await, "adapter_bytes"),
    ] {
        let error = refused.json()["error"].clone();
        assert_eq!(
            (refused.status.as_u16(), &error["code"]),
            (403, &json!("quota_exceeded")),
            "{error}"
        );
        assert!(!refused.headers.contains_key("retry-after"));
        let tenant = if reason == "adapters" { "one" } else { "few" };
        let series =
            format!("pleach_tenant_refused_total{{reason=\"{reason}\",tenant=\"{tenant}\"}}");
        assert!(
            (crate::tenant_support::metric(&server, &series).await - 1.0).abs() < 0.1,
            "{series}"
        );
    }
    assert_eq!(
        one.get(&server, "/v1/adapters?owner=own").await.json()["data"].as_array().unwrap().len(),
        1
    );
}

/// Shared adapters are the administrator's, by whichever key.
#[tokio::test]
async fn shared_names_are_changed_by_administrators_only() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    write_adapter(&server.root.join("A"), 'A');
    let one = tenant(&server, "one", Quotas::default()).await;
    let admin = another_key(&server, &one.id, "admin", None).await;
    let put = |key: &TestTenant, path: &str| {
        let body = json!({"path": "A"}).to_string();
        Request::put(path.to_owned())
            .header(header::AUTHORIZATION, format!("Bearer {}", key.key))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    let shared = "/v1/adapters/common?owner=shared";
    let refused = server.send(put(&one, shared)).await;
    assert_eq!((refused.status.as_u16(), refused.text.contains("'admin'")), (403, true));
    // No scope implies another.
    let refused = server.send(put(&admin, "/v1/adapters/common")).await;
    assert_eq!((refused.status.as_u16(), refused.text.contains("'train'")), (403, true));
    assert_eq!(server.send(put(&admin, shared)).await.status, 201);
    assert_eq!(one.chat(&server, json!({"model": "common"})).await.status, 200);
    // A name of one's own goes before it.
    assert_eq!(server.send(put(&one, "/v1/adapters/common")).await.status, 201);
    let own = one.get(&server, "/v1/adapters/common?owner=own").await;
    assert_eq!(own.status, 200, "{}", own.text);
}

/// What can be asked about things that have ids, each with its id.
fn questions_by_id(ids: &[String; 5]) -> Vec<(Method, String, Option<Value>)> {
    let [file, upload, completion, feedback, job] = ids;
    let completions = "/v1/chat/completions";
    let about =
        |extra: Value| Some(json!({"metric_name": "m", "value": true, "inference_id": extra}));
    let worse = json!({"inference_id": completion});
    let jobs = "/v1/fine_tuning/jobs";
    vec![
        (Method::GET, format!("/v1/files/{file}"), None),
        (Method::GET, format!("/v1/files/{file}/content"), None),
        (Method::DELETE, format!("/v1/files/{file}"), None),
        (Method::POST, format!("/v1/uploads/{upload}/complete"), Some(json!({"part_ids": []}))),
        (Method::POST, format!("/v1/uploads/{upload}/cancel"), Some(json!({}))),
        (Method::GET, format!("{completions}/{completion}"), None),
        (Method::GET, format!("{completions}/{completion}/messages"), None),
        (Method::POST, format!("{completions}/{completion}"), Some(json!({"metadata": {}}))),
        (Method::DELETE, format!("{completions}/{completion}"), None),
        (Method::POST, "/v1/feedback".to_owned(), about(json!(completion))),
        (
            Method::POST,
            "/v1/feedback".to_owned(),
            Some(json!({"metric_name": "comparison", "value": worse, "inference_id": "own"})),
        ),
        (Method::GET, format!("/v1/feedback/{feedback}"), None),
        (Method::PATCH, format!("/v1/feedback/{feedback}"), Some(json!({"value": false}))),
        (Method::DELETE, format!("/v1/feedback/{feedback}"), None),
        (Method::GET, format!("/v1/feedback?inference_id={completion}"), None),
        (Method::POST, jobs.to_owned(), Some(json!({"model": BASE, "training_file": file}))),
        (Method::GET, format!("{jobs}/{job}"), None),
        (Method::GET, format!("{jobs}/{job}/events"), None),
        (Method::GET, format!("{jobs}/{job}/checkpoints"), None),
        (Method::POST, format!("{jobs}/{job}/cancel"), Some(json!({}))),
        (Method::POST, format!("{jobs}/{job}/pause"), Some(json!({}))),
        (Method::POST, format!("{jobs}/{job}/resume"), Some(json!({}))),
    ]
}

/// One thing of every kind, by id.
async fn things_of(server: &Server, tenant: &TestTenant) -> [String; 5] {
    let id = |reply: Reply| {
        assert_eq!(reply.status, 200, "{}", reply.text);
        let json = reply.json();
        json["id"].as_str().or(json["feedback_id"].as_str()).unwrap().to_owned()
    };
    let file = new_file(server, Some(&tenant.key), &rows(10)).await;
    let upload = json!({"bytes": 9, "filename": "a", "mime_type": "b", "purpose": "fine-tune"});
    let upload = id(tenant.post(server, "/v1/uploads", &upload).await);
    let completion = id(tenant.chat(server, json!({"store": true})).await);
    let said = json!({"inference_id": completion, "metric_name": "m", "value": true});
    let feedback = id(tenant.post(server, "/v1/feedback", &said).await);
    let job = json!({"model": BASE, "training_file": file});
    let job = id(tenant.post(server, "/v1/fine_tuning/jobs", &job).await);
    [file, upload, completion, feedback, job]
}

/// Files, uploads, kept completions, feedback and jobs.
#[tokio::test]
async fn anothers_id_answers_as_nobodys_does() {
    let setup =
        Setup { api_key: Some(OPERATOR_KEY), trainer: Some(Script::waits()), ..Setup::default() };
    let server = serve(setup).await;
    let owner = tenant(&server, "owner", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let theirs = things_of(&server, &owner).await;
    let own = other.chat(&server, json!({"store": true})).await.json()["id"].clone();
    // Of one form, and as old.
    let nobodys = theirs.clone().map(|id| format!("{}0000", &id[..id.len() - 4]));
    let asked = questions_by_id(&theirs).into_iter().zip(questions_by_id(&nobodys));
    for ((method, path, body), (_, control_path, control_body)) in asked {
        let with_own = |body: Option<Value>| {
            body.map(|mut body| {
                if body["inference_id"] == "own" {
                    body["inference_id"] = own.clone();
                }
                body
            })
        };
        let (body, control_body) = (with_own(body), with_own(control_body));
        let reply = other.send(&server, method.clone(), &path, body.as_ref()).await;
        let control =
            other.send(&server, method.clone(), &control_path, control_body.as_ref()).await;
        let masked = |reply: &Reply, ids: &[String; 5]| {
            let mask =
                |text: &str| ids.iter().fold(text.to_owned(), |text, id| text.replace(id, "ID"));
            let (status, mut headers, text) = seen(reply, "\0", NO_GENERATION);
            for (_, value) in &mut headers {
                *value = mask(value);
            }
            (status, headers, mask(&text))
        };
        let what = format!("{method} {path}");
        assert_eq!(masked(&reply, &theirs), masked(&control, &nobodys), "{what}");
        let is_list = path.contains('?');
        assert_eq!(
            reply.status.as_u16(),
            if is_list { 200 } else { 404 },
            "{what}: {}",
            reply.text
        );
    }
    for list in ["/v1/files", "/v1/feedback", "/v1/fine_tuning/jobs"] {
        assert_eq!(other.get(&server, list).await.json()["data"], json!([]), "{list}");
        let own = owner.get(&server, list).await.json();
        assert_eq!(own["data"].as_array().map(Vec::len), Some(1), "{list}");
    }
}
