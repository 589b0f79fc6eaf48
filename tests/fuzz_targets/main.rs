//! What fuzzing is given (`fuzz/`), without a fuzzer: every target takes its seeds, and mutations of them from a generator
//! of our own, and nothing panics. Each seed comes from a real form of its input or once broke something.
//!
//! `PLEACH_TEST_CASES` multiplies the mutations.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod mutations;
#[expect(unreachable_pub, reason = "as above")]
#[path = "../../fuzz/src/request.rs"]
mod request;
#[expect(unreachable_pub, reason = "of the package for libFuzzer, where they are public")]
#[expect(clippy::expect_used, reason = "as there")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::Path};

use mutations::Mutations;
use targets::{adapter, chat_template, gguf, training_rows};

/// Takes any bytes, and says whether they became anything.
type Target = fn(&[u8]) -> bool;

/// By the names of their folders of seeds.
const TARGETS: [(&str, Target); 5] = [
    ("adapter", adapter::run),
    ("chat_template", chat_template::run),
    ("gguf", gguf::run),
    ("request", request::run),
    ("training_rows", training_rows::run),
];
const N_MUTATIONS: usize = 10_000;

/// Contents of a target's seeds, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        .collect();
    seeds.sort_unstable();
    seeds
}

fn run(name: &str, target: Target) {
    let seeds = seeds(name);
    for (seed, bytes) in &seeds {
        // Those that are meant to be refused say so.
        assert_eq!(target(bytes), !seed.starts_with("refused"), "{name}/{seed}");
    }
    let cases = std::env::var("PLEACH_TEST_CASES").ok().and_then(|text| text.parse().ok());
    let bytes = seeds.into_iter().map(|(_, bytes)| bytes).collect();
    let mut mutations = Mutations::new(bytes);
    let mut n_taken = 0;
    for _ in 0..N_MUTATIONS * cases.unwrap_or(1) {
        n_taken += usize::from(target(&mutations.next()));
    }
    assert!(n_taken > 0, "mutations of {name} never get past its first check");
}

#[test]
fn every_target_takes_its_seeds_and_survives_their_mutations() {
    for (name, target) in TARGETS {
        run(name, target);
    }
}

#[test]
fn every_folder_of_seeds_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut folders: Vec<_> = entries
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    folders.sort_unstable();
    assert_eq!(folders, TARGETS.map(|(name, _)| name));
}
