//! A server that ends without warning and starts again over what it left: names, generations, histories and pins are what
//! they were, and what is wrong with one adapter harms no other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use pleach::adapter_service::Target;
use pleach_adapters::Expect;
use pleach_store::{GenerationDigest, GenerationMetadata, Origin, Owner, Registration};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Value, json};

use crate::{
    namespaces::tenant,
    support::{Server, Setup, adapter_tensors, ids, serve, write_adapter},
    tenant_support::until,
};

fn setup() -> Setup {
    Setup { tokens: ids("-----"), ..Setup::default() }
}

/// A server with folders `a` … `j` that say their own letter.
async fn server() -> Server {
    let server = serve(setup()).await;
    for letter in 'a'..='j' {
        write_adapter(&server.root.join(letter.to_string()), letter);
    }
    server
}

async fn put(server: &Server, name: &str, folder: &str) -> Value {
    let reply = server.put(&format!("/v1/adapters/{name}"), &json!({"path": folder})).await;
    assert!(reply.status.is_success(), "{}", reply.text);
    reply.json()
}

async fn text(server: &Server, model: &str) -> String {
    let reply = server.complete(json!({"model": model})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// All that is durable about every adapter that is stored.
async fn cards(server: &Server) -> BTreeMap<String, Value> {
    let list = server.get("/v1/adapters").await.json();
    let cards = list["data"].as_array().unwrap().iter();
    let mut cards: BTreeMap<_, _> = cards
        .map(|card| (card["name"].as_str().unwrap().to_owned(), card.clone()))
        .filter(|(name, _)| !["pirate", "extract"].contains(&name.as_str()))
        .collect();
    for card in cards.values_mut() {
        for fleeting in ["tier", "requests"] {
            card.as_object_mut().unwrap().remove(fleeting);
        }
    }
    cards
}

async fn wait_for_tier(server: &Server, name: &str, tier: &str) {
    for _ in 0..500 {
        if server.get(&format!("/v1/adapters/{name}")).await.json()["tier"] == tier {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{name} is not on {tier}");
}

#[tokio::test]
async fn everything_is_what_it_was_and_nothing_is_read_before_it_is_asked_for() {
    let server = server().await;
    for folder in ["a", "b", "c"] {
        put(&server, "x", folder).await;
    }
    assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
    put(&server, "y", "d").await;
    put(&server, "gone", "e").await;
    assert_eq!(server.delete("/v1/adapters/gone").await.status, 200);
    let reply = server.put("/v1/adapters/y", &json!({"pinned": true})).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["pinned"]), (200, &json!(true)));
    assert_eq!(reply.json()["tier"], "device");
    let before = cards(&server).await;
    assert_eq!(before.len(), 2);

    let server = server.restart(setup()).await;
    assert_eq!(cards(&server).await, before);
    assert_eq!(server.get("/v1/adapters/x").await.json()["tier"], "disk");
    wait_for_tier(&server, "y", "device").await;
    assert_eq!(server.state.adapters.tier_facts().stats.loads, 1, "the pinned one");
    assert_eq!(
        (text(&server, "x").await, text(&server, "y").await),
        ("bbbbb".into(), "ddddd".into())
    );
    // The history goes on where it was.
    for expected in ["aaaaa", "ccccc", "bbbbb"] {
        assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
        assert_eq!(text(&server, "x").await, expected);
    }
    let let_go = server.put("/v1/adapters/y", &json!({"pinned": false})).await;
    assert_eq!(let_go.json()["pinned"], false);
    assert_eq!(server.state.adapters.tier_facts().stats.pinned_generations, 0);
    for name in ["x", "y"] {
        assert_eq!(server.delete(&format!("/v1/adapters/{name}")).await.status, 200);
    }
    server.stores(0).await;
    let server = server.restart(setup()).await;
    assert!(cards(&server).await.is_empty());
}

#[tokio::test]
async fn a_pin_follows_its_name() {
    let server = server().await;
    put(&server, "x", "a").await;
    let stats = || server.state.adapters.tier_facts().stats;
    for (path, body, status) in [
        ("/v1/adapters/nobody", json!({"pinned": true}), 404),
        ("/v1/adapters/x", json!({"pinned": "yes"}), 400),
        ("/v1/adapters/x?pinned=maybe", json!({"path": "a"}), 400),
        ("/v1/adapters/x", json!({}), 400),
        ("/v1/adapters/x", json!({"pinned": true, "expected_generation": "0".repeat(64)}), 409),
    ] {
        assert_eq!(server.put(path, &body).await.status, status, "{path} {body}");
    }
    assert_eq!(stats().pinned_generations, 0);
    let reply = server.put("/v1/adapters/x", &json!({"path": "b", "pinned": true})).await;
    assert_eq!(reply.json()["pinned"], true, "{}", reply.text);
    assert_eq!(stats().pinned_generations, 1);
    put(&server, "x", "c").await;
    wait_for_tier(&server, "x", "device").await;
    for _ in 0..500 {
        if stats().pinned_generations == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stats().pinned_generations, 1, "the new one, and not the old one");
    assert_eq!(server.delete("/v1/adapters/x").await.status, 200);
    for _ in 0..500 {
        if stats().pinned_generations == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{:?}", stats());
}

#[tokio::test]
async fn new_weights_after_a_restart_are_never_answered_from_old_keys_and_values() {
    let mut server = server().await;
    let prompt = "the same prompt, longer than one block of the cache, twice at least";
    for letter in ["a", "b", "a"] {
        put(&server, "x", letter).await;
        server = server.restart(setup()).await;
        for is_first in [true, false] {
            let reply = server.complete(json!({"model": "x", "prompt": prompt})).await.json();
            let cached = &reply["usage"]["prompt_tokens_details"]["cached_tokens"];
            assert_eq!(reply["choices"][0]["text"], letter.repeat(5));
            assert_eq!(cached.as_u64() == Some(0), is_first);
        }
        // Moved under load: what is cached is the other generation's.
        put(&server, "x", "c").await;
        let reply = server.complete(json!({"model": "x", "prompt": prompt})).await.json();
        assert_eq!(reply["choices"][0]["text"], "ccccc");
        assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
}

#[tokio::test]
async fn a_lost_or_damaged_blob_fails_its_adapter_by_name_and_no_other() {
    let server = server().await;
    for (name, folder) in [("lost", "a"), ("short", "b"), ("changed", "c"), ("good", "d")] {
        put(&server, name, folder).await;
    }
    let blob = |letter| server.blob_with(&adapter_tensors(letter, 32));
    std::fs::remove_file(blob('a')).unwrap();
    let short = adapter_tensors('b', 32);
    std::fs::write(blob('b'), &short[..short.len() - 1]).unwrap();
    std::fs::write(blob('c'), adapter_tensors('z', 32)).unwrap();
    let server = server.restart(setup()).await;
    for (name, reason) in [
        ("lost", "adapter_model.safetensors is missing"),
        ("short", "adapter_model.safetensors"),
        ("changed", "its files have changed since they were registered"),
    ] {
        let reply = server.complete(json!({"model": name})).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (503, &json!("adapter_unavailable"))
        );
        assert!(reply.text.contains(reason) && reply.text.contains(name), "{}", reply.text);
        assert!(!reply.text.contains(server.blobs.to_str().unwrap()), "no places: {}", reply.text);
    }
    assert_eq!(text(&server, "good").await, "ddddd");
    // The same files again heal it.
    put(&server, "lost", "a").await;
    assert_eq!(text(&server, "lost").await, "aaaaa");
    let server = server.restart(setup()).await;
    assert_eq!(text(&server, "lost").await, "aaaaa");
}

#[tokio::test]
async fn adapters_of_another_base_are_listed_as_such_and_refused() {
    let server = server().await;
    put(&server, "x", "a").await;
    put(&server, "y", "b").await;
    let other = || Setup { base_digest: "cd".repeat(32), ..setup() };
    let server = server.restart(other()).await;
    let card = server.get("/v1/adapters/x").await.json();
    assert_eq!(
        (&card["base_matches"], &card["base_digest"]),
        (&json!(false), &json!("ab".repeat(32)))
    );
    let asked = [
        server.complete(json!({"model": "x"})).await,
        server.chat(json!({"model": "tiny:x"})).await,
        server.put("/v1/adapters/x", &json!({"pinned": true})).await,
    ];
    for reply in asked {
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (409, &json!("base_mismatch"))
        );
        for digest in ["ab", "cd"] {
            assert!(reply.text.contains(&digest.repeat(32)), "{}", reply.text);
        }
    }
    assert_eq!(server.get("/v1/models/x").await.status, 200, "it is listed");
    assert_eq!(server.get("/v1/adapters/x/download").await.status, 200, "its files can be had");
    // Files that were checked against this base count, also after the next start.
    put(&server, "x", "a").await;
    assert_eq!(text(&server, "x").await, "aaaaa");
    let server = server.restart(other()).await;
    assert_eq!(text(&server, "x").await, "aaaaa");
    let matches = async |name: &str| cards(&server).await[name]["base_matches"].clone();
    assert_eq!((matches("x").await, matches("y").await), (json!(true), json!(false)));
}

/// What is written to the log, by this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines_with(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_pin_made_under_another_base_is_told_by_name_and_kept_for_later() {
    let server = server().await;
    put(&server, "x", "a").await;
    put(&server, "y", "b").await;
    for name in ["x", "y"] {
        let path = format!("/v1/adapters/{name}");
        assert_eq!(server.put(&path, &json!({"pinned": true})).await.status, 200);
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let other = Setup { base_digest: "cd".repeat(32), ..setup() };
    let server = server.restart(other).await;
    let warnings = log.lines_with("checked against another base model");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (name, warning) in ["x", "y"].iter().zip(&warnings) {
        assert!(
            warning.contains("WARN") && warning.contains(&format!("adapter={name} ")),
            "{warning}"
        );
    }
    let stats = || server.state.adapters.tier_facts().stats;
    let card = server.get("/v1/adapters/x").await.json();
    assert_eq!(
        (&card["pinned"], &card["base_matches"], &card["tier"]),
        (&json!(true), &json!(false), &json!("disk"))
    );
    // Files that were checked against this base are pinned as the name is; going back is not.
    put(&server, "x", "c").await;
    wait_for_tier(&server, "x", "device").await;
    assert_eq!(text(&server, "x").await, "ccccc");
    until("it is pinned", async || stats().pinned_generations == 1).await;
    assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
    until("it is let go", async || stats().pinned_generations == 0).await;
    assert_eq!((stats().loads, stats().waiting), (0, 0), "nothing of another base is read");
    assert_eq!(log.lines_with("checked against another base model").len(), 3);
    assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
    until("it is pinned again", async || stats().pinned_generations == 1).await;
    // Under the first base all is as it was.
    let server = server.restart(setup()).await;
    wait_for_tier(&server, "y", "device").await;
    assert_eq!(text(&server, "y").await, "bbbbb");
}

#[tokio::test]
async fn a_configured_name_that_was_changed_is_the_stores_from_then_on() {
    let server = server().await;
    let configure = async |server: &Server| {
        let folder = server.root.join("a");
        server.state.adapters.register_configured("x", folder, Expect::Absent).await.unwrap();
    };
    configure(&server).await;
    let server = server.restart(setup()).await;
    assert!(cards(&server).await.is_empty(), "the configuration brings it, not the store");
    configure(&server).await;
    assert_eq!(text(&server, "x").await, "aaaaa");
    put(&server, "x", "b").await;
    let before = cards(&server).await;
    // Its first files are kept too, wherever they go.
    write_adapter(&server.root.join("a"), 'z');
    let server = server.restart(setup()).await;
    configure(&server).await;
    assert_eq!(cards(&server).await, before);
    assert_eq!(text(&server, "x").await, "bbbbb");
    assert_eq!(server.post("/v1/adapters/x/rollback", &json!({})).await.status, 200);
    assert_eq!(text(&server, "x").await, "aaaaa");
    // Removed, the name is the configuration's again.
    assert_eq!(server.delete("/v1/adapters/x").await.status, 200);
    let server = server.restart(setup()).await;
    configure(&server).await;
    assert_eq!(text(&server, "x").await, "zzzzz");
    // One that was written over cannot be kept; what comes is served all the same.
    write_adapter(&server.root.join("a"), 'y');
    put(&server, "x", "c").await;
    assert_eq!(text(&server, "x").await, "ccccc");
    assert_eq!(cards(&server).await["x"]["history"], json!([]));
}

/// Equal files of the configuration and of the store are one generation, and two names of different kinds.
#[tokio::test]
async fn a_configured_name_beside_a_stored_one_with_equal_files() {
    let server = server().await;
    let folder = server.root.join("a");
    put(&server, "before", "a").await;
    server.state.adapters.register_configured("own", folder.clone(), Expect::Absent).await.unwrap();
    put(&server, "after", "a").await;
    // A stored one never depends on a folder of the configuration.
    server
        .state
        .adapters
        .register_configured("other", server.root.join("b"), Expect::Absent)
        .await
        .unwrap();
    put(&server, "copy", "b").await;
    for letter in ["a", "b"] {
        write_adapter(&server.root.join(letter), 'z');
    }
    let names = async |server: &Server| cards(server).await.into_keys().collect::<Vec<_>>();
    assert_eq!(names(&server).await, ["after", "before", "copy", "other", "own"]);
    assert_eq!(server.get("/v1/adapters/copy/download").await.status, 200);
    // Each can be changed.
    for name in ["own", "before", "after"] {
        put(&server, name, "c").await;
        assert_eq!(text(&server, name).await, "ccccc");
        assert_eq!(cards(&server).await[name]["history"].as_array().unwrap().len(), 1, "{name}");
    }
    assert_eq!(server.delete("/v1/adapters/other").await.status, 200);
    let before = cards(&server).await;
    let server = server.restart(setup()).await;
    assert_eq!(cards(&server).await, before);
    assert_eq!(text(&server, "copy").await, "bbbbb");
}

#[tokio::test]
async fn what_a_killed_server_left_is_cleaned_up_by_the_next() {
    let server = server().await;
    put(&server, "x", "a").await;
    let blob = server.state.store.put_blob("weights of nobody").await.unwrap();
    let registration = Registration {
        owner: Owner::Shared,
        digest: GenerationDigest([7; 32]),
        metadata: GenerationMetadata::default(),
        origin: Origin::Upload,
        files: vec![("adapter_model.safetensors".to_owned(), blob)],
    };
    server.state.store.register(&registration, None).await.unwrap();
    assert_eq!(server.stored().await.0, 2);
    let server = server.restart(setup()).await;
    server.stores(1).await;
    assert_eq!(text(&server, "x").await, "aaaaa");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_store_and_names_in_one_mind() {
    let server = server().await;
    put(&server, "x", "a").await;
    for turn in 0_u64..40 {
        let letter = ["b", "c", "d"][usize::try_from(turn % 3).unwrap()];
        let target =
            Target { owner: Owner::Shared, name: "x".to_owned(), who: "client".to_owned() };
        let change = server.state.adapters.register_path(target, letter, Expect::Anything);
        // Sometimes it is done, sometimes half of it.
        let _ = tokio::time::timeout(Duration::from_micros(turn * 150), change).await;
    }
    // What is still on its way follows.
    let mut before = BTreeMap::new();
    loop {
        let now = cards(&server).await;
        if now == before && server.spooled() == 0 {
            break;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let server = server.restart(setup()).await;
    assert_eq!(cards(&server).await, before);
    put(&server, "x", "e").await;
    assert_eq!(text(&server, "x").await, "eeeee");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_change_a_name_at_once_store_and_names_agree_on_the_last() {
    let server = Arc::new(server().await);
    let tasks: Vec<_> = ('a'..='j')
        .map(|letter| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                for turn in 0..4 {
                    let name = if turn % 2 == 0 { "x" } else { "y" };
                    put(&server, name, &letter.to_string()).await;
                    // There may be nothing to go back to.
                    server.post(&format!("/v1/adapters/{name}/rollback"), &json!({})).await;
                    if letter == 'e' {
                        server.delete(&format!("/v1/adapters/{name}")).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    put(&server, "z", "a").await;
    let before = cards(&server).await;
    let server = Arc::into_inner(server).unwrap().restart(setup()).await;
    assert_eq!(cards(&server).await, before);
}

#[derive(Clone, Debug)]
enum Operation {
    Put(char),
    RollBack(Option<u8>),
    Delete,
    Pin(bool),
}

/// Whose, which name, what.
fn operations() -> impl Strategy<Value = Vec<(usize, &'static str, Operation)>> {
    let operation = prop_oneof![
        5 => prop::char::range('a', 'j').prop_map(Operation::Put),
        2 => prop::option::of(0_u8..8).prop_map(Operation::RollBack),
        1 => Just(Operation::Delete),
        1 => any::<bool>().prop_map(Operation::Pin),
    ];
    prop::collection::vec((0_usize..2, prop::sample::select(vec!["x", "y/z"]), operation), 40)
}

/// Random changes by two owners; a restart in the middle and one at the end change nothing.
#[tokio::test]
async fn random_changes_are_the_same_after_a_restart() {
    let mut runner = TestRunner::default();
    for _ in 0..3 {
        let mut server = server().await;
        let caller = tenant(&server, "one").await;
        let all = operations().new_tree(&mut runner).unwrap().current();
        for half in all.chunks(20) {
            for (owner, name, operation) in half {
                let seen = if *owner == 0 {
                    server.seen_by(&caller)
                } else {
                    server.seen_by(&pleach::tenants::Caller::operator())
                };
                let path = format!("/v1/adapters/{}", name.replace('/', "%2F"));
                let reply = match operation {
                    Operation::Put(letter) => {
                        seen.put(&path, &json!({"path": letter.to_string()})).await
                    }
                    Operation::RollBack(None) => {
                        seen.post(&format!("{path}/rollback"), &json!({})).await
                    }
                    Operation::RollBack(Some(place)) => {
                        let card = seen.get(&path).await.json();
                        let to = &card["history"][usize::from(*place)]["generation"];
                        seen.post(&format!("{path}/rollback"), &json!({"generation": to})).await
                    }
                    Operation::Delete => seen.delete(&path).await,
                    Operation::Pin(pinned) => seen.put(&path, &json!({"pinned": pinned})).await,
                };
                assert!(!reply.status.is_server_error(), "{operation:?}: {}", reply.text);
            }
            let all_cards = async |server: &Server| {
                (cards(server).await, cards(&server.seen_by(&caller)).await)
            };
            let before = all_cards(&server).await;
            server = server.restart(setup()).await;
            assert_eq!(all_cards(&server).await, before, "after {half:?}");
        }
    }
}
