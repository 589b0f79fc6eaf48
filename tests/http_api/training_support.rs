//! Files of rows, and requests that send them.

use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::json;

use crate::support::{Reply, Server};

const BOUNDARY: &str = "border";

/// So many rows to learn from, each another.
pub(crate) fn rows(n: usize) -> String {
    let row = |index: usize| {
        let messages = json!([
            {"role": "user", "content": format!("question {index}")},
            {"role": "assistant", "content": format!("answer {index}")},
        ]);
        json!({"messages": messages}).to_string() + "\n"
    };
    (0..n).map(row).collect()
}

/// A form of texts and files; a file has a name of its own.
pub(crate) fn form(
    path: &str,
    key: Option<&str>,
    parts: &[(&str, Option<&str>, &[u8])],
) -> Request<Body> {
    let mut body = Vec::new();
    for (name, filename, content) in parts {
        let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let mut request = Request::post(path)
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    request.body(Body::from(body)).unwrap()
}

/// Sends a file to train on.
pub(crate) async fn send_file(server: &Server, key: Option<&str>, content: &str) -> Reply {
    let parts: [(&str, Option<&str>, &[u8]); 2] =
        [("purpose", None, b"fine-tune"), ("file", Some("rows.jsonl"), content.as_bytes())];
    server.send(form("/v1/files", key, &parts)).await
}

/// The id of a file that is sent.
pub(crate) async fn new_file(server: &Server, key: Option<&str>, content: &str) -> String {
    let reply = send_file(server, key, content).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["id"].as_str().unwrap().to_owned()
}
