//! Uploads, paths that may not be read, and files that cannot be an adapter: refused with a reason, nothing registered,
//! nothing left on disk.

use axum::{body::Body, http::Request};
use serde_json::json;

use crate::support::{
    Reply, Server, Setup, adapter_config, adapter_tensors, says, serve, write_adapter,
};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const BOUNDARY: &str = "border";

fn multipart(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

async fn send(server: &Server, path: &str, body: Vec<u8>) -> Reply {
    let request = Request::put(path)
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    server.send(request.body(Body::from(body)).unwrap()).await
}

async fn upload(server: &Server, config: &[u8], tensors: &[u8]) -> Reply {
    send(server, "/v1/adapters/x", multipart(&[(CONFIG, config), (TENSORS, tensors)])).await
}

#[tokio::test]
async fn files_are_uploaded_without_any_root() {
    let server = serve(Setup { has_root: false, ..Setup::default() }).await;
    let config = adapter_config().to_string();
    let reply = upload(&server, config.as_bytes(), &adapter_tensors('u', 32)).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    let whole = server.complete(json!({"model": "x"})).await.json();
    assert_eq!(whole["choices"][0]["text"], "uuuuu");
    server.stores(1).await;
    // By path nothing is read, whatever is there.
    let root = server.root.display().to_string();
    write_adapter(&server.root, 'a');
    let reply = server.put("/v1/adapters/y", &json!({"path": root})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (403, &json!("adapter_path_not_allowed"))
    );
    let reply =
        server.post("/v1/load_lora_adapter", &json!({"lora_name": "y", "lora_path": root})).await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["error"]["type"], "InvalidUserInput");
    assert!(reply.text.contains("--adapter-root"), "{}", reply.text);
    let body = server.delete("/v1/adapters/x").await;
    assert_eq!(body.status, 200);
    server.stores(0).await;
}

#[tokio::test]
async fn uploads_that_are_no_adapter_leave_nothing() {
    let server = says("-----").await;
    let config = adapter_config().to_string();
    let config = config.as_bytes();
    let good = adapter_tensors('a', 32);
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut huge_header = good.clone();
    huge_header[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    let with = |key: &str, value: serde_json::Value| {
        let mut config = adapter_config();
        config[key] = value;
        config.to_string()
    };
    let dora = with("use_dora", json!(true));
    let alora = with("alora_invocation_tokens", json!([1, 2]));
    let rank = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]})
        .to_string();
    for (name, config, tensors, reason) in [
        ("truncated", config, &good[..good.len() - 1], ""),
        ("empty", config, &[][..], ""),
        ("nan", config, &nan[..], "lora_B"),
        ("another base", config, &adapter_tensors('a', 40)[..], "lora_A"),
        ("another rank", rank.as_bytes(), &good[..], "lora_A"),
        ("huge header", config, &huge_header[..], "header"),
        ("no config", b"{", &good[..], ""),
        ("dora without its magnitudes", dora.as_bytes(), &good[..], "lora_magnitude_vector"),
        ("not supported", alora.as_bytes(), &good[..], "alora_invocation_tokens"),
    ] {
        let reply = upload(&server, config, tensors).await;
        assert_eq!(reply.status, 400, "{name}: {}", reply.text);
        assert_eq!(reply.json()["error"]["code"], "invalid_adapter", "{name}");
        assert!(reply.text.contains(reason), "{name}: {}", reply.text);
        assert_eq!((server.names().await.len(), server.spooled()), (2, 0), "{name}");
        assert_eq!(server.stored().await, (0, 0), "{name}");
    }
    let large = vec![b' '; (1 << 20) + 1];
    for (body, status, code) in [
        (multipart(&[(CONFIG, config)]), 400, "missing_required_parameter"),
        (multipart(&[(CONFIG, config), (CONFIG, config)]), 400, "invalid_value"),
        (multipart(&[("../escape", config)]), 400, "invalid_value"),
        (multipart(&[(CONFIG, &large)]), 413, "request_too_large"),
        (multipart(&[(CONFIG, config), (TENSORS, &good)])[..300].to_vec(), 400, "incomplete_body"),
    ] {
        let reply = send(&server, "/v1/adapters/x", body).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (status, &json!(code)),
            "{}",
            reply.text
        );
        assert_eq!((server.names().await.len(), server.spooled()), (2, 0), "{code}");
    }
    let body = multipart(&[(CONFIG, config), (TENSORS, &good)]);
    let reply = send(&server, "/v1/adapters/tiny", body).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (400, &json!("invalid_adapter_name"))
    );
    // A bad one leaves what was there as it was.
    assert_eq!(upload(&server, config, &good).await.status, 201);
    assert_eq!(upload(&server, config, &nan).await.status, 400);
    let whole = server.complete(json!({"model": "x"})).await.json();
    assert_eq!(whole["choices"][0]["text"], "aaaaa");
    server.stores(1).await;
}

#[cfg(unix)]
#[tokio::test]
async fn paths_that_lead_elsewhere_are_refused() {
    use std::os::unix::fs::symlink;
    let server = says("-----").await;
    let outside = server.root.parent().unwrap().join("outside");
    write_adapter(&outside, 'o');
    symlink(&outside, server.root.join("link")).unwrap();
    // A folder of our own whose weights are elsewhere.
    write_adapter(&server.root.join("half"), 'h');
    let tensors = server.root.join("half").join(TENSORS);
    std::fs::remove_file(&tensors).unwrap();
    symlink(outside.join(TENSORS), &tensors).unwrap();
    for path in [
        "link".to_owned(),
        "half".to_owned(),
        "../outside".to_owned(),
        "half/../../outside".to_owned(),
        outside.display().to_string(),
        "/etc".to_owned(),
        "/no/such/folder".to_owned(),
    ] {
        let reply = server.put("/v1/adapters/x", &json!({"path": path})).await;
        assert_eq!(reply.status, 403, "{path}: {}", reply.text);
        let body = json!({"lora_name": "x", "lora_path": path});
        let reply = server.post("/v1/load_lora_adapter", &body).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.text);
        assert_eq!((server.names().await.len(), server.spooled()), (2, 0), "{path}");
    }
    // A pickle is never opened; a folder where a file should be is no file.
    write_adapter(&server.root.join("pickle"), 'p');
    std::fs::rename(
        server.root.join("pickle").join(TENSORS),
        server.root.join("pickle/adapter_model.bin"),
    )
    .unwrap();
    write_adapter(&server.root.join("folder"), 'f');
    std::fs::remove_file(server.root.join("folder").join(TENSORS)).unwrap();
    std::fs::create_dir(server.root.join("folder").join(TENSORS)).unwrap();
    for path in ["pickle", "folder"] {
        let reply = server
            .post("/v1/load_lora_adapter", &json!({"lora_name": "x", "lora_path": path}))
            .await;
        assert_eq!(reply.status, 500, "{path}: {}", reply.text);
        assert_eq!(reply.json()["error"]["type"], "InternalServerError");
        assert!(reply.text.contains("Loading lora x failed: "), "{}", reply.text);
        assert_eq!((server.names().await.len(), server.spooled()), (2, 0), "{path}");
    }
}

#[tokio::test]
async fn the_key_guards_adapters_too() {
    let server = serve(Setup { api_key: Some("secret"), ..Setup::default() }).await;
    for reply in [
        server.get("/v1/adapters").await,
        server.get("/v1/adapters/pirate").await,
        server.put("/v1/adapters/x", &json!({"path": "x"})).await,
        server.delete("/v1/adapters/pirate").await,
        server.post("/v1/adapters/pirate/rollback", &json!({})).await,
        server.post("/v1/load_lora_adapter", &json!({})).await,
        server.post("/v1/unload_lora_adapter", &json!({"lora_name": "pirate"})).await,
    ] {
        assert_eq!(reply.status, 401);
    }
}
