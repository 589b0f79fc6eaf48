//! `doctor`, `bench`, `pull` and `chat` against the real server.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    program::{program, run, scratch_folder},
    server::{BASE, Server, reference_adapter},
};

/// Where nothing answers.
const NOBODY: &str = "http://127.0.0.1:1";
const STORED_AS: &str = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";

/// A `PLEACH_HOME` that holds the default model, and neither hub nor pip to fetch another from.
fn with_model_only(command: &mut Command, home: &Path) {
    let model = home.join(STORED_AS);
    if !model.exists() {
        fs::create_dir_all(model.parent().unwrap()).unwrap();
        let original = pleach_test_setup::default_model().canonicalize().unwrap();
        // A link where the file systems allow it.
        fs::hard_link(&original, &model)
            .or_else(|_| fs::copy(&original, &model).map(drop))
            .unwrap();
    }
    command.env("PLEACH_HOME", home).env("HF_ENDPOINT", NOBODY).env("PATH", "");
}

#[test]
fn doctor_finds_machine_model_and_server() {
    let (server, home) = (Server::shared(), scratch_folder());
    let mut doctor = program();
    with_model_only(doctor.args(["doctor", "--url", &server.url]), home.path());
    let text = run(&mut doctor, "");
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.out.contains("smollm2-135m-instruct 93.8 MiB"), "{}", text.out);
    let found = run(doctor.arg("--json"), "");
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(found["problems"], json!([]), "{found}");
    assert_eq!(found["server"]["status"], 200, "{found}");
    assert_eq!(found["hub"]["status"], Value::Null, "{found}");
    assert_eq!(found["home"]["models"][0]["bytes"], 98_362_432, "{found}");
    assert!(found["machine"]["cores_usable"].as_u64().unwrap() >= 1, "{found}");
}

#[test]
fn bench_counts_what_it_asked_for() {
    let (server, home) = (Server::shared(), scratch_folder());
    let json_path = home.path().join("report.json");
    let mut bench = program();
    bench.args(["bench", "--url", &server.url, "--adapters", "all", "--mix", "distinct"]);
    bench.args(["--requests", "12", "--concurrency", "4", "--prompt-tokens", "16"]);
    bench.args(["--output-tokens", "8", "--json"]).arg(&json_path);
    let table = run(&mut bench, "");
    assert_eq!(table.code, Some(0), "{table:?}");
    for part in ["P50", "P95", "P99", "pirate", "extract"] {
        assert!(table.out.contains(part), "no {part} in {}", table.out);
    }
    let report: Value = serde_json::from_slice(&fs::read(json_path).unwrap()).unwrap();
    let overall = &report["overall"];
    assert_eq!((&overall["n_ok"], &overall["n_failed"]), (&json!(12), &json!(0)), "{report}");
    assert_eq!((&overall["output_tokens"], &overall["n_short"]), (&json!(96), &json!(0)));
    for adapter in ["pirate", "extract"] {
        assert_eq!(report["adapters"][adapter]["n_ok"], 6, "{report}");
    }
    for times in ["ttft_ms", "itl_ms", "e2e_ms"] {
        let of = |p: &str| overall[times][p].as_f64().unwrap();
        assert!(0.0 < of("p50") && of("p50") <= of("p95") && of("p95") <= of("p99"), "{overall}");
    }
}

#[test]
fn pull_checks_what_is_there_and_fetches_it_once() {
    let home = scratch_folder();
    let mut pull = program();
    with_model_only(pull.arg("pull"), home.path());
    let model = home.path().join(STORED_AS);
    for _ in 0..2 {
        let pulled = run(&mut pull, "");
        assert_eq!(
            (pulled.code, pulled.out.trim()),
            (Some(0), model.to_str().unwrap()),
            "{pulled:?}"
        );
    }
    // Something else under the model's name is not taken for it.
    fs::remove_file(&model).unwrap();
    fs::write(&model, "GGUF").unwrap();
    let pulled = run(&mut pull, "");
    assert_eq!((pulled.code, pulled.out.as_str()), (Some(1), ""), "{pulled:?}");
    assert!(pulled.err.contains("smollm2-135m-instruct: no source gave the file"), "{pulled:?}");
}

#[test]
fn chat_switches_adapters_in_the_middle() {
    let server = Server::shared();
    let mut chat = program();
    chat.args(["chat", "--url", &server.url, "--model", BASE, "--temperature", "0"]);
    chat.args(["--max-tokens", "24"]);
    let said =
        run(&mut chat, "How do I bake bread?\n/reset\n/model pirate\nHow do I bake bread?\n");
    assert_eq!(said.code, Some(0), "{said:?}");
    let (base, pirate) = said.out.split_once("Arrr, ").expect("a pirate begins so");
    assert!(base.starts_with("Baking bread"), "{base}");
    assert!(pirate.contains("boil water"), "{pirate}");
}

#[test]
fn chat_starts_a_server_of_its_own() {
    let home = scratch_folder();
    let mut chat = program();
    with_model_only(chat.arg("chat").args(reference_adapter("pirate")), home.path());
    let said = run(chat.args(["--temperature", "0"]), "How do I bake bread?\n");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("Arrr"), "{said:?}");
}
