//! What a training leaves, from where it begins, and what is refused.

use pleach_adapters::peft::{PeftFiles, Shapes};
use serde_json::{Value, json};

use crate::{Folder, pleach, read_json, succeed, texts};

const SETTINGS: [&str; 6] = ["--rank", "4", "--batch-size", "4", "--seed", "7"];

/// The generation of a folder.
fn generation(dir: &std::path::Path) -> String {
    let files = PeftFiles::read(dir, 1 << 24).unwrap();
    let mut shapes = Shapes::default();
    shapes.learn(&files).unwrap();
    files.load(&shapes.spec()).unwrap().digest.to_string()
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_training_leaves_an_adapter_results_a_picture_and_a_report() {
    let folder = Folder::new();
    let (data, out) = (folder.rows("rows.jsonl", texts(0, 60)), folder.word("new/out"));
    let words = [&["train", "--data", &data, "--out", &out, "--suffix", "cats"], &SETTINGS[..]];
    let run = succeed(&words.concat());
    let path = folder.path("new/out");
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "report.json",
        "results.csv",
    ];
    assert_eq!(names(&path), files);
    let digest = generation(&path);
    assert!(run.out.contains(&format!("generation {digest}\n")), "{}", run.out);
    assert!(
        run.out.contains("data        60 rows, ") && run.out.contains("step     45/45"),
        "{}",
        run.out
    );
    assert!(run.out.contains("--adapter cats="), "{}", run.out);

    let csv = std::fs::read_to_string(path.join("results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 45);
    let svg = std::fs::read_to_string(path.join("loss.svg")).unwrap();
    assert!(
        svg.starts_with("<?xml") && svg.contains("llama-plain:cats") && svg.ends_with("</svg>\n")
    );
    let report = read_json(&path.join("report.json"));
    assert_eq!(report["generation"], digest);
    assert_eq!((&report["steps"], &report["method"]), (&json!(45), &json!("supervised")));
    assert_eq!(report["settings"]["lora_rank"], 4);
    assert_eq!((&report["parent"], &report["stopped_early"]), (&Value::Null, &json!(false)));
    assert_eq!(report["data"]["report"]["rows"], 60);
    let loss = |when: &str| report["loss"][when].as_f64().unwrap();
    assert!(loss("last") < 0.9 * loss("first"), "{}", report["loss"]);
    let planned = &report["memory"]["planned"];
    assert!(planned["n_parameters"].as_u64().unwrap() > 1000);

    // The same seed, on another number of threads: the same bytes. Another seed: others.
    let trained = |out: &str, more: &[&str]| {
        let out = folder.word(out);
        let words =
            ["train", "--data", &data, "--out", &out, "--rank", "4", "--batch-size", "4", "-q"];
        succeed(&[&words, more].concat()).out.trim().to_owned()
    };
    assert_eq!(trained("again", &["--seed", "7", "--threads", "1"]), digest);
    assert_ne!(trained("other", &["--seed", "8"]), digest);

    // Going on from it.
    let (on, parent) = (folder.word("on"), folder.word("new/out"));
    succeed(&["train", "--data", &data, "--out", &on, "--adapter", &parent, "--epochs", "1", "-q"]);
    let next = read_json(&folder.path("on/report.json"));
    assert_eq!((&next["parent"], &next["settings"]["lora_rank"]), (&json!(digest), &json!(4)));
    let first = next["loss"]["first"].as_f64().unwrap();
    assert!((first - loss("last")).abs() < 0.3 * (loss("first") - loss("last")), "{first}");
}

#[test]
fn what_is_best_on_validation_rows_is_kept() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 24));
    // Of another kind: what is learned does not help there for long.
    let others = (0..12u32).map(|n| json!({"text": format!("Zq{}! xx{n} Vw{}", n * 7919, n * 31)}));
    let (valid, out) = (folder.rows("valid.jsonl", others), folder.word("out"));
    let run = succeed(&[
        "train",
        "--data",
        &data,
        "--validation",
        &valid,
        "--out",
        &out,
        "--epochs",
        "40",
        "--patience",
        "2",
        "--learning-rate-multiplier",
        "20",
        "--rank",
        "4",
        "--validate-every",
        "4",
    ]);
    let report = read_json(&folder.path("out/report.json"));
    assert_eq!(report["stopped_early"], true, "{}", run.out);
    assert!(report["steps"].as_u64() < report["steps_planned"].as_u64());
    let points = report["validation"].as_array().unwrap();
    let loss = |point: &Value| point["loss"].as_f64().unwrap();
    let (best, last) = (&report["best"], points.last().unwrap());
    assert!(points.iter().all(|point| loss(point) > loss(best) - 0.001), "{points:?}");
    assert!(best["step"].as_u64() < last["step"].as_u64() && loss(best) < loss(last));
    assert!(
        run.out.contains("best so far, kept") && run.out.contains("stopped early"),
        "{}",
        run.out
    );
    assert!(std::fs::read_to_string(folder.path("out/loss.svg")).unwrap().contains("<circle"));
    // What was written is the best one, not the last: measured again, it has the best one's loss.
    let measured = succeed(&["eval", "--data", &valid, "--adapter", &out, "--json"]);
    let measured: Value = serde_json::from_str(&measured.out).unwrap();
    let found = measured["subjects"][1]["loss"].as_f64().unwrap();
    // Stored in f16.
    assert!((found - loss(best)).abs() < 0.01, "{found} {best}");
}

#[test]
fn preferences_and_thumbs_are_told_by_their_rows() {
    let folder = Folder::new();
    let question = |n: u32| format!("{n} {}", texts(n, 1).next().unwrap()["text"]);
    let pair = |n: u32| json!({"prompt": question(n), "chosen": format!("yes {n}"), "rejected": "no, not so"});
    let thumb = |n: u32| {
        let answer = if n.is_multiple_of(2) { "yes, so it is" } else { "no, not so" };
        json!({"prompt": question(n), "completion": answer, "label": n.is_multiple_of(2)})
    };
    for (rows, method) in
        [((0..24).map(pair).collect::<Vec<_>>(), "dpo"), ((0..24).map(thumb).collect(), "kto")]
    {
        let (data, out) = (folder.rows(&format!("{method}.jsonl"), rows), folder.word(method));
        let words = [
            "train",
            "--data",
            &data,
            "--out",
            &out,
            "--rank",
            "4",
            "--batch-size",
            "4",
            "--epochs",
            "8",
        ];
        succeed(&[&words[..], &["--learning-rate-multiplier", "10", "-q"]].concat());
        let report = read_json(&folder.path(method).join("report.json"));
        assert_eq!(report["method"], method);
        assert_eq!(report["settings"]["beta"], 0.1);
        let loss = |when: &str| report["loss"][when].as_f64().unwrap();
        assert!(loss("last") < 0.8 * loss("first"), "{method}: {}", report["loss"]);
        let measured = succeed(&["eval", "--data", &data, "--adapter", &out, "--json"]);
        let measured: Value = serde_json::from_str(&measured.out).unwrap();
        let adapter = &measured["subjects"][1];
        assert!(adapter["difference"]["score"]["mean"].as_f64().unwrap() > 0.0, "{measured}");
        if method == "dpo" {
            assert!(adapter["pairs_right"].as_f64().unwrap() > 0.9, "{measured}");
        } else {
            assert_eq!(adapter.get("pairs_right"), None);
        }
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_name_and_nothing_is_left() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 30));
    let few = folder.rows("few.jsonl", texts(0, 3));
    let bad = folder.rows("bad.jsonl", [json!({"text": "a"}), json!({"text": 7})]);
    let labels = folder.rows("labels.jsonl", [json!({"text": "a", "label": "b"})]);
    let used = folder.word("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(folder.path("used/file"), b"").unwrap();
    let dora = pleach_test_setup::fixtures().join("models/kinds/llama-plain/dora-r8");
    let dora = dora.display().to_string();
    let (out, none) = (folder.word("out"), folder.word("none"));
    let cases: [(&[&str], i32, &str); 13] = [
        (&["--data", &none], 1, "--data"),
        (&["--data", &few], 1, "rows: "),
        (&["--data", &bad], 1, "line 2: text: expected a string, found a number"),
        (&["--data", &labels], 1, "no method learns from such rows"),
        (
            &["--data", &data, "--method", "dpo"],
            1,
            "line 1: the method dpo cannot learn from such rows",
        ),
        (&["--data", &data, "--validation", &none], 1, "--validation"),
        (&["--data", &data, "--beta", "0.2"], 1, "--beta is a setting of dpo and kto"),
        (&["--data", &data, "--adapter", &none], 1, "--adapter"),
        (&["--data", &data, "--adapter", &dora], 1, "DoRA cannot be trained"),
        (&["--data", &data, "--rank", "300"], 2, "--rank"),
        (&["--data", &data, "--learning-rate-multiplier=-1"], 2, "--learning-rate-multiplier"),
        (&["--data", &data, "--resume"], 2, "--resume"),
        (&["--resume"], 1, "no training was stopped there"),
    ];
    for (words, code, says) in cases {
        let run = pleach(&[&["train", "--out", &out], words].concat());
        assert_eq!(run.code, Some(code), "{words:?}: {}\n{}", run.out, run.err);
        assert!(run.err.contains(says), "{words:?}: {}", run.err);
        assert!(!folder.path("out").exists(), "{words:?} left something");
    }
    let run = pleach(&["train", "--data", &data, "--out", &used]);
    assert!(run.code == Some(1) && run.err.contains("the folder is not empty"), "{}", run.err);
    assert_eq!(names(&folder.path("used")), ["file"]);
}
