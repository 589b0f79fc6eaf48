//! Tenants and keys over HTTP.

use axum::http::Method;
use serde_json::{Value, json};

use crate::{
    support::{OPERATOR_KEY, Reply, Server, Setup, serve},
    tenant_support::request,
};

struct Admin(Server);

impl Admin {
    async fn new() -> Self {
        Self(serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await)
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let path = format!("/v1/admin/tenants{path}");
        self.0.send(request(&method, &path, Some(OPERATOR_KEY), body.as_ref())).await
    }

    async fn make(&self, body: Value) -> Value {
        let reply = self.send(Method::POST, "", Some(body)).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        reply.json()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is written where it is passed")]
#[track_caller]
fn assert_error(reply: &Reply, status: u16, code: &str, param: Value) {
    let error = reply.json()["error"].clone();
    assert_eq!(
        (reply.status.as_u16(), &error["code"], &error["param"]),
        (status, &json!(code), &param),
        "{error}"
    );
}

#[tokio::test]
async fn a_tenant_is_made_changed_disabled_and_enabled() {
    let admin = Admin::new().await;
    let made = admin
        .make(json!({"name": "acme", "weight": 3, "quotas": {"requests_per_minute": 60, "adapters": 5}}))
        .await;
    let id = made["id"].as_str().unwrap();
    let path = format!("/{id}");
    assert!(id.starts_with("ten_") && made["created"].as_i64().unwrap() > 1_600_000_000);
    let quotas = json!({
        "requests_per_minute": 60, "tokens_per_minute": null, "concurrent_requests": null,
        "queued_requests": null, "adapters": 5, "adapter_bytes": null, "file_bytes": null,
        "training_jobs": null,
    });
    let expected = json!({
        "id": id, "object": "tenant", "name": "acme", "weight": 3, "priority": 0, "quotas": quotas,
        "capture": false, "keep_days": 30,
        "created": made["created"], "disabled": null,
    });
    assert_eq!(made, expected);
    assert_eq!(admin.send(Method::GET, &path, None).await.json(), expected);

    let change = json!({"priority": 2, "quotas": {"adapters": null, "tokens_per_minute": 9}});
    let changed = admin.send(Method::PATCH, &path, Some(change)).await.json();
    assert_eq!(
        (&changed["name"], &changed["weight"], &changed["priority"]),
        (&json!("acme"), &json!(3), &json!(2))
    );
    assert_eq!(changed["quotas"]["requests_per_minute"], 60);
    assert_eq!(
        (&changed["quotas"]["adapters"], &changed["quotas"]["tokens_per_minute"]),
        (&Value::Null, &json!(9))
    );

    let disabled = admin.send(Method::DELETE, &path, None).await.json();
    assert!(disabled["disabled"].as_i64().unwrap() > 1_600_000_000, "{disabled}");
    let enabled = admin.send(Method::POST, &format!("{path}/enable"), None).await.json();
    assert_eq!((&enabled["disabled"], &enabled["priority"]), (&Value::Null, &json!(2)));
}

#[tokio::test]
async fn a_key_is_shown_once_and_revoked_for_good() {
    let admin = Admin::new().await;
    let tenant = admin.make(json!({"name": "acme"})).await;
    let keys = format!("/{}/keys", tenant["id"].as_str().unwrap());
    let body =
        json!({"name": "laptop", "scopes": ["train", "infer"], "expires": 4_000_000_000_i64});
    let made = admin.send(Method::POST, &keys, Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let made = made.json();
    let (id, text) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(text.starts_with(&format!("plk_{id}_")));
    assert_eq!(
        (&made["scopes"], &made["expires"]),
        (&json!(["infer", "train"]), &json!(4_000_000_000_i64))
    );
    let list = admin.send(Method::GET, &keys, None).await;
    let secret = text.rsplit('_').next().unwrap();
    assert!(!list.text.contains(secret) && list.json()["data"][0].get("key").is_none());
    assert_eq!(list.json()["data"][0]["name"], "laptop");

    let path = format!("{keys}/{id}");
    let revoked = admin.send(Method::DELETE, &path, None).await.json();
    assert_eq!(revoked, json!({"id": id, "object": "api_key", "revoked": true}));
    assert_eq!(admin.send(Method::DELETE, &path, None).await.status, 200, "twice is no error");
    let list = admin.send(Method::GET, &keys, None).await.json();
    assert!(list["data"][0]["revoked"].as_i64().unwrap() > 1_600_000_000);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let admin = Admin::new().await;
    for number in 0..5 {
        admin.make(json!({"name": format!("tenant-{number}")})).await;
    }
    let mut names = Vec::new();
    let mut query = "?limit=2".to_owned();
    for n_rows in [2, 2, 1] {
        let page = admin.send(Method::GET, &query, None).await.json();
        let rows = page["data"].as_array().unwrap();
        assert_eq!((rows.len(), page["has_more"].as_bool()), (n_rows, Some(n_rows == 2)));
        names.extend(rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()));
        query = format!("?limit=2&after={}", page["next"].as_str().unwrap_or("none"));
    }
    assert!(query.ends_with("none"));
    names.sort_unstable();
    assert_eq!(names, (0..5).map(|number| format!("tenant-{number}")).collect::<Vec<_>>());
    for limit in ["0", "1001", "-1", "x"] {
        let reply = admin.send(Method::GET, &format!("?limit={limit}"), None).await;
        assert_error(&reply, 400, "invalid_value", json!("limit"));
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let admin = Admin::new().await;
    let tenant = admin.make(json!({"name": "acme"})).await;
    let id = tenant["id"].as_str().unwrap().to_owned();
    let post = async |path: &str, body: Value| admin.send(Method::POST, path, Some(body)).await;
    assert_error(&post("", json!({})).await, 400, "missing_required_parameter", json!("name"));
    assert_error(&post("", json!({"name": ""})).await, 400, "invalid_value", json!("name"));
    assert_error(&post("", json!({"name": "a\nb"})).await, 400, "invalid_value", json!("name"));
    assert_error(&post("", json!({"name": "acme"})).await, 409, "tenant_name_taken", Value::Null);
    assert_error(
        &post("", json!({"name": "b", "wieght": 2})).await,
        400,
        "invalid_value",
        json!("wieght"),
    );
    let keys = format!("/{id}/keys");
    assert_error(
        &post(&keys, json!({"scopes": ["infer"]})).await,
        400,
        "missing_required_parameter",
        json!("name"),
    );
    assert_error(
        &post(&keys, json!({"name": "k", "scopes": []})).await,
        400,
        "invalid_value",
        json!("scopes"),
    );
    admin.make(json!({"name": "other"})).await;
    let rename = admin.send(Method::PATCH, &format!("/{id}"), Some(json!({"name": "other"}))).await;
    assert_error(&rename, 409, "tenant_name_taken", Value::Null);
    // No id at all, an id of nobody, and the row of what is shared.
    for nobody in ["x", "ten_0000000000000000", "shared"] {
        for (method, path) in [
            (Method::GET, format!("/{nobody}")),
            (Method::PATCH, format!("/{nobody}")),
            (Method::DELETE, format!("/{nobody}")),
            (Method::POST, format!("/{nobody}/enable")),
            (Method::GET, format!("/{nobody}/keys")),
            (Method::DELETE, format!("/{nobody}/keys/0")),
        ] {
            let reply = admin.send(method.clone(), &path, Some(json!({"weight": 2}))).await;
            let code = if path.ends_with("/0") && nobody.starts_with("ten_") {
                "key_not_found"
            } else {
                "tenant_not_found"
            };
            assert_error(&reply, 404, code, Value::Null);
        }
        let made = post(&format!("/{nobody}/keys"), json!({"name": "k"})).await;
        assert_error(&made, 404, "tenant_not_found", Value::Null);
    }
}
