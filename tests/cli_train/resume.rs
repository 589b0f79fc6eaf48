//! A training that was stopped, or killed, goes on to the same bytes.
#![cfg(unix)]

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use crate::{Folder, command, pleach, succeed, texts};

/// Long enough to be stopped in its middle: a step takes about a millisecond.
fn words<'a>(data: &'a str, valid: &'a str, out: &'a str) -> Vec<&'a str> {
    vec![
        "train",
        "--data",
        data,
        "--validation",
        valid,
        "--out",
        out,
        "--epochs",
        "60",
        "--batch-size",
        "1",
        "--rank",
        "4",
        "--seed",
        "3",
        "--patience",
        "1000",
    ]
}

/// Runs until the training has made some steps, then sends a signal; the exit status and what was said.
fn stop(words: &[&str], signal: &str) -> (Option<i32>, String) {
    let mut child = command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.starts_with("step ") && !line.contains("     1/"));
    assert!(seen.is_some(), "it ended before it made steps");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), rest.join("\n") + &String::from_utf8(output.stderr).unwrap())
}

fn files(folder: &Folder, out: &str) -> Vec<Vec<u8>> {
    ["adapter_model.safetensors", "adapter_config.json", "results.csv", "loss.svg"]
        .map(|file| std::fs::read(folder.path(out).join(file)).unwrap())
        .to_vec()
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    let data = folder.rows("rows.jsonl", texts(0, 40));
    let valid = folder.rows("valid.jsonl", texts(100, 10));
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.word(name));
    succeed(&words(&data, &valid, &whole));

    let (code, said) = stop(&words(&data, &valid, &stopped), "-INT");
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("pleach train --resume --out"), "{said}");
    assert!(!folder.path("stopped/adapter_config.json").exists(), "it is no adapter yet");
    let again = pleach(&words(&data, &valid, &stopped));
    assert!(again.err.contains("--resume goes on with it"), "{}", again.err);
    // Other rows in the same file.
    let kept = std::fs::read(&data).unwrap();
    folder.rows("rows.jsonl", texts(1, 40));
    let other = pleach(&["train", "--resume", "--out", &stopped]);
    assert!(other.err.contains("is not what it was when the training began"), "{}", other.err);
    std::fs::write(&data, kept).unwrap();
    // Another number of threads changes nothing.
    let run = succeed(&["train", "--resume", "--out", &stopped, "--threads", "1"]);
    assert!(run.out.contains("going on after step "), "{}", run.out);
    assert_eq!(files(&folder, "stopped"), files(&folder, "whole"));
    assert!(!folder.path("stopped/.training").exists());
    let done = pleach(&["train", "--resume", "--out", &stopped]);
    assert!(done.err.contains("no training was stopped there"), "{}", done.err);

    let killed = folder.word("killed");
    let (code, _) = stop(&words(&data, &valid, &killed), "-KILL");
    assert_eq!(code, None);
    succeed(&["train", "--resume", "--out", &killed]);
    assert_eq!(files(&folder, "killed"), files(&folder, "whole"));
}
