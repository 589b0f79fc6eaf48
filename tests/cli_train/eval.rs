//! What `eval` measures, and whom the gate lets pass.

use serde_json::{Value, json};

use crate::{Folder, pleach, succeed, texts};

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value}"))
}

#[test]
fn a_trained_adapter_is_better_than_the_base_and_the_gate_says_so() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 60));
    let held_out = folder.rows("held_out.jsonl", texts(200, 40));
    let (good, weak) = (folder.word("good"), folder.word("weak"));
    let train = |out: &str, epochs: &str| {
        succeed(&["train", "--data", &data, "--out", out, "--rank", "4", "--epochs", epochs, "-q"])
    };
    let digest = train(&good, "6").out.trim().to_owned();
    train(&weak, "1");

    let eval = |words: &[&str]| -> Value {
        let run = succeed(&[&["eval", "--data", &held_out, "--json"], words].concat());
        serde_json::from_str(&run.out).unwrap()
    };
    let found = eval(&["--adapter", &good, "--adapter", &weak]);
    assert_eq!((&found["rows"], &found["groups"]), (&json!(40), &json!(20)));
    assert_eq!(found["baseline"], "base");
    let names: Vec<_> =
        found["subjects"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, [json!("base"), json!(good), json!(weak)]);
    assert_eq!(found["subjects"][1]["generation"], digest);
    let loss = |index: usize| number(&found, &format!("/subjects/{index}/loss"));
    assert!(loss(1) < loss(2) && loss(2) < loss(0), "{found}");
    for index in 0..3 {
        let perplexity = number(&found, &format!("/subjects/{index}/perplexity"));
        assert!((perplexity - loss(index).exp()).abs() < 1e-6 * perplexity);
    }
    assert!(number(&found, "/subjects/1/accuracy") > number(&found, "/subjects/0/accuracy"));
    assert!(number(&found, "/subjects/1/difference/score/low") > 0.0, "{found}");
    assert!(number(&found, "/subjects/1/difference/p_value") < 0.001);
    assert!(found["subjects"][0].get("difference").is_none());

    // A baseline that is an adapter; turned round, the difference is its negative.
    let difference = |words: &[&str]| number(&eval(words), "/subjects/2/difference/score/mean");
    let forth = difference(&["--baseline", &weak, "--adapter", &good]);
    let back = difference(&["--baseline", &good, "--adapter", &weak]);
    assert!(forth > 0.0 && (forth + back).abs() < 1e-12, "{forth} {back}");

    let gated = eval(&["--baseline", &weak, "--adapter", &good, "--gate", "--anchors", &held_out]);
    assert_eq!(gated["subjects"][2]["gate"]["passed"], true, "{gated}");
    assert!(gated["subjects"][1].get("gate").is_none(), "the baseline is not judged");
    let refused =
        pleach(&["eval", "--data", &held_out, "--baseline", &good, "--adapter", &weak, "--gate"]);
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(
        refused.err.contains("the gate refuses") && refused.err.contains(&weak),
        "{}",
        refused.err
    );
    assert!(refused.out.contains("FAIL gain_over_current"), "{}", refused.out);
    let settings = folder.rows("settings.json", [json!({"margin": 50.0})]);
    let words =
        ["eval", "--data", &held_out, "--adapter", &good, "--gate", "--gate-settings", &settings];
    assert!(pleach(&words).err.contains("the gate refuses"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 12));
    let labels = folder.rows("labels.jsonl", [json!({"text": "a", "label": "b"})]);
    let settings = folder.rows("settings.json", [json!({"alpha": 2.0})]);
    let unknown = folder.rows("unknown.json", [json!({"alfa": 0.05})]);
    let none = folder.word("none");
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--data", &none], 1, "--data"),
        (&["--data", &labels], 1, "no method learns from such rows"),
        (&["--data", &data, "--adapter", &none], 1, "--adapter"),
        (&["--data", &data, "--baseline", &none], 1, "--baseline"),
        (&["--data", &data, "--gate"], 2, "--adapter"),
        (
            &["--data", &data, "--adapter", &none, "--gate", "--gate-settings", &settings],
            1,
            "alpha",
        ),
        (&["--data", &data, "--adapter", &none, "--gate", "--gate-settings", &unknown], 1, "alfa"),
    ];
    for (words, code, says) in cases {
        let run = pleach(&[&["eval"], words].concat());
        assert_eq!(run.code, Some(code), "{words:?}: {}\n{}", run.out, run.err);
        assert!(run.err.contains(says), "{words:?}: {}", run.err);
    }
    // The base alone is a measure, too.
    let run = succeed(&["eval", "--data", &data]);
    assert!(run.out.contains("12 rows in ") && run.out.contains("\nbase"), "{}", run.out);
}
