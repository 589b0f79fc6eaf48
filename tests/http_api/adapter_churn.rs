//! Adapters that come and go under load, on a device with room for few: every completion is that of the generation it
//! names, long ones are not disturbed, and nothing is left in the end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pleach_adapters::{Expect, ResidencyConfig, ResidencyLimits, Tier};
use serde_json::json;

use crate::support::{LETTER_BYTES, Server, Setup, ids, serve, write_adapter};

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";

/// Room for `n` adapters on the device and twice as many in host memory.
async fn small(n: usize, tokens: usize) -> Arc<Server> {
    let limits = ResidencyLimits {
        host_bytes_max: 2 * n * LETTER_BYTES,
        ..ResidencyConfig::default().limits
    };
    let server = serve(Setup {
        tokens: ids(&"-".repeat(tokens)),
        adapter_bytes: n * LETTER_BYTES,
        residency: ResidencyConfig {
            limits,
            drain_after: Duration::from_millis(5),
            ..ResidencyConfig::default()
        },
        ..Setup::default()
    })
    .await;
    for letter in LETTERS.chars() {
        write_adapter(&server.root.join(letter.to_string()), letter);
    }
    Arc::new(server)
}

async fn load(server: &Server, name: &str, folder: &str) {
    let body = json!({"lora_name": name, "lora_path": folder, "load_inplace": true});
    let reply = server.post("/v1/load_lora_adapter", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_completion_is_that_of_the_generation_it_names() {
    let server = small(3, 5).await;
    // The letter of each generation.
    let mut letters = HashMap::new();
    for letter in LETTERS.chars().take(8) {
        load(&server, "moving", &letter.to_string()).await;
        letters.insert(server.generation("moving").await, letter);
    }
    let letters = Arc::new(letters);
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let (server, letters, is_over) =
                (Arc::clone(&server), Arc::clone(&letters), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut n_done = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let reply = server
                        .complete(
                            json!({"model": "moving", "prompt": "one prompt for all of them"}),
                        )
                        .await;
                    assert_eq!(reply.status, 200, "{}", reply.text);
                    let reply = reply.json();
                    let letter = letters[reply["pleach_generation"].as_str().unwrap()];
                    assert_eq!(reply["choices"][0]["text"], letter.to_string().repeat(5));
                    n_done += 1;
                }
                n_done
            })
        })
        .collect();
    for turn in 0..200_usize {
        let letter = LETTERS.chars().nth(turn * 3 % 8).unwrap();
        if turn % 5 == 4 {
            assert_eq!(server.post("/v1/adapters/moving/rollback", &json!({})).await.status, 200);
        } else {
            load(&server, "moving", &letter.to_string()).await;
            // Whoever is admitted from now on gets it.
            let reply = server.complete(json!({"model": "moving"})).await.json();
            assert_eq!(reply["choices"][0]["text"], letter.to_string().repeat(5));
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_generations_go_on_while_others_come_and_go() {
    let server = small(4, 200).await;
    server.script.lock().unwrap().step = Duration::from_millis(2);
    load(&server, "first", "a").await;
    load(&server, "second", "b").await;
    let long = |model: &'static str| {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let reply = server.complete(json!({"model": model, "max_tokens": 200})).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            reply.json()["choices"][0]["text"].as_str().unwrap().to_owned()
        })
    };
    let (first, second) = (long("first"), long("second"));
    // Their own names are moved and removed meanwhile.
    while server.state.engine.stats().running < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    load(&server, "first", "c").await;
    assert_eq!(server.delete("/v1/adapters/second").await.status, 200);
    for turn in 0..60_usize {
        let letter = LETTERS.chars().nth(3 + turn % 20).unwrap();
        let name = format!("other{}", turn % 12);
        load(&server, &name, &letter.to_string()).await;
        let reply = server.complete(json!({"model": name, "max_tokens": 2})).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.json()["choices"][0]["text"], letter.to_string().repeat(2));
        if turn % 7 == 6 {
            assert_eq!(server.delete(&format!("/v1/adapters/{name}")).await.status, 200);
        }
    }
    assert_eq!(first.await.unwrap(), "a".repeat(200));
    assert_eq!(second.await.unwrap(), "b".repeat(200));
    let stats = server.state.adapters.tier_facts().stats;
    assert!(stats.device_evictions > 10 && stats.installs > 50, "{stats:?}");
    assert!(stats.device_bytes <= 4 * LETTER_BYTES, "{stats:?}");
    // What no name points at leaves with its last request.
    for name in server.names().await {
        assert_eq!(server.delete(&format!("/v1/adapters/{name}")).await.status, 200);
    }
    server.idle().await;
    for _ in 0..500 {
        let stats = server.state.adapters.tier_facts().stats;
        if (stats.device_generations, stats.host_generations) == (0, 0) {
            return server.stores(0).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", server.state.adapters.tier_facts().stats);
}

#[tokio::test]
async fn a_cold_adapter_is_read_again_and_one_that_changed_is_not() {
    let server = small(1, 3).await;
    for (name, folder) in [("x", "a"), ("y", "b"), ("z", "c"), ("w", "d"), ("v", "e")] {
        load(&server, name, folder).await;
    }
    for (name, letter) in [("x", "a"), ("v", "e"), ("z", "c"), ("w", "d"), ("y", "b"), ("x", "a")] {
        let reply = server.complete(json!({"model": name})).await.json();
        assert_eq!(reply["choices"][0]["text"], letter.repeat(3));
    }
    assert!(server.state.adapters.tier_facts().stats.loads > 0);
    // One of the configuration is read where it is.
    server
        .state
        .adapters
        .register_configured("own", server.root.join("f"), Expect::Absent)
        .await
        .unwrap();
    for name in ["x", "y", "z", "w"] {
        server.complete(json!({"model": name})).await;
    }
    write_adapter(&server.root.join("f"), 'g');
    let reply = server.complete(json!({"model": "own"})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (503, &json!("adapter_unavailable"))
    );
    assert!(reply.text.contains("its files have changed"), "{}", reply.text);
    assert_eq!(server.complete(json!({"model": "x"})).await.json()["choices"][0]["text"], "aaa");
}

#[tokio::test]
async fn going_back_reads_nothing_as_long_as_there_is_room() {
    let server = small(8, 3).await;
    let text = async |name: &str| {
        let reply = server.complete(json!({"model": name})).await.json();
        reply["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    for letter in ["a", "b", "c"] {
        load(&server, "x", letter).await;
        assert_eq!(text("x").await, letter.repeat(3));
    }
    for letter in ["b", "a", "c"] {
        assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
        assert_eq!(text("x").await, letter.repeat(3));
    }
    let stats = || server.state.adapters.tier_facts().stats;
    assert_eq!((stats().loads, stats().host_evictions), (0, 0), "{:?}", stats());
    // Others need the room: what a name points at stays.
    for letter in "defghijklmnopqr".chars() {
        load(&server, &letter.to_string(), &letter.to_string()).await;
        assert_eq!(text(&letter.to_string()).await, letter.to_string().repeat(3));
        text("x").await;
    }
    let tiers = server.get("/v1/adapters/x").await.json();
    assert_eq!(tiers["tier"], "device");
    for earlier in tiers["history"].as_array().unwrap() {
        let digest = earlier["generation"].as_str().unwrap().parse().unwrap();
        assert_eq!(server.state.adapters.tier(digest), Tier::Disk);
    }
    assert_eq!(stats().loads, 0, "{:?}", stats());
    // With the name goes what it pointed at before.
    assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
    assert_eq!(text("x").await, "bbb");
    let card = server.get("/v1/adapters/x").await.json();
    let earlier = card["history"].as_array().unwrap().iter().map(|it| &it["generation"]);
    let all: Vec<_> = earlier.chain([&card["generation"]]).map(|it| it.as_str().unwrap()).collect();
    let tier = |digest: &&str| server.state.adapters.tier(digest.parse().unwrap());
    assert!(all.iter().any(|digest| tier(digest) != Tier::Disk));
    assert_eq!(server.delete("/v1/adapters/x").await.status, 200);
    assert!(all.iter().all(|digest| tier(digest) == Tier::Disk), "{:?}", stats());
}

#[tokio::test]
async fn a_name_that_goes_while_it_is_brought_to_the_device_leaves_nothing() {
    let server = small(4, 200).await;
    let stats = || server.state.adapters.tier_facts().stats;
    let before = (stats().host_generations, stats().device_generations);
    server.script.lock().unwrap().install = Duration::from_millis(500);
    let put = {
        let server = Arc::clone(&server);
        let body = json!({"path": "a", "pinned": true});
        tokio::spawn(async move { server.put("/v1/adapters/x", &body).await })
    };
    // The prefetch of what was registered, and the pin.
    while stats().waiting < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.delete("/v1/adapters/x").await.status, 200);
    assert_eq!(put.await.unwrap().status, 404, "it was removed before it was pinned");
    server.stores(0).await;
    assert_eq!((stats().host_generations, stats().device_generations), before, "{:?}", stats());
    assert_eq!((stats().pinned_generations, stats().waiting), (0, 0));
}

#[tokio::test]
async fn who_leaves_while_its_adapter_is_on_the_way_is_forgotten() {
    let server = small(1, 200).await;
    server.script.lock().unwrap().step = Duration::from_millis(2);
    load(&server, "x", "a").await;
    load(&server, "y", "b").await;
    let busy = {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.complete(json!({"model": "x", "max_tokens": 150})).await })
    };
    while server.state.engine.stats().running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The only place is taken.
    let waiting = server.complete(json!({"model": "y"}));
    assert!(tokio::time::timeout(Duration::from_millis(30), waiting).await.is_err());
    assert_eq!(server.state.adapters.tier_facts().stats.waiting, 0);
    assert_eq!(busy.await.unwrap().json()["choices"][0]["text"], "a".repeat(150));
}
