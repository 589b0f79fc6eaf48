//! Adapters that come from an object store, and blobs that are in one.

use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory};
use pleach_adapters::{ResidencyConfig, ResidencyLimits};
use pleach_store::{Blobs, RemoteFolder};
use serde_json::json;

use crate::support::{
    LETTER_BYTES, Setup, adapter_config, adapter_tensors, ids, serve, write_adapter,
};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_loaded_from_an_allowed_folder_of_an_object_store() {
    let objects = Arc::new(InMemory::new());
    let put = async |path: &str, content: Vec<u8>| {
        objects.put(&path.into(), content.into()).await.unwrap();
    };
    for folder in ["a", "deep/er"] {
        put(&format!("{folder}/{CONFIG}"), adapter_config().to_string().into()).await;
    }
    put(&format!("a/{TENSORS}"), adapter_tensors('a', 32)).await;
    put(&format!("deep/er/{TENSORS}"), adapter_tensors('d', 32)).await;
    put(&format!("half/{CONFIG}"), adapter_config().to_string().into()).await;
    put(&format!("large/{CONFIG}"), vec![b' '; (1 << 20) + 1]).await;
    let root =
        RemoteFolder::in_objects(Arc::clone(&objects) as Arc<dyn ObjectStore>, "s3://bucket/team");
    let server = serve(Setup {
        tokens: ids("-----"),
        remote_root: Some(root),
        has_root: false,
        ..Setup::default()
    })
    .await;
    for (name, path, text) in
        [("x", "s3://bucket/team/a", "aaaaa"), ("y", "s3://bucket/team/deep/er/", "ddddd")]
    {
        let reply = server.put(&format!("/v1/adapters/{name}"), &json!({"path": path})).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        let whole = server.complete(json!({"model": name})).await.json();
        assert_eq!(whole["choices"][0]["text"], text);
    }
    let load = json!({"lora_name": "z", "lora_path": "s3://bucket/team/a"});
    assert_eq!(server.post("/v1/load_lora_adapter", &load).await.status, 200);
    server.stores(2).await;
    for (path, status, code) in [
        ("s3://bucket/other/a", 403, "adapter_path_not_allowed"),
        ("s3://bucket/team/../other/a", 403, "adapter_path_not_allowed"),
        ("s3://elsewhere/team/a", 403, "adapter_path_not_allowed"),
        ("a", 403, "adapter_path_not_allowed"),
        ("s3://bucket/team/nothing", 404, "adapter_files_not_found"),
        ("s3://bucket/team/half", 400, "invalid_adapter"),
        ("s3://bucket/team/large", 400, "invalid_adapter"),
    ] {
        let reply = server.put("/v1/adapters/w", &json!({"path": path})).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (status, &json!(code)),
            "{path}: {}",
            reply.text
        );
        assert_eq!((server.stored().await.0, server.spooled()), (2, 0), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_in_an_object_store_are_fetched_when_they_are_needed() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    // Room for one adapter on the device and in host memory.
    let setup = || Setup {
        tokens: ids("-----"),
        blobs: Some(Blobs::in_objects(Arc::clone(&objects), "memory")),
        adapter_bytes: LETTER_BYTES,
        residency: ResidencyConfig {
            limits: ResidencyLimits {
                host_bytes_max: LETTER_BYTES,
                ..ResidencyConfig::default().limits
            },
            ..ResidencyConfig::default()
        },
        ..Setup::default()
    };
    let mut server = serve(setup()).await;
    for (name, letter) in [("x", 'a'), ("y", 'b'), ("z", 'c')] {
        write_adapter(&server.root.join(name), letter);
        assert_eq!(
            server.put(&format!("/v1/adapters/{name}"), &json!({"path": name})).await.status,
            201
        );
    }
    for _ in 0..2 {
        for (name, text) in [("x", "aaaaa"), ("y", "bbbbb"), ("z", "ccccc"), ("x", "aaaaa")] {
            let whole = server.complete(json!({"model": name})).await.json();
            assert_eq!(whole["choices"][0]["text"], text, "{whole}");
        }
        assert!(server.state.adapters.tier_facts().stats.loads >= 3);
        assert_eq!(server.spooled(), 0, "copies go with the load");
        assert!(!server.blobs.exists());
        assert_eq!(server.get("/v1/adapters/x/download").await.status, 200);
        server = server.restart(setup()).await;
    }
}
