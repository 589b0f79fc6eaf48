//! The real binary's `export` and `verify`: what a user types and what is refused, on a tiny model.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What a run of a program gave.
struct Run {
    is_ok: bool,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Run {
    command.env_remove("PLEACH_LOG").env_remove("PLEACH_MODEL").env_remove("ORT_DYLIB_PATH");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { is_ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

fn pleach(words: &[&str]) -> Run {
    run(Command::new(env!("CARGO_BIN_EXE_pleach")).args(words))
}

fn fixture(path: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(path).display().to_string()
}

fn out(dir: &tempfile::TempDir) -> String {
    dir.path().join("out").display().to_string()
}

#[test]
fn a_model_and_an_adapter_are_exported_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (to, model) = (out(&dir), fixture("models/llama-plain.gguf"));
    let adapter = format!("patterns={}", fixture("models/lora/llama-plain/r8-patterns"));
    let words = ["export", "onnx", "--model", &model, "--adapter", &adapter, "--out", &to];
    let exported = pleach(&[&words[..], &["--precision", "int8"]].concat());
    assert!(exported.is_ok, "{}", exported.err);
    for part in ["as genai int8", "Q8_0 -> int8 by 32: exact", "adapters/patterns.onnx_adapter"] {
        assert!(exported.out.contains(part), "{part}: {}", exported.out);
    }
    let library = pleach_test_setup::onnx().library;
    let (library, json) = (library.display().to_string(), dir.path().join("report.json"));
    let words = ["verify", "onnx", &to, "--onnxruntime", &library, "--json"];
    let few = ["--steps", "5", "--prompt-tokens", "16", "--batch", "2", "--threads", "1"];
    let verified = pleach(&[&words[..], &[json.to_str().unwrap()], &few[..]].concat());
    // Whether a random model is within the limits of a real one is not the question here.
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json).unwrap_or_else(|_| panic!("{}", verified.err)))
            .unwrap();
    assert_eq!(verified.is_ok, report["passed"].as_bool().unwrap(), "{}", verified.err);
    assert_eq!(report["checks"].as_array().unwrap().len(), 2 * 6, "{report:#}");
    assert_eq!(report["latencies"].as_array().unwrap().len(), 2 * 2 * 4, "{report:#}");
    assert!(verified.out.contains("patterns") && verified.out.contains("P99"), "{}", verified.out);
}

#[test]
fn a_disk_that_is_full_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("models/llama-plain.gguf");
    // A limit of the size of files fails a write as a full disk does. The signal that comes with it is ignored.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" export onnx --precision f32 --model \"$1\" --out \"$2\"";
    let run = run(Command::new("sh").args([
        "-c",
        script,
        env!("CARGO_BIN_EXE_pleach"),
        &model,
        &out(&dir),
    ]));
    assert!(!run.is_ok, "{}", run.out);
    assert!(run.err.contains("cannot write") && run.err.contains("model.onnx.data"), "{}", run.err);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{}", run.err);
}

#[test]
fn what_is_refused_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (to, model) = (out(&dir), fixture("models/llama-plain.gguf"));
    let base = ["export", "onnx", "--model", &model, "--out", &to];
    for (words, message) in [
        (vec!["--lora", "merged:pirate"], "no adapter is called \"pirate\""),
        (vec!["--adapter", "a=/nowhere"], "cannot load adapter \"a\" from /nowhere"),
        (vec!["--lora", "some"], "one of inputs, merged:NAME, none"),
        (vec!["--adapter", "a"], "a name and a folder"),
    ] {
        let run = pleach(&[&base[..], &words[..]].concat());
        assert!(!run.is_ok && run.err.contains(message), "{words:?}: {}", run.err);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{words:?} left something");
    }
}

/// A library that says that it is of this version, and can do nothing.
fn library(dir: &Path, version: &str) -> PathBuf {
    let (source, library) = (dir.join("old.c"), dir.join("libonnxruntime.so"));
    let text = format!(
        "struct Base {{ const void *(*api)(unsigned); const char *(*version)(void); }};\n\
         static const void *api(unsigned wanted) {{ (void)wanted; return 0; }}\n\
         static const char *version(void) {{ return \"{version}\"; }}\n\
         static const struct Base base = {{ api, version }};\n\
         const struct Base *OrtGetApiBase(void) {{ return &base; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let built = run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source));
    assert!(built.is_ok, "{}", built.err);
    library
}

#[test]
fn a_missing_or_old_library_is_named_with_the_step_that_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let (to, model) = (out(&dir), fixture("models/qwen2.gguf"));
    assert!(pleach(&["export", "onnx", "--model", &model, "--out", &to]).is_ok);
    let verify = |library: Option<&Path>| {
        let library = library.map(|path| path.display().to_string());
        let flag = library.iter().flat_map(|path| ["--onnxruntime", path]);
        pleach(&["verify", "onnx", &to].into_iter().chain(flag).collect::<Vec<_>>())
    };
    let none = verify(None);
    assert!(
        !none.is_ok
            && none.err.contains("no ONNX Runtime library is named: tools/fetch-onnxruntime"),
        "{}",
        none.err
    );
    let missing = verify(Some(&dir.path().join("none.so")));
    assert!(
        !missing.is_ok && missing.err.contains("there is no ONNX Runtime library at"),
        "{}",
        missing.err
    );
    let old = verify(Some(&library(dir.path(), "1.19.2")));
    assert!(
        !old.is_ok && old.err.contains("is too old: version 1.19.2, 1.24 or later is needed"),
        "{}",
        old.err
    );
    let other = verify(Some(&dir.path().join("old.c")));
    assert!(!other.is_ok && other.err.contains("cannot be used"), "{}", other.err);
}
