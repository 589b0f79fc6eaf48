//! `/v1/files`: what is sent comes back, what cannot be trained on is told by its line, and nothing is left of what was
//! refused or deleted.

use pleach_store::Quotas;
use serde_json::{Value, json};

use crate::{
    support::{OPERATOR_KEY, Setup, says, serve},
    tenant_support::{metric, tenant},
    training_support::{FormPart, form, new_file, rows, send_file},
};

#[tokio::test]
async fn a_file_is_sent_listed_read_and_deleted() {
    let server = says("x").await;
    let content = rows(3);
    let sent = send_file(&server, None, &content).await;
    assert_eq!(sent.status, 200, "{}", sent.text);
    let card = sent.json();
    let id = card["id"].as_str().unwrap();
    let expected = json!({
        "id": id, "object": "file", "bytes": content.len(), "created_at": card["created_at"],
        "expires_at": null, "filename": "rows.jsonl", "purpose": "fine-tune",
        "status": "processed", "status_details": null,
    });
    assert_eq!(card, expected);
    assert!(id.starts_with("file-") && card["created_at"].as_i64().unwrap() > 1_600_000_000);
    let path = format!("/v1/files/{id}");
    assert_eq!(server.get(&path).await.json(), expected);
    assert_eq!(server.get("/v1/files").await.json()["data"], json!([expected]));
    let read = server.get(&format!("{path}/content")).await;
    assert_eq!(read.text, content);
    assert_eq!(read.headers["content-length"], content.len().to_string().as_str());

    let server = server.restart(Setup::default()).await;
    assert_eq!(server.get(&format!("{path}/content")).await.text, content);
    let deleted = server.delete(&path).await.json();
    assert_eq!(deleted, json!({"id": id, "object": "file", "deleted": true}));
    for path in [path.clone(), format!("{path}/content")] {
        let gone = server.get(&path).await;
        assert_eq!(
            (gone.status.as_u16(), &gone.json()["error"]["code"]),
            (404, &json!("file_not_found"))
        );
    }
    assert_eq!(server.delete(&path).await.status, 404);
    assert_eq!(server.get("/v1/files").await.json()["data"], json!([]));
    assert_eq!(server.stored().await.1, 0, "blobs are left");
}

#[tokio::test]
async fn pages_have_every_file_once_in_either_order() {
    let server = says("x").await;
    let mut sent = Vec::new();
    for n in 1..=5 {
        sent.push(new_file(&server, None, &rows(n)).await);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    for (order, expected) in [("asc", sent.clone()), ("desc", sent.iter().rev().cloned().collect())]
    {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("/v1/files?limit=2&order={order}{after}")).await.json();
            let ids = page["data"].as_array().unwrap().iter();
            found.extend(ids.map(|card| card["id"].as_str().unwrap().to_owned()));
            assert_eq!(page["last_id"], found.last().unwrap().as_str());
            if page["has_more"] == json!(false) {
                break;
            }
            after = format!("&after={}", found.last().unwrap());
        }
        assert_eq!(found, expected, "{order}");
    }
    // Newest first, unless told otherwise; and by purpose.
    let first = server.get("/v1/files?limit=1").await.json();
    assert_eq!(first["data"][0]["id"], sent[4].as_str());
    let none = server.get("/v1/files?purpose=fine-tune-results").await.json();
    assert_eq!(none["data"], json!([]));
    for query in ["limit=0", "limit=10001", "limit=x", "order=up"] {
        assert_eq!(server.get(&format!("/v1/files?{query}")).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn what_cannot_be_trained_on_is_told_by_its_line() {
    let server = says("x").await;
    let good = rows(2);
    for (content, told) in [
        (format!("{good}{{\n"), "line 3: not JSON"),
        (format!("{good}{{\"messages\": []}}\n"), "line 3: messages"),
        (
            format!("{good}{}\n", json!({"messages": [{"role": "robot", "content": "x"}]})),
            "line 3: messages[0].role",
        ),
        (String::new(), "the data has no rows"),
        ("{\"cats\": 9}\n".to_owned(), "line 1: cannot tell the format"),
    ] {
        let refused = send_file(&server, None, &content).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status.as_u16(), &error["code"]), (400, &json!("invalid_file")));
        assert_eq!(error["param"], "file");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
    // Every format of rows.
    for row in [
        json!({"input": {"messages": [{"role": "user", "content": "q"}]},
               "preferred_output": [{"role": "assistant", "content": "a"}],
               "non_preferred_output": [{"role": "assistant", "content": "b"}]}),
        json!({"prompt": "q", "completion": "a", "label": true}),
        json!({"messages": [{"role": "user", "content": "q"}], "answer": 4}),
        json!({"text": "once upon a time"}),
    ] {
        assert_eq!(send_file(&server, None, &row.to_string()).await.status, 200, "{row}");
    }
    assert_eq!(server.stored().await.1, 4, "what was refused is gone");
}

#[tokio::test]
async fn what_a_form_lacks_or_has_too_much_is_named() {
    let server = says("x").await;
    let content = rows(1);
    let file = ("file", Some("rows.jsonl"), content.as_bytes());
    let purpose = ("purpose", None, &b"fine-tune"[..]);
    let seconds = |text: &'static str| ("expires_after[seconds]", None, text.as_bytes());
    let anchor = |text: &'static str| ("expires_after[anchor]", None, text.as_bytes());
    let cases: [(&[FormPart<'_>], &str); 9] = [
        (&[file], "purpose"),
        (&[purpose], "file"),
        (&[("purpose", None, b"vision"), file], "purpose"),
        (&[purpose, file, file], "file"),
        (&[purpose, file, ("colour", None, b"blue")], "colour"),
        (&[purpose, file, anchor("created_at")], "expires_after.seconds"),
        (&[purpose, file, anchor("updated_at"), seconds("3600")], "expires_after.anchor"),
        (&[purpose, file, anchor("created_at"), seconds("60")], "expires_after.seconds"),
        (&[purpose, file, anchor("created_at"), seconds("soon")], "expires_after.seconds"),
    ];
    for (parts, param) in cases {
        let refused = server.send(form("/v1/files", None, parts)).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status.as_u16(), &error["param"]), (400, &json!(param)), "{error}");
    }
    let json = server.post("/v1/files", &json!({"purpose": "fine-tune"})).await;
    assert_eq!(json.status, 400, "{}", json.text);
    assert_eq!(server.stored().await.1, 0);

    // In any order, and with a time to live.
    let parts = [anchor("created_at"), file, seconds("3600"), purpose];
    let card = server.send(form("/v1/files", None, &parts)).await.json();
    let life = card["expires_at"].as_i64().unwrap() - card["created_at"].as_i64().unwrap();
    assert!((3599..=3601).contains(&life), "{card}");
}

#[tokio::test]
async fn a_tenant_has_as_many_bytes_as_its_quota() {
    let server = serve(Setup { api_key: Some(OPERATOR_KEY), ..Setup::default() }).await;
    let content = rows(2);
    let limit = Some(content.len() as u64 + 10);
    let quotas = Quotas { file_bytes: limit, ..Quotas::default() };
    let one = tenant(&server, "one", quotas).await;
    let id = new_file(&server, Some(&one.key), &content).await;
    let refused = send_file(&server, Some(&one.key), &content).await;
    let error = &refused.json()["error"];
    assert_eq!(
        (refused.status.as_u16(), &error["code"]),
        (403, &json!("quota_exceeded")),
        "{error}"
    );
    let series = "pleach_tenant_refused_total{reason=\"file_bytes\",tenant=\"one\"}";
    assert!((metric(&server, series).await - 1.0).abs() < 0.1);
    // An upload is refused when it begins.
    let upload = json!({"bytes": 100, "filename": "a", "mime_type": "b", "purpose": "fine-tune"});
    let refused = one.post(&server, "/v1/uploads", &upload).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    // What is deleted makes room.
    let path = format!("/v1/files/{id}");
    let deleted = one.send(&server, axum::http::Method::DELETE, &path, None).await;
    assert_eq!(deleted.status, 200);
    new_file(&server, Some(&one.key), &content).await;
    // Equal files of two are two.
    let two = tenant(&server, "two", Quotas::default()).await;
    new_file(&server, Some(&two.key), &content).await;
    assert_eq!(
        one.get(&server, "/v1/files").await.json()["data"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(server.stored().await.1, 1);
    let list: Value = two.get(&server, "/v1/files").await.json();
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
}
