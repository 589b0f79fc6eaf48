//! Who gets in where: every route with every kind of key.

use axum::http::Method;
use pleach_store::{Quotas, Scope};
use serde_json::json;

use crate::{
    support::{Server, Setup, says, serve},
    tenant_support::{TestTenant, another_key, request, tenant, until},
};

/// Every route under `/v1`, with what it takes to be let in.
fn routes() -> Vec<(Method, &'static str, &'static [Scope])> {
    const INFER: &[Scope] = &[Scope::Infer];
    const TRAIN: &[Scope] = &[Scope::Train];
    const FEEDBACK: &[Scope] = &[Scope::Feedback];
    const EITHER: &[Scope] = &[Scope::Infer, Scope::Train];
    const ADMIN: &[Scope] = &[Scope::Admin];
    let tenant = "/v1/admin/tenants/ten_0000000000000000";
    vec![
        (Method::POST, "/v1/chat/completions", INFER),
        (Method::POST, "/v1/completions", INFER),
        (Method::GET, "/v1/models", INFER),
        (Method::GET, "/v1/models/tiny", INFER),
        (Method::GET, "/v1/latency", INFER),
        (Method::GET, "/v1/adapters", EITHER),
        (Method::GET, "/v1/adapters/none", EITHER),
        (Method::GET, "/v1/adapters/none/download", TRAIN),
        (Method::GET, "/v1/adapters/none/download?owner=own", TRAIN),
        (Method::GET, "/v1/adapters/none/download?owner=shared", TRAIN),
        (Method::GET, "/v1/adapters/none/generations/none/lineage", TRAIN),
        (Method::GET, "/v1/adapters/none/generations/none/card", TRAIN),
        (Method::PUT, "/v1/adapters/none", TRAIN),
        (Method::DELETE, "/v1/adapters/none", TRAIN),
        (Method::POST, "/v1/adapters/none/rollback", TRAIN),
        (Method::PUT, "/v1/adapters/none/policy", TRAIN),
        (Method::GET, "/v1/adapters/none/policy", TRAIN),
        (Method::DELETE, "/v1/adapters/none/policy", TRAIN),
        (Method::POST, "/v1/adapters/none/rounds", TRAIN),
        (Method::GET, "/v1/adapters/none/rounds", TRAIN),
        (Method::GET, "/v1/adapters/none/rounds/none", TRAIN),
        (Method::POST, "/v1/adapters/none/rounds/none/approve", TRAIN),
        (Method::POST, "/v1/adapters/none/rounds/none/veto", TRAIN),
        (Method::POST, "/v1/adapters/none/rounds/none/cancel", TRAIN),
        (Method::POST, "/v1/load_lora_adapter", TRAIN),
        (Method::POST, "/v1/unload_lora_adapter", TRAIN),
        (Method::GET, "/v1/chat/completions", TRAIN),
        (Method::GET, "/v1/chat/completions/none", TRAIN),
        (Method::POST, "/v1/chat/completions/none", TRAIN),
        (Method::DELETE, "/v1/chat/completions/none", TRAIN),
        (Method::GET, "/v1/chat/completions/none/messages", TRAIN),
        (Method::POST, "/v1/feedback", FEEDBACK),
        (Method::PATCH, "/v1/feedback/none", FEEDBACK),
        (Method::DELETE, "/v1/feedback/none", FEEDBACK),
        (Method::GET, "/v1/feedback", TRAIN),
        (Method::GET, "/v1/feedback/none", TRAIN),
        (Method::DELETE, "/v1/feedback/users/none", TRAIN),
        (Method::GET, "/v1/files", TRAIN),
        (Method::POST, "/v1/files", TRAIN),
        (Method::GET, "/v1/files/none", TRAIN),
        (Method::DELETE, "/v1/files/none", TRAIN),
        (Method::GET, "/v1/files/none/content", TRAIN),
        (Method::POST, "/v1/uploads", TRAIN),
        (Method::POST, "/v1/uploads/none/parts", TRAIN),
        (Method::POST, "/v1/uploads/none/complete", TRAIN),
        (Method::POST, "/v1/uploads/none/cancel", TRAIN),
        (Method::DELETE, "/v1/models/none", TRAIN),
        (Method::GET, "/v1/fine_tuning/jobs", TRAIN),
        (Method::POST, "/v1/fine_tuning/jobs", TRAIN),
        (Method::GET, "/v1/fine_tuning/jobs/none", TRAIN),
        (Method::POST, "/v1/fine_tuning/jobs/none/cancel", TRAIN),
        (Method::POST, "/v1/fine_tuning/jobs/none/pause", TRAIN),
        (Method::POST, "/v1/fine_tuning/jobs/none/resume", TRAIN),
        (Method::GET, "/v1/fine_tuning/jobs/none/events", TRAIN),
        (Method::GET, "/v1/fine_tuning/jobs/none/checkpoints", TRAIN),
        (Method::POST, "/v1/fine_tuning/alpha/graders/validate", TRAIN),
        (Method::POST, "/v1/fine_tuning/alpha/graders/run", TRAIN),
        (Method::GET, "/v1/admin/tenants", ADMIN),
        (Method::POST, "/v1/admin/tenants", ADMIN),
        (Method::GET, tenant, ADMIN),
        (Method::PATCH, tenant, ADMIN),
        (Method::DELETE, tenant, ADMIN),
        (Method::POST, "/v1/admin/tenants/ten_0000000000000000/enable", ADMIN),
        (Method::GET, "/v1/admin/tenants/ten_0000000000000000/keys", ADMIN),
        (Method::POST, "/v1/admin/tenants/ten_0000000000000000/keys", ADMIN),
        (Method::DELETE, "/v1/admin/tenants/ten_0000000000000000/keys/0", ADMIN),
    ]
}

/// The status and code of an empty request.
async fn ask(
    server: &Server,
    method: &Method,
    path: &str,
    key: Option<&str>,
) -> (u16, String, String) {
    let reply = server.send(request(method, path, key, Some(&json!({})))).await;
    let code = if reply.status.is_success() {
        String::new()
    } else {
        let json = reply.json();
        // vLLM's own endpoints have its envelope.
        json["error"]["code"].as_str().unwrap_or_default().to_owned()
    };
    (reply.status.as_u16(), code, reply.text)
}

#[tokio::test]
async fn every_route_lets_in_who_has_its_scope_and_nobody_else() {
    let server = serve(Setup { api_key: Some("operator"), ..Setup::default() }).await;
    let good = tenant(&server, "good", Quotas::default()).await;
    let revoked = another_key(&server, &good.id, "infer,feedback,train,admin", None).await;
    server.state.tenants.revoke_key(&good.id, &revoked.key_id).await.unwrap();
    let expired = another_key(&server, &good.id, "infer,feedback,train,admin", Some(1)).await;
    let disabled = tenant(&server, "disabled", Quotas::default()).await;
    server.state.tenants.set_enabled(&disabled.id, false).await.unwrap();
    let mut wrong_secret = good.key.clone();
    let last = wrong_secret.pop().unwrap();
    wrong_secret.push(if last == '0' { '1' } else { '0' });
    let refused = [
        ("no key", None),
        ("no key's form", Some("wrong")),
        ("another secret", Some(wrong_secret.as_str())),
        ("revoked", Some(revoked.key.as_str())),
        ("expired", Some(expired.key.as_str())),
        ("disabled", Some(disabled.key.as_str())),
    ];
    let mut by_scope = Vec::new();
    for scope in Scope::ALL {
        by_scope.push((scope, another_key(&server, &good.id, scope.name(), None).await));
    }
    for (method, path, scopes) in routes() {
        let what = format!("{method} {path}");
        for (who, key) in refused {
            let (status, code, text) = ask(&server, &method, path, key).await;
            assert_eq!((status, code.as_str()), (401, "invalid_api_key"), "{what}: {who}");
            assert!(key.is_none_or(|key| !text.contains(key)), "{what}: {who}");
        }
        for (scope, TestTenant { key, .. }) in &by_scope {
            let (status, code, text) = ask(&server, &method, path, Some(key)).await;
            if scopes.contains(scope) {
                assert!(
                    !matches!(status, 401 | 403 | 404 | 405) || code.ends_with("_not_found"),
                    "{what} with {scope:?}: {text}"
                );
            } else {
                assert_eq!(
                    (status, code.as_str()),
                    (403, "insufficient_scope"),
                    "{what}: {scope:?}"
                );
                assert!(scopes.iter().all(|needed| text.contains(needed.name())), "{what}: {text}");
            }
        }
        let (status, _, text) = ask(&server, &method, path, Some("operator")).await;
        assert!(!matches!(status, 401 | 403), "{what} by the operator: {text}");
    }
    for path in ["/health", "/ping", "/version", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn what_is_changed_here_holds_for_the_next_request() {
    let server = serve(Setup { api_key: Some("operator"), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let other = another_key(&server, &one.id, "infer", None).await;
    let status = async |key: &TestTenant| key.get(&server, "/v1/models").await.status.as_u16();
    assert_eq!((status(&one).await, status(&other).await), (200, 200));
    server.state.tenants.set_enabled(&one.id, false).await.unwrap();
    assert_eq!((status(&one).await, status(&other).await), (401, 401));
    server.state.tenants.set_enabled(&one.id, true).await.unwrap();
    assert_eq!((status(&one).await, status(&other).await), (200, 200));
    server.state.tenants.revoke_key(&one.id, &one.key_id).await.unwrap();
    assert_eq!((status(&one).await, status(&other).await), (401, 200));
}

#[tokio::test]
async fn what_another_process_changes_is_noticed() {
    let server = serve(Setup { api_key: Some("operator"), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    assert_eq!(one.get(&server, "/v1/models").await.status, 200);
    // Past the service, as another process does it.
    server.state.store.revoke_key(&one.id, &one.key_id).await.unwrap();
    until("the revoked key is refused", async || {
        one.get(&server, "/v1/models").await.status == 401
    })
    .await;
    let again = another_key(&server, &one.id, "infer", None).await;
    assert_eq!(
        again.chat(&server, json!({})).await.headers.get("x-ratelimit-limit-requests"),
        None
    );
    let mut settings = server.state.store.tenant(&one.id).await.unwrap().settings;
    settings.quotas.requests_per_minute = Some(1000);
    server.state.store.change_tenant(&one.id, &settings).await.unwrap();
    until("the new limit holds", async || {
        let reply = again.chat(&server, json!({})).await;
        reply.headers.get("x-ratelimit-limit-requests").is_some_and(|limit| limit == "1000")
    })
    .await;
}

#[tokio::test]
async fn without_any_key_everybody_is_the_operator_until_there_is_one() {
    let server = says("x").await;
    assert_eq!(server.chat(json!({})).await.status, 200);
    let created = server.post("/v1/admin/tenants", &json!({"name": "first"})).await;
    assert_eq!(created.status, 201, "{}", created.text);
    // A tenant without keys closes nothing.
    assert_eq!(server.chat(json!({})).await.status, 200);
    let keys = format!("/v1/admin/tenants/{}/keys", created.json()["id"].as_str().unwrap());
    let key = server.post(&keys, &json!({"name": "k"})).await.json();
    assert_eq!(server.chat(json!({})).await.status, 401);
    let key = key["key"].as_str().unwrap();
    let reply = server.send(request(&Method::GET, "/v1/models", Some(key), None)).await;
    assert_eq!(reply.status, 200);
    // A revoked key is a key: the server does not open again.
    let id = key.split('_').nth(1).unwrap();
    let tenant = pleach_store::TenantId::parse(created.json()["id"].as_str().unwrap()).unwrap();
    server.state.tenants.revoke_key(&tenant, id).await.unwrap();
    assert_eq!(server.chat(json!({})).await.status, 401);
}

#[tokio::test]
async fn a_key_that_another_process_makes_closes_an_open_server() {
    let server = says("x").await;
    let id = server.state.store.create_tenant(pleach_store::TenantSettings::named("t")).await;
    assert_eq!(server.get("/v1/models").await.status, 200);
    let key = pleach_store::NewApiKey {
        tenant: id.unwrap().id,
        name: "k".to_owned(),
        scopes: pleach_store::Scopes::parse("infer").unwrap(),
        expires_ms: None,
    };
    server.state.store.create_key(key).await.unwrap();
    until("a request without a key is refused", async || {
        server.get("/v1/models").await.status == 401
    })
    .await;
}

#[tokio::test]
async fn a_database_that_fails_is_503_and_no_wrong_key() {
    let server = serve(Setup { api_key: Some("operator"), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    server.state.store.clone().close().await.unwrap();
    let reply = one.get(&server, "/v1/models").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (503, &json!("store_unavailable"))
    );
    assert!(reply.headers.contains_key("retry-after"));
    // The operator's key is not in it.
    let reply = server.send(request(&Method::GET, "/v1/models", Some("operator"), None)).await;
    assert_eq!(reply.status, 200);
}
