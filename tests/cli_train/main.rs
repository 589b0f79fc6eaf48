//! The real binary's `train`, `plan` and `eval` on a tiny model. No network.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod eval;
mod plan;
mod resume;
mod train;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

/// What a run of the binary gave.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn model() -> PathBuf {
    pleach_test_setup::fixtures().join("models/llama-plain.gguf")
}

/// The binary with these words; the model is the tiny one.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(words).env_remove("PLEACH_LOG").env("PLEACH_MODEL", model());
    command
}

pub(crate) fn pleach(words: &[&str]) -> Run {
    let output = command(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A run that must succeed.
pub(crate) fn succeed(words: &[&str]) -> Run {
    let run = pleach(words);
    assert_eq!(run.code, Some(0), "{words:?}: {}\n{}", run.out, run.err);
    run
}

/// A folder for a test, and paths in it as words.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes rows, a line each; the path as a word.
    pub(crate) fn rows(&self, name: &str, rows: impl IntoIterator<Item = Value>) -> String {
        let lines: String = rows.into_iter().map(|row| row.to_string() + "\n").collect();
        std::fs::write(self.path(name), lines).unwrap();
        self.word(name)
    }
}

const WORDS: [&str; 32] = [
    "cats", "sat", "on", "mats", "while", "dogs", "ran", "past", "seven", "old", "ships", "sailed",
    "home", "before", "rain", "fell", "over", "green", "hills", "and", "birds", "sang", "loud",
    "songs", "of", "spring", "to", "every", "child", "who", "came", "by",
];

/// Texts of a few words in an order of their own, so that none nearly repeats another; two of each user.
pub(crate) fn texts(from: u32, n: u32) -> impl Iterator<Item = Value> {
    (from..from + n).map(|n| {
        let mut random = n.wrapping_mul(2_654_435_761).wrapping_add(97);
        let words: Vec<&str> = (0..14)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                WORDS[(random >> 27) as usize]
            })
            .collect();
        json!({"text": words.join(" "), "user": format!("u{}", n / 2)})
    })
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
