//! Model cards, metrics and latency percentiles.

use pleach::telemetry::names;
use serde_json::{Value, json};

use crate::support::{BASE, CONTEXT, says};

#[tokio::test]
async fn models_list_bases_and_adapters_with_their_parent() {
    let server = says("x").await;
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let cards = list["data"].as_array().unwrap();
    let ids: Vec<_> = cards.iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [BASE, "tiny/two", "extract", "pirate"]);
    assert_eq!((&cards[0]["parent"], &cards[0]["max_model_len"]), (&Value::Null, &json!(CONTEXT)));
    assert_eq!((&cards[3]["parent"], &cards[3]["max_model_len"]), (&json!(BASE), &Value::Null));
    assert_eq!((&cards[3]["root"], &cards[3]["object"]), (&json!("pirate"), &json!("model")));
    assert_eq!(cards[3]["pleach_generation"], "aa".repeat(32));
    for (path, id) in [
        ("/v1/models/tiny", "tiny"),
        ("/v1/models/tiny/two", "tiny/two"),
        ("/v1/models/tiny%2Ftwo", "tiny/two"),
        ("/v1/models/pirate", "pirate"),
        ("/v1/models/tiny:pirate", "pirate"),
    ] {
        assert_eq!(server.get(path).await.json()["id"], id, "{path}");
    }
}

#[tokio::test]
async fn probes() {
    let server = says("x").await;
    assert_eq!(server.get("/health").await.json(), json!({"status": "ok"}));
    assert_eq!(server.get("/ping").await.status, 200);
    assert_eq!(server.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

/// The value of the one series that begins with `series`.
fn value(metrics: &str, series: &str) -> f64 {
    let mut lines = metrics.lines().filter(|line| line.starts_with(series));
    let line = lines.next().unwrap_or_else(|| panic!("no {series} in {metrics}"));
    assert_eq!(lines.next(), None, "{series} is there twice");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn metrics_have_vllms_names_and_count() {
    let server = says("hello").await;
    server.chat(json!({"model": "pirate"})).await;
    server.chat(json!({"stream": true})).await;
    server.complete(json!({"max_tokens": 2})).await;
    server.chat(json!({"n": "x"})).await;
    server.get("/random/path/1").await;
    server.idle().await;
    let reply = server.get("/metrics").await;
    assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = reply.text;
    for name in [
        names::TTFT,
        names::ITL,
        names::TPOT,
        names::E2E,
        names::QUEUE_TIME,
        names::PREFILL_TIME,
        names::DECODE_TIME,
        names::INFERENCE_TIME,
        names::REQUEST_PROMPT_TOKENS,
        names::REQUEST_GENERATION_TOKENS,
    ] {
        let count = value(&text, &format!("{name}_count{{engine=\"0\",model_name=\"tiny\"}}"));
        // Five tokens of "hello" and the end token, twice; two tokens once.
        assert_eq!(count, if name == names::ITL { 11.0 } else { 3.0 }, "{name}");
    }
    let labels = "{engine=\"0\",model_name=\"tiny\"}";
    for (series, expected) in [
        (format!("{}{labels}", names::RUNNING), 0.0),
        (format!("{}{labels}", names::WAITING), 0.0),
        (format!("{}{labels}", names::KV_USAGE), 0.0),
        (format!("{}{labels}", names::GENERATION_TOKENS), 14.0),
        (format!("{}{labels}", names::PREEMPTIONS), 0.0),
        (
            format!(
                "{}{{engine=\"0\",finished_reason=\"stop\",model_name=\"tiny\"}}",
                names::REQUEST_SUCCESS
            ),
            2.0,
        ),
        (
            format!(
                "{}{{engine=\"0\",finished_reason=\"length\",model_name=\"tiny\"}}",
                names::REQUEST_SUCCESS
            ),
            1.0,
        ),
        (format!("{}{{code=\"invalid_type\"}}", names::ERRORS), 1.0),
        (format!("{}{{path=\"/v1/chat/completions\",status=\"200\"}}", names::HTTP_RESPONSES), 2.0),
        (format!("{}{{path=\"(unmatched)\",status=\"404\"}}", names::HTTP_RESPONSES), 1.0),
        (format!("{}_count{{adapter=\"pirate\"}}", names::ADAPTER_TTFT), 1.0),
        (format!("{}_count{{adapter=\"(plain base)\"}}", names::ADAPTER_TTFT), 2.0),
        (names::ADAPTERS.to_owned() + " ", 2.0),
    ] {
        assert_eq!(value(&text, &series), expected, "{series}");
    }
    for name in [
        names::PROMPT_TOKENS,
        names::PREFIX_QUERIES,
        names::PREFIX_HITS,
        names::STEPS,
        names::STEP_SECONDS,
        names::TRAINING_SECONDS,
        names::TRAINING_ITL_BUDGET,
        names::UNDISTURBED_ITL,
        names::BUILD_INFO,
    ] {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
    }
    assert!(text.contains(&format!(
        "{}{{block_size=\"16\",enable_prefix_caching=\"True\"",
        names::CACHE_CONFIG
    )));
    // Counters stay what they are, and there is one series of adapters, however often somebody looks.
    let again = server.get("/metrics").await.text;
    assert_eq!(value(&again, &format!("{}{labels}", names::GENERATION_TOKENS)), 14.0);
    let lora = format!(
        "{}{{max_lora=\"1024\",running_lora_adapters=\"extract,pirate\",waiting_lora_adapters=\"\"}}",
        names::LORA_INFO
    );
    assert!(value(&again, &lora) > 1.6e9);
    assert_eq!(again.lines().filter(|line| line.starts_with(names::LORA_INFO)).count(), 1);
}

#[tokio::test]
async fn latency_percentiles_are_told_by_adapter_and_window() {
    let server = says("hello").await;
    let empty = server.get("/v1/latency").await.json();
    assert_eq!(
        empty["overall"]["last_minute"]["ttft"],
        json!({
            "count": 0, "mean": null, "p50": null, "p95": null, "p99": null, "max": null
        })
    );
    server.script.lock().unwrap().step = std::time::Duration::from_millis(4);
    server.chat(json!({"model": "pirate"})).await;
    server.chat(json!({})).await;
    server.chat(json!({})).await;
    let report = server.get("/v1/latency").await.json();
    assert_eq!((&report["object"], &report["unit"]), (&json!("pleach.latency"), &json!("ms")));
    for (who, n_sequences) in
        [(&report["overall"], 3), (&report["base"], 2), (&report["adapters"]["pirate"], 1)]
    {
        for window in ["last_minute", "last_hour", "since_start"] {
            let metrics = &who[window];
            for metric in ["queue", "ttft", "e2e"] {
                assert_eq!(metrics[metric]["count"], n_sequences, "{window} {metric}");
            }
            assert_eq!(metrics["itl"]["count"], 5 * n_sequences);
            let at = |metric: &str, statistic: &str| metrics[metric][statistic].as_f64().unwrap();
            for metric in ["queue", "ttft", "itl", "e2e"] {
                assert!(
                    at(metric, "p50") <= at(metric, "p95")
                        && at(metric, "p95") <= at(metric, "p99")
                );
                assert!(at(metric, "p99") <= at(metric, "max") * 1.01);
            }
            assert!(at("itl", "p50") >= 3.9, "a step takes 4 ms: {metrics}");
            assert!(at("e2e", "p50") >= 5.0 * 3.9);
        }
    }
    assert_eq!(report["adapters"].as_object().unwrap().len(), 1, "only adapters that were used");
}
