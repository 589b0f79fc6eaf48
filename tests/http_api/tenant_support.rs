//! Tenants with keys, and requests that carry them.

use axum::{
    body::Body,
    http::{Method, Request, header},
};
use pleach_store::{NewApiKey, Quotas, Scopes, TenantId, TenantSettings};
use serde_json::{Value, json};

use crate::support::{BASE, Reply, Server};

/// A tenant and one of its keys.
#[derive(Clone, Debug)]
pub(crate) struct TestTenant {
    pub(crate) id: TenantId,
    pub(crate) key: String,
    pub(crate) key_id: String,
}

/// A tenant that may do everything but administrate.
pub(crate) async fn tenant(server: &Server, name: &str, quotas: Quotas) -> TestTenant {
    let settings = TenantSettings { quotas, ..TenantSettings::named(name) };
    let id = server.state.tenants.create(settings).await.unwrap().id;
    another_key(server, &id, "infer,feedback,train", None).await
}

/// Another key of a tenant.
pub(crate) async fn another_key(
    server: &Server,
    id: &TenantId,
    scopes: &str,
    expires_ms: Option<i64>,
) -> TestTenant {
    let scopes = Scopes::parse(scopes).unwrap();
    let key = NewApiKey { tenant: id.clone(), name: "test".to_owned(), scopes, expires_ms };
    let (key, text) = server.state.tenants.create_key(key).await.unwrap();
    TestTenant { id: id.clone(), key: text.reveal(), key_id: key.id }
}

/// A request with a key, if there is one, and a JSON body, if there is one.
pub(crate) fn request(
    method: &Method,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(body.map(Value::to_string).unwrap_or_default().into()).unwrap()
}

/// A chat of one user message, with `extra` fields.
pub(crate) fn chat_body(extra: Value) -> Value {
    let mut body = json!({"model": BASE, "messages": [{"role": "user", "content": "hi"}]});
    let Value::Object(extra) = extra else { panic!("an object is needed") };
    body.as_object_mut().unwrap().extend(extra);
    body
}

impl TestTenant {
    pub(crate) async fn send(
        &self,
        server: &Server,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        server.send(request(&method, path, Some(&self.key), body)).await
    }

    pub(crate) async fn get(&self, server: &Server, path: &str) -> Reply {
        self.send(server, Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, server: &Server, path: &str, body: &Value) -> Reply {
        self.send(server, Method::POST, path, Some(body)).await
    }

    pub(crate) async fn chat(&self, server: &Server, extra: Value) -> Reply {
        self.post(server, "/v1/chat/completions", &chat_body(extra)).await
    }
}

/// The value of a series, 0 if it is not there.
pub(crate) async fn metric(server: &Server, series: &str) -> f64 {
    let text = server.get("/metrics").await.text;
    let line = text
        .lines()
        .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Waits for something that comes within milliseconds, or never.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..4000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
