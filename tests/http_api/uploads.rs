//! `/v1/uploads`: parts become one file, in the order that the client says.

use serde_json::{Value, json};

use crate::{
    support::{Reply, Server, says},
    training_support::{form, rows},
};

async fn begin(server: &Server, bytes: usize) -> String {
    let body = json!({"bytes": bytes, "filename": "big.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"});
    let begun = server.post("/v1/uploads", &body).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    let card = begun.json();
    let expected = json!({
        "id": card["id"], "object": "upload", "bytes": bytes, "created_at": card["created_at"],
        "expires_at": card["expires_at"], "filename": "big.jsonl", "purpose": "fine-tune",
        "status": "pending", "file": null,
    });
    assert_eq!(card, expected);
    assert_eq!(card["expires_at"].as_i64().unwrap() - card["created_at"].as_i64().unwrap(), 3600);
    card["id"].as_str().unwrap().to_owned()
}

async fn add(server: &Server, upload: &str, bytes: &[u8]) -> Reply {
    let path = format!("/v1/uploads/{upload}/parts");
    server.send(form(&path, None, &[("data", Some("part"), bytes)])).await
}

async fn added(server: &Server, upload: &str, bytes: &[u8]) -> String {
    let part = add(server, upload, bytes).await;
    assert_eq!(part.status, 200, "{}", part.text);
    let part = part.json();
    assert_eq!((&part["object"], &part["upload_id"]), (&json!("upload.part"), &json!(upload)));
    part["id"].as_str().unwrap().to_owned()
}

async fn complete(server: &Server, upload: &str, body: Value) -> Reply {
    server.post(&format!("/v1/uploads/{upload}/complete"), &body).await
}

#[tokio::test]
async fn parts_become_a_file_in_the_order_that_is_said() {
    let server = says("x").await;
    let content = rows(20);
    let (first, second) = content.as_bytes().split_at(333);
    let upload = begin(&server, content.len()).await;
    // The later one first, and one that is not used.
    let late = added(&server, &upload, second).await;
    let early = added(&server, &upload, first).await;
    let wrong = complete(&server, &upload, json!({"part_ids": [early, late], "md5": "00"})).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["error"]["param"]), (400, &json!("md5")));
    let message = wrong.json()["error"]["message"].as_str().unwrap().to_owned();
    let md5 = message.rsplit(' ').next().unwrap().to_owned();
    let body = json!({"part_ids": [early, late], "md5": md5.to_uppercase()});
    let done = complete(&server, &upload, body).await;
    assert_eq!(done.status, 200, "{}", done.text);
    let card = done.json();
    assert_eq!(
        (&card["status"], &card["file"]["bytes"]),
        (&json!("completed"), &json!(content.len()))
    );
    let file = card["file"]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/files/{file}/content")).await.text, content);
    // The parts are gone.
    assert_eq!(server.stored().await.1, 1);
    for again in [
        complete(&server, &upload, json!({"part_ids": [early, late]})).await,
        server.post(&format!("/v1/uploads/{upload}/cancel"), &json!({})).await,
        add(&server, &upload, b"x").await,
    ] {
        let error = &again.json()["error"];
        assert_eq!(
            (again.status.as_u16(), &error["code"]),
            (400, &json!("invalid_state")),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().ends_with("is completed"), "{error}");
    }
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let server = says("x").await;
    let upload = begin(&server, 10).await;
    added(&server, &upload, b"12345").await;
    let refused = add(&server, &upload, b"1234567").await;
    assert_eq!(refused.json()["error"]["code"], "invalid_state", "more than announced");
    let cancelled = server.post(&format!("/v1/uploads/{upload}/cancel"), &json!({})).await;
    assert_eq!(cancelled.json()["status"], "cancelled");
    assert_eq!(add(&server, &upload, b"1").await.status, 400);
    assert_eq!(server.stored().await.1, 0);
}

#[tokio::test]
async fn what_does_not_fit_changes_nothing() {
    let server = says("x").await;
    let content = rows(2);
    let upload = begin(&server, content.len()).await;
    let (first, second) = content.as_bytes().split_at(40);
    let one = added(&server, &upload, first).await;
    let two = added(&server, &upload, second).await;
    for (part_ids, status, code) in [
        (json!([one]), 400, "invalid_value"),
        (json!([one, one]), 404, "part_not_found"),
        (json!([one, "part_x"]), 404, "part_not_found"),
        (json!("part"), 400, "invalid_type"),
        // The right parts in the wrong order are no rows.
        (json!([two, one]), 400, "invalid_file"),
    ] {
        let refused = complete(&server, &upload, json!({"part_ids": part_ids})).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status.as_u16(), &error["code"]), (status, &json!(code)), "{error}");
    }
    let nobody = complete(&server, "upload_x", json!({"part_ids": []})).await;
    assert_eq!(
        (nobody.status.as_u16(), &nobody.json()["error"]["code"]),
        (404, &json!("upload_not_found"))
    );
    let done = complete(&server, &upload, json!({"part_ids": [one, two]})).await;
    assert_eq!(done.status, 200, "{}", done.text);
    for (field, value) in [
        ("bytes", json!(0)),
        ("bytes", json!((8_u64 << 30) + 1)),
        ("purpose", json!("batch")),
        ("filename", Value::Null),
        ("expires_after", json!({"anchor": "created_at", "seconds": 1})),
    ] {
        let mut body =
            json!({"bytes": 9, "filename": "a", "mime_type": "b", "purpose": "fine-tune"});
        body[field] = value;
        let refused = server.post("/v1/uploads", &body).await;
        assert_eq!(refused.status, 400, "{field}");
        let param = refused.json()["error"]["param"].as_str().unwrap().to_owned();
        assert!(param.starts_with(field), "{param}");
    }
}
