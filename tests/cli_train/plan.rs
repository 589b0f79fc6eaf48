//! What `plan` says of memory and time, as a table and as JSON.

use serde_json::Value;

use crate::{Folder, pleach, succeed, texts};

fn plan(words: &[&str]) -> Value {
    let run = succeed(&[&["plan", "--seconds", "1", "--json"], words].concat());
    serde_json::from_str(&run.out).unwrap()
}

fn count(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {value}"))
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value}"))
}

#[test]
fn more_work_and_larger_adapters_take_more() {
    let made_up = ["--examples", "64", "--tokens", "64", "--batch-size", "4"];
    let small = plan(&[&made_up[..], &["--rank", "4"]].concat());
    let large = plan(&[&made_up[..], &["--rank", "64", "--epochs", "6"]].concat());
    assert_eq!((count(&small, "/steps"), count(&large, "/steps")), (48, 96));
    assert_eq!(count(&small, "/rows_of_an_epoch"), 64 * 63);
    for path in ["/memory/adapter_bytes", "/memory/saving_bytes", "/memory/n_parameters"] {
        assert_eq!(count(&large, path), 16 * count(&small, path), "{path}");
    }
    assert!(number(&large, "/memory/peak_bytes") > number(&small, "/memory/peak_bytes"));
    assert!(number(&large, "/time/total_s") > number(&small, "/time/total_s"));
    assert!(number(&small, "/time/timed_steps") >= 3.0);
    assert_eq!(small["memory"]["fits"], true);
    // A pair has two answers.
    let pairs = plan(&[&made_up[..], &["--method", "dpo"]].concat());
    assert_eq!(count(&pairs, "/rows_of_an_epoch"), 2 * 64 * 63);
}

#[test]
fn a_plan_is_compared_with_the_training_itself() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 40));
    let valid = folder.rows("valid.jsonl", texts(100, 10));
    let words = ["--data", &data, "--validation", &valid, "--rank", "4", "--compare"];
    let compared = plan(&words);
    assert!(number(&compared, "/compared/seconds") > 0.0);
    let error = number(&compared, "/compared/peak_error");
    assert!((-0.5..1.0).contains(&error), "the plan of memory is off by {error}");
    assert!(number(&compared, "/time/validation_s") > 0.0);
    let run = succeed(&[&["plan", "--seconds", "1"], &words[..]].concat());
    for part in ["memory      ", "time        ", "compared    it took ", ": it fits"] {
        assert!(run.out.contains(part), "{}", run.out);
    }
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 12));
    let cases: [(&[&str], i32, &str); 5] = [
        (&[], 2, "--data"),
        (&["--examples", "4"], 2, "--tokens"),
        (&["--data", &data, "--examples", "4", "--tokens", "9"], 2, "--examples"),
        (&["--examples", "4", "--tokens", "2000"], 1, "the context is "),
        (&["--examples", "4", "--tokens", "9", "--compare"], 1, "--compare needs --data"),
    ];
    for (words, code, says) in cases {
        let run = pleach(&[&["plan"], words].concat());
        assert_eq!(run.code, Some(code), "{words:?}: {}\n{}", run.out, run.err);
        assert!(run.err.contains(says), "{words:?}: {}", run.err);
    }
}
