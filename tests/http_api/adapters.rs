//! Loading, replacing, pinning, rolling back and removing adapters over HTTP, in vLLM's words and in ours.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use crate::support::{Server, Setup, says, serve, write_adapter};

/// A server that says five letters, with folders `a` … `d` that say their own.
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

fn vllm_error(message: &str, kind: &str, code: u16) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

#[tokio::test]
async fn vllms_endpoints_have_its_bodies_statuses_and_texts() {
    let server = server().await;
    let load = "/v1/load_lora_adapter";
    let a = server.root.join("a").display().to_string();
    let reply = server
        .post(
            load,
            &json!({"lora_name": "x", "lora_path": a, "base_model_name": "tiny", "other": 1}),
        )
        .await;
    assert_eq!(
        (reply.status.as_u16(), reply.text.as_str()),
        (200, "Success: LoRA adapter 'x' added successfully.")
    );
    assert_eq!(reply.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text(&server, "x").await, "aaaaa");
    assert_eq!(text(&server, "tiny").await, "-----");
    for (body, status, message, kind) in [
        (
            json!({"lora_name": "x", "lora_path": a}),
            400,
            "The lora adapter 'x' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.",
            "InvalidUserInput",
        ),
        (
            json!({"lora_name": "", "lora_path": a}),
            400,
            "Both 'lora_name' and 'lora_path' must be provided.",
            "InvalidUserInput",
        ),
        (
            json!({"lora_name": "y", "lora_path": ""}),
            400,
            "Both 'lora_name' and 'lora_path' must be provided.",
            "InvalidUserInput",
        ),
        (
            json!({"lora_name": "tiny", "lora_path": a}),
            400,
            "The lora adapter name 'tiny' conflicts with a served base model.",
            "InvalidUserInput",
        ),
        (
            json!({"lora_name": "y", "lora_path": "nothing"}),
            404,
            "Loading lora y failed: No adapter found for nothing",
            "NotFoundError",
        ),
        (
            json!({"lora_name": "y"}),
            400,
            "missing required parameter: 'lora_path'",
            "BadRequestError",
        ),
    ] {
        let reply = server.post(load, &body).await;
        assert_eq!(reply.status, status, "{body}");
        assert_eq!(reply.json(), vllm_error(message, kind, status));
    }
    let reply =
        server.post(load, &json!({"lora_name": "x", "lora_path": "b", "load_inplace": true})).await;
    assert_eq!(reply.status, 200);
    assert_eq!(text(&server, "x").await, "bbbbb");
    let unload = "/v1/unload_lora_adapter";
    for (body, status, message, kind) in [
        (
            json!({"lora_name": ""}),
            400,
            "'lora_name' needs to be provided to unload a LoRA adapter.",
            "InvalidUserInput",
        ),
        (json!({"lora_name": "y"}), 404, "The lora adapter 'y' cannot be found.", "NotFoundError"),
    ] {
        let reply = server.post(unload, &body).await;
        assert_eq!(reply.status, status, "{body}");
        assert_eq!(reply.json(), vllm_error(message, kind, status));
    }
    let reply = server.post(unload, &json!({"lora_name": "x", "lora_int_id": null})).await;
    assert_eq!(
        (reply.status.as_u16(), reply.text.as_str()),
        (200, "Success: LoRA adapter 'x' removed successfully.")
    );
    let reply = server.complete(json!({"model": "x"})).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["param"]), (404, &json!("model")));
    // Anything but JSON is refused, as a browser could send it unasked.
    let request = Request::post(load).header("content-type", "text/plain");
    let reply = server.send(request.body(Body::from("{}")).unwrap()).await;
    assert_eq!(reply.status, 415);
    server.stores(0).await;
}

#[tokio::test]
async fn an_expected_generation_is_compared_and_swapped() {
    let server = server().await;
    let reply = server.put("/v1/adapters/x", &json!({"path": "a"})).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    let first = server.generation("x").await;
    let wrong = "0".repeat(64);
    let replies = [
        server.put("/v1/adapters/x", &json!({"path": "b", "expected_generation": wrong})).await,
        server
            .put(&format!("/v1/adapters/x?expected_generation={wrong}"), &json!({"path": "b"}))
            .await,
        server.delete(&format!("/v1/adapters/x?expected_generation={wrong}")).await,
        server.post("/v1/adapters/x/rollback", &json!({"expected_generation": wrong})).await,
    ];
    for reply in replies {
        assert_eq!(reply.status, 409, "{}", reply.text);
        assert_eq!(reply.json()["error"]["code"], "generation_conflict");
    }
    for (path, body) in [
        (
            "/v1/load_lora_adapter",
            json!({"lora_name": "x", "lora_path": "b", "expected_generation": wrong}),
        ),
        ("/v1/unload_lora_adapter", json!({"lora_name": "x", "expected_generation": wrong})),
    ] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 409, "{}", reply.text);
        assert_eq!(reply.json()["error"]["type"], "ConflictError");
        assert_eq!(reply.json()["error"]["code"], 409);
    }
    assert_eq!(text(&server, "x").await, "aaaaa");
    let body = json!({"lora_name": "x", "lora_path": "b", "expected_generation": first});
    assert_eq!(server.post("/v1/load_lora_adapter", &body).await.status, 200);
    assert_eq!(text(&server, "x").await, "bbbbb");
    let reply =
        server.put("/v1/adapters/x", &json!({"path": "c", "expected_generation": "zz"})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["param"]),
        (400, &json!("expected_generation"))
    );
}

#[tokio::test]
async fn adapters_are_listed_pinned_rolled_back_and_removed() {
    let server = server().await;
    let mut generations = Vec::new();
    for (folder, status) in [("a", 201), ("b", 200), ("c", 200)] {
        let reply = server.put("/v1/adapters/x", &json!({"path": folder})).await;
        assert_eq!(reply.status, status, "{}", reply.text);
        generations.push(reply.json()["generation"].as_str().unwrap().to_owned());
    }
    assert_eq!(text(&server, "tiny:x").await, "ccccc");
    let card = server.get("/v1/adapters/x").await.json();
    assert_eq!(card["name"], "x");
    assert_eq!((&card["rank"], &card["target_modules"]), (&json!(2), &json!(["q_proj"])));
    assert_eq!((&card["bytes"], &card["parameters"]), (&json!(512), &json!(128)));
    assert_eq!((&card["tier"], &card["requests"]), (&json!("device"), &json!(1)));
    assert!(card["created"].as_u64().unwrap() > 1_600_000_000);
    let history: Vec<_> = card["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|earlier| earlier["generation"].clone())
        .collect();
    assert_eq!(history, [json!(generations[1]), json!(generations[0])]);
    assert!(!card.to_string().contains(server.root.to_str().unwrap()));
    assert_eq!(server.names().await, ["extract", "pirate", "x"]);
    let models = server.get("/v1/models").await.json();
    let model = models["data"].as_array().unwrap().iter().find(|model| model["id"] == "x").unwrap();
    assert_eq!((&model["root"], &model["parent"]), (&json!("x"), &json!("tiny")));
    assert_eq!(model["pleach_generation"], json!(generations[2]));
    // A request may insist on a generation.
    for (generation, expected) in generations.iter().zip(["aaaaa", "bbbbb", "ccccc"]) {
        let reply =
            server.complete(json!({"model": "x", "adapter_generation": generation})).await.json();
        assert_eq!(
            (&reply["choices"][0]["text"], &reply["pleach_generation"]),
            (&json!(expected), &json!(generation))
        );
        let reply =
            server.chat(json!({"model": "x", "adapter_generation": generation})).await.json();
        assert_eq!(reply["choices"][0]["message"]["content"], expected);
    }
    for (model, generation, status, code) in [
        ("x", "0".repeat(64), 404, "generation_not_found"),
        ("x", "aa".repeat(32), 409, "generation_conflict"),
        ("x", "short".to_owned(), 400, "invalid_value"),
        ("tiny", generations[0].clone(), 400, "invalid_value"),
        ("y", generations[0].clone(), 404, "model_not_found"),
    ] {
        let reply =
            server.complete(json!({"model": model, "adapter_generation": generation})).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (status, &json!(code)),
            "{model}"
        );
    }
    let reply = server.post("/v1/adapters/x/rollback", &json!({})).await;
    assert_eq!(reply.json()["generation"], json!(generations[1]));
    assert_eq!(text(&server, "x").await, "bbbbb");
    let body = json!({"generation": generations[0], "expected_generation": generations[1]});
    assert_eq!(server.post("/v1/adapters/x/rollback", &body).await.status, 200);
    assert_eq!(text(&server, "x").await, "aaaaa");
    for (path, body, status) in [
        ("/v1/adapters/y/rollback", json!({}), 404),
        ("/v1/adapters/pirate/rollback", json!({}), 409),
        ("/v1/adapters/x/rollback", json!({"generation": "0".repeat(64)}), 404),
    ] {
        assert_eq!(server.post(path, &body).await.status, status, "{path}");
    }
    server.stores(3).await;
    let reply = server.delete("/v1/adapters/x").await;
    assert_eq!(
        reply.json(),
        json!({"name": "x", "object": "adapter", "deleted": true, "generation": generations[0]})
    );
    assert_eq!(server.delete("/v1/adapters/x").await.status, 404);
    assert_eq!(server.get("/v1/adapters/x").await.status, 404);
    server.stores(0).await;
    // A name may hold a slash.
    assert_eq!(server.put("/v1/adapters/org%2Fx", &json!({"path": "a"})).await.status, 201);
    assert_eq!(text(&server, "org/x").await, "aaaaa");
}

#[tokio::test]
async fn new_weights_are_never_answered_from_old_keys_and_values() {
    let server = serve(Setup { tokens: crate::support::ids("-----"), ..Setup::default() }).await;
    let prompt = "the same prompt, longer than one block of the cache, twice at least";
    let ask = async || {
        let reply = server.complete(json!({"model": "x", "prompt": prompt})).await.json();
        let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (reply["choices"][0]["text"].as_str().unwrap().to_owned(), cached)
    };
    for letter in ['a', 'b', 'c'] {
        // The same folder each time, as a trainer writes it.
        write_adapter(&server.root.join("x"), letter);
        let body = json!({"lora_name": "x", "lora_path": "x", "load_inplace": true});
        assert_eq!(server.post("/v1/load_lora_adapter", &body).await.status, 200);
        let expected = letter.to_string().repeat(5);
        assert_eq!(ask().await, (expected.clone(), 0), "nothing of another generation is reused");
        let (text, cached) = ask().await;
        assert_eq!(text, expected);
        assert!(cached > 0, "its own is");
    }
    // What is rolled back to is what it was, although the folder holds something else by now.
    server.post("/v1/adapters/x/rollback", &json!({})).await;
    assert_eq!(ask().await.0, "bbbbb");
    // Equal files are one generation, and share.
    write_adapter(&server.root.join("again"), 'b');
    server.put("/v1/adapters/y", &json!({"path": "again"})).await;
    assert_eq!(server.generation("x").await, server.generation("y").await);
    let reply = server.complete(json!({"model": "y", "prompt": prompt})).await.json();
    assert!(reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn the_tiers_are_measured() {
    let server = server().await;
    server.put("/v1/adapters/x", &json!({"path": "a"})).await;
    text(&server, "x").await;
    let metrics = server.get("/metrics").await.text;
    for line in [
        "pleach_adapter_generations{tier=\"device\"} 3",
        "pleach_adapter_bytes{tier=\"device\"} 512",
        "pleach_adapter_installs_total{result=\"ok\"} 3",
        "pleach_adapter_requests_waiting 0",
        "pleach_adapter_loads_total{result=\"ok\"} 0",
        "pleach_adapter_device_capacity_bytes 1073741824",
        "pleach_adapter_wait_seconds_count 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    let lora: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).collect();
    assert_eq!(lora.len(), 1);
    assert!(
        lora[0].contains("max_lora=\"1024\",running_lora_adapters=\"extract,pirate,x\""),
        "{lora:?}"
    );
}
