//! Several adapters on one request.

use std::{fs, path::Path};

use futures_util::FutureExt as _;
use pleach::{adapter_service::WantedPart, telemetry::names};
use pleach_adapters::{Namespace, Tier};
use serde_json::{Value, json};

use crate::support::{BASE, Reply, Server, adapter_config, says, write_adapter};

/// A server that says five letters, with adapters `a`, `b` and `c` that say their own.
async fn server() -> Server {
    let server = says("-----").await;
    for letter in ["a", "b", "c"] {
        write_adapter(&server.root.join(letter), letter.chars().next().unwrap());
        put(&server, letter, letter).await;
    }
    server
}

async fn put(server: &Server, name: &str, path: &str) {
    let reply = server.put(&format!("/v1/adapters/{name}"), &json!({"path": path})).await;
    assert!(reply.status.is_success(), "{}", reply.text);
}

async fn composed(server: &Server, adapters: Value) -> Value {
    let reply = server.complete(json!({"adapters": adapters})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

fn text(reply: &Value) -> &str {
    reply["choices"][0]["text"].as_str().unwrap()
}

fn generation(reply: &Value) -> &str {
    reply["pleach_generation"].as_str().unwrap()
}

fn cached(reply: &Value) -> u64 {
    reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_request_runs_on_the_sum_of_its_adapters() {
    let server = server().await;
    let (a, b) = (server.generation("a").await, server.generation("b").await);
    let wanted = json!([{"name": "b", "scale": 0.7}, {"name": "tiny:a"}]);
    let reply = composed(&server, wanted.clone()).await;
    // Ranks are side by side in an order that is not the request's, but always the same.
    assert_eq!(text(&reply), if a < b { "aabba" } else { "bbaab" });
    assert_eq!(reply["model"], BASE);
    let sum = generation(&reply).to_owned();
    assert_eq!(sum.len(), 64);
    assert!(sum != a && sum != b);
    let parts = json!([
        {"name": "b", "generation": b, "scale": 0.7},
        {"name": "a", "generation": a, "scale": 1.0},
    ]);
    assert_eq!(reply["pleach_adapters"], parts);

    // The same sum in another order, with a part that counts for nothing.
    let same = json!([{"name": "a"}, {"name": "c", "scale": 0}, {"name": "b", "scale": 0.7}]);
    let same = composed(&server, same).await;
    assert_eq!((generation(&same), text(&same)), (&*sum, text(&reply)));
    assert_eq!(same["pleach_adapters"].as_array().unwrap().len(), 3);
    for other in [
        json!([{"name": "a"}, {"name": "b", "scale": 0.71}]),
        json!([{"name": "a"}, {"name": "b", "scale": -0.7}]),
        json!([{"name": "a"}, {"name": "c", "scale": 0.7}]),
        json!([{"name": "a", "scale": 0.5}]),
    ] {
        assert_ne!(generation(&composed(&server, other.clone()).await), sum, "{other}");
    }

    let events = server.complete(json!({"adapters": wanted, "stream": true})).await.events();
    assert!(events.len() > 1);
    for event in &events {
        assert_eq!((generation(event), &event["pleach_adapters"]), (&*sum, &parts));
    }
    for stream in [false, true] {
        let chat = server.chat(json!({"adapters": wanted, "stream": stream})).await;
        let bodies = if stream { chat.events() } else { vec![chat.json()] };
        for body in &bodies {
            assert_eq!((generation(body), &body["pleach_adapters"]), (&*sum, &parts));
        }
    }
    // Where nothing is composed, nothing is said of it.
    let plain = server.complete(json!({"model": "a"})).await.json();
    assert!(plain.get("pleach_adapters").is_none(), "{plain}");
}

#[tokio::test]
async fn one_part_of_scale_one_is_that_adapter_and_nothing_is_the_base() {
    let server = server().await;
    let alone = composed(&server, json!([{"name": "a"}, {"name": "b", "scale": 0.0}])).await;
    assert_eq!(generation(&alone), server.generation("a").await);
    assert_eq!(text(&alone), "aaaaa");
    assert_eq!(alone["pleach_adapters"][1]["scale"], json!(0.0));
    let nothing =
        composed(&server, json!([{"name": "a", "scale": 0}, {"name": "b", "scale": -0.0}]));
    let nothing = nothing.await;
    assert_eq!((text(&nothing), &nothing["pleach_generation"]), ("-----", &Value::Null));
    assert_eq!(nothing["pleach_adapters"][0]["name"], "a");
}

#[tokio::test]
async fn prefixes_are_shared_by_equal_sums_alone() {
    let server = server().await;
    let prompt = "p".repeat(64);
    let ask = |adapters: Value| {
        let (server, prompt) = (&server, &prompt);
        async move {
            let mut body = json!({"prompt": prompt});
            if adapters.is_string() {
                body["model"] = adapters;
            } else {
                body["adapters"] = adapters;
            }
            let reply = server.complete(body).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            cached(&reply.json())
        }
    };
    let sum = json!([{"name": "a"}, {"name": "b", "scale": 0.5}]);
    for first in [
        json!("a"),
        json!("b"),
        sum.clone(),
        json!([{"name": "a"}, {"name": "b", "scale": 0.25}]),
        json!([{"name": "a"}, {"name": "b"}]),
    ] {
        assert_eq!(ask(first.clone()).await, 0, "{first}");
    }
    assert!(ask(sum).await >= 48);
    assert!(ask(json!([{"name": "b", "scale": 0.5}, {"name": "a"}])).await >= 48);
    assert!(ask(json!([{"name": "a"}])).await >= 48, "it is the adapter itself");
}

#[tokio::test]
async fn a_part_is_what_its_name_means_or_the_generation_that_is_named() {
    let server = server().await;
    let wanted = json!([{"name": "a"}, {"name": "b", "scale": 2}]);
    let before = composed(&server, wanted.clone()).await;
    let old = server.generation("a").await;
    put(&server, "a", "c").await;
    let after = composed(&server, wanted).await;
    assert_ne!(generation(&before), generation(&after));
    assert!(text(&after).contains('c') && !text(&after).contains('a'), "{after}");
    let pinned = json!([{"name": "a", "generation": old}, {"name": "b", "scale": 2}]);
    let pinned = composed(&server, pinned).await;
    assert_eq!((generation(&pinned), text(&pinned)), (generation(&before), text(&before)));
    let foreign = json!([{"name": "b", "generation": old}, {"name": "c"}]);
    let reply = server.complete(json!({"adapters": foreign})).await;
    assert_eq!(code(&reply), (409, "generation_conflict".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_a_part_is_refused_by_name() {
    let server = server().await;
    let nine: Vec<Value> = (0..9).map(|i| json!({"name": format!("x{i}")})).collect();
    for (adapters, status, code_, says) in [
        (json!([{"name": "nobody"}, {"name": "a"}]), 404, "adapter_not_found", "nobody"),
        (json!([{"name": "a"}, {"name": BASE}]), 400, "invalid_composition", "`tiny` is the base"),
        (
            json!([{"name": "a"}, {"name": "tiny:a"}]),
            400,
            "invalid_composition",
            "`tiny:a` is named twice",
        ),
        (json!(nine), 400, "invalid_composition", "9 adapters, at most 8"),
    ] {
        let reply = server.complete(json!({"adapters": adapters})).await;
        assert_eq!(code(&reply), (status, code_.to_owned()), "{adapters}");
        assert!(reply.text.contains(says), "{adapters}: {}", reply.text);
    }
    let bad = [
        (json!({"adapters": "a"}), "adapters"),
        (json!({"adapters": ["a"]}), "adapters[0]"),
        (json!({"adapters": [{"name": "a"}, {"scale": 1}]}), "adapters[1].name"),
        (json!({"adapters": [{"name": 1}]}), "adapters[0].name"),
        (json!({"adapters": [{"name": "a", "scale": "1"}]}), "adapters[0].scale"),
        (json!({"adapters": [{"name": "a", "scale": 100.5}]}), "adapters[0].scale"),
        (json!({"adapters": [{"name": "a", "scale": -1e39}]}), "adapters[0].scale"),
        (json!({"adapters": [{"name": "a", "weight": 1}]}), "adapters[0].weight"),
        (json!({"adapters": [{"name": "a", "generation": "ab"}]}), "adapters[0].generation"),
        (json!({"adapters": [{"name": "a"}], "model": "b"}), "model"),
        (
            json!({"adapters": [{"name": "a"}], "adapter_generation": "ab".repeat(32)}),
            "adapter_generation",
        ),
    ];
    for (body, param) in bad {
        for reply in [server.complete(body.clone()).await, server.chat(body.clone()).await] {
            assert_eq!(reply.status, 400, "{body}");
            assert_eq!(reply.json()["error"]["param"], param, "{body}");
        }
    }
    // What is null or empty is not there.
    let nulls = json!([{"name": "a", "scale": null, "generation": null}]);
    assert_eq!(text(&composed(&server, nulls).await), "aaaaa");
    for nothing in [json!(null), json!([])] {
        let reply = server.complete(json!({"adapters": nothing, "model": "b"})).await;
        assert_eq!(text(&reply.json()), "bbbbb", "{}", reply.text);
    }
}

/// A folder of one linear with other settings and tensors.
fn write(folder: &Path, config: &Value, tensors: &[(&str, Vec<usize>)]) {
    let values: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| vec![1.0_f32; shape.iter().product()])
        .map(|values| values.into_iter().flat_map(f32::to_le_bytes).collect())
        .collect();
    let views = tensors.iter().zip(&values).map(|((name, shape), bytes)| {
        let name = format!("base_model.model.model.layers.0.self_attn.q_proj.{name}");
        let dtype = safetensors::Dtype::F32;
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
}

#[tokio::test]
async fn what_cannot_be_summed_is_refused_by_name_and_serves_alone() {
    let server = server().await;
    let mut config = adapter_config();
    config["use_dora"] = json!(true);
    let factors = |rank| vec![("lora_A.weight", vec![rank, 32]), ("lora_B.weight", vec![32, rank])];
    let with_magnitudes = [factors(2), vec![("lora_magnitude_vector", vec![32])]].concat();
    write(&server.root.join("dora"), &config, &with_magnitudes);
    put(&server, "dora", "dora").await;
    let mut config = adapter_config();
    config["r"] = json!(256);
    for name in ["wide", "wider", "widest"] {
        config["lora_alpha"] = json!(name.len());
        write(&server.root.join(name), &config, &factors(256));
        put(&server, name, name).await;
    }
    for (names, message) in [
        (
            &["a", "dora"][..],
            "`dora`: model.layers.0.self_attn.q_proj: DoRA cannot be composed with other adapters",
        ),
        (
            &["wide", "wider", "widest"],
            "`wide` + `wider` + `widest`: model.layers.0.self_attn.q_proj: the ranks add up to 768, at most 512 can be composed",
        ),
    ] {
        let adapters: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        let reply = server.complete(json!({"adapters": adapters})).await;
        assert_eq!(code(&reply), (400, "invalid_composition".to_owned()));
        assert_eq!(reply.json()["error"]["message"], message);
        let card = server.get(&format!("/v1/adapters/{}", names[0])).await.json();
        assert_eq!(card["requests"], 0, "nobody got it: {card}");
    }
    composed(&server, json!([{"name": "dora"}])).await;
    composed(&server, json!([{"name": "wide"}, {"name": "widest", "scale": -1}])).await;
}

#[tokio::test]
async fn sums_are_counted_for_their_parts_and_measured_together() {
    let server = server().await;
    for scale in [0.5, 0.25] {
        composed(&server, json!([{"name": "a"}, {"name": "b", "scale": scale}])).await;
    }
    composed(&server, json!([{"name": "a"}, {"name": "c", "scale": 0}])).await;
    for (name, requests) in [("a", 3), ("b", 2), ("c", 0)] {
        let card = server.get(&format!("/v1/adapters/{name}")).await.json();
        assert_eq!(card["requests"], requests, "{name}");
    }
    let metrics = server.get("/metrics").await.text;
    for (label, count) in [(names::ADAPTER_COMPOSED, 2), ("a", 1)] {
        let line = format!("{}_count{{adapter=\"{label}\"}} {count}", names::ADAPTER_TTFT);
        assert!(metrics.contains(&line), "{line}");
    }
}

#[tokio::test]
async fn sums_that_nobody_wants_leave_memory() {
    let server = server().await;
    let generations = || server.state.adapters.tier_facts().stats.device_generations;
    let before = generations();
    for scale in 1..=100 {
        composed(&server, json!([{"name": "a"}, {"name": "b", "scale": scale}])).await;
    }
    server.idle().await;
    let kept = generations() - before;
    assert!((32..=65).contains(&kept), "{kept} sums are on the device");

    // With a part goes every sum of it.
    let last = composed(&server, json!([{"name": "b"}, {"name": "c"}])).await;
    let digest = generation(&last).parse().unwrap();
    assert_eq!(server.state.adapters.tier(digest), Tier::Device);
    let reply = server.delete("/v1/adapters/a").await;
    assert_eq!(reply.status, 200);
    server.idle().await;
    assert_eq!(server.state.adapters.tier(digest), Tier::Device);
    // `a` itself, too.
    assert_eq!(generations(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_leaves_at_once_does_not_spoil_the_next() {
    let server = server().await;
    let adapters = &server.state.adapters;
    for scale in 1..=50_u16 {
        let part =
            |name: &str, scale| WantedPart { name: name.to_owned(), scale, generation: None };
        let wanted = [part("a", 1.0), part("b", f32::from(scale))];
        let resolve = || adapters.resolve_parts(&Namespace::shared(), &wanted).unwrap().adapter;
        // Usually it is not there yet.
        drop(adapters.lease(&resolve().unwrap()).now_or_never());
        // Its load may find nobody who holds the parts, and that is remembered for a second.
        adapters.lease(&resolve().unwrap()).await.unwrap();
    }
}
