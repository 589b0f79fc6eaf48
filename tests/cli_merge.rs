//! The real binary's `merge` on small adapters. No model, no network.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use pleach_adapters::peft::{PeftFiles, Shapes};

/// What a run of the binary gave.
struct Run {
    is_ok: bool,
    out: String,
    err: String,
}

/// Runs `pleach merge` with words that stand for folders of `tests/fixtures` when they begin with `@`.
fn merge(words: &[&str]) -> Run {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let word = |word: &&str| match word.strip_prefix('@') {
        Some(path) => fixtures.join(path).display().to_string(),
        None => (*word).to_owned(),
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.arg("merge").args(words.iter().map(word)).env_remove("PLEACH_LOG");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).unwrap().replace(&*fixtures.to_string_lossy(), "@")
    };
    Run { is_ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// The generation of a folder.
fn generation(dir: &Path) -> String {
    let files = PeftFiles::read(dir, 1 << 20).unwrap();
    let mut shapes = Shapes::default();
    shapes.learn(&files).unwrap();
    files.load(&shapes.spec()).unwrap().digest.to_string()
}

/// A folder in `dir` that is not there yet, as an argument.
fn out(dir: &tempfile::TempDir) -> (PathBuf, String) {
    let path = dir.path().join("new/merged");
    let text = path.display().to_string();
    (path, text)
}

#[test]
fn a_merged_folder_is_told_with_its_generation() {
    let dir = tempfile::tempdir().unwrap();
    let (path, to) = out(&dir);
    let (a, b) = ("@merge/plain-r4=0.7", "@merge/rslora-r4=-1.5");
    let run =
        merge(&["--adapter", a, "--adapter", b, "--method", "svd", "--rank", "3", "--out", &to]);
    assert!(run.is_ok, "{}", run.err);
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines[0], "lost of the exact delta (Frobenius norm), %");
    assert_eq!(lines[1], "layer    q_proj    v_proj    o_proj down_proj");
    let shares: Vec<f64> = lines[2].split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(shares[1..].iter().all(|share| (0.1..100.0).contains(share)), "{shares:?}");
    assert!(lines[4].starts_with("lm_head "), "{}", lines[4]);
    assert!(lines[5].starts_with("most: "), "{}", lines[5]);
    assert_eq!(lines[7], format!("{to}: 2 adapters, 9 sites, rank up to 3, 2.2 KiB"));
    assert_eq!(lines[8], format!("generation {}", generation(&path)));
    // Both are of one base.
    assert_eq!(run.err, "");

    let again = merge(&["--adapter", a, "--out", &to]);
    assert!(!again.is_ok && again.err.contains("the folder is not empty"), "{}", again.err);
}

#[test]
fn what_is_merged_may_be_merged_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, to) = out(&dir);
    let run = merge(&[
        "--adapter",
        "@merge/plain-r4",
        "--adapter",
        "@merge/patterns=0.5",
        "--out",
        &to,
        "-q",
    ]);
    assert!(run.is_ok, "{}", run.err);
    assert_eq!(run.out.trim_end(), generation(&path));
    let copy = dir.path().join("copy").display().to_string();
    let same = merge(&["--adapter", &to, "--out", &copy, "-q"]);
    assert_eq!(same.out, run.out, "of weight 1 it is the same generation: {}", same.err);
}

#[test]
fn other_bases_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/merge/plain-r4");
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(file), other.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(other.join("adapter_config.json")).unwrap();
    let config = config.replace("toy/merge", "toy/another");
    std::fs::write(other.join("adapter_config.json"), config).unwrap();
    let (_, to) = out(&dir);
    let other = other.display().to_string();
    let run = merge(&["--adapter", "@merge/plain-r4", "--adapter", &other, "--out", &to]);
    assert!(run.is_ok, "{}", run.err);
    assert_eq!(
        run.err.trim_end(),
        format!(
            "warning: {other} was trained on toy/another, @/merge/plain-r4 on toy/merge: a merged adapter is right on one base only"
        )
    );
}

#[test]
fn what_cannot_be_merged_is_refused_by_name_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (path, to) = out(&dir);
    let plain = "@models/lora/llama-plain/r8-patterns";
    let r256 = "@models/lora/llama-plain/r256";
    for (words, message) in [
        (
            vec!["@models/kinds/llama-plain/dora-r8", plain],
            "@/models/kinds/llama-plain/dora-r8: model.layers.0.self_attn.q_proj: DoRA cannot be composed",
        ),
        (
            vec![plain, "@models/kinds/llama-plain/saved-head"],
            "@/models/kinds/llama-plain/saved-head: lm_head: a whole matrix of the adapter's own cannot be composed",
        ),
        (
            vec![plain, "@merge/plain-r4"],
            "@/merge/plain-r4: tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has shape [4, 12], expected [4, 64]",
        ),
        (
            vec![r256, r256],
            "the ranks add up to 512, at most 256 can be composed; --method svd makes a lower rank of them",
        ),
        (vec![plain, r256, "--method", "linear"], "`linear` needs equal ranks"),
        (vec![plain, "--rank", "4"], "--rank is for --method svd only"),
        (vec![plain, "--method", "svd", "--rank", "0"], "rank 0 is outside 1..=256"),
        (vec!["@merge/nowhere"], "@/merge/nowhere: not a readable folder"),
        (vec!["@merge/plain-r4=0"], "nothing is left to merge: all weights are 0"),
        (vec!["@merge/plain-r4=x"], "the weight \"x\" is not a number"),
    ] {
        let mut arguments = vec!["--out", &to];
        for word in &words {
            if word.starts_with('@') {
                arguments.push("--adapter");
            }
            arguments.push(word);
        }
        let run = merge(&arguments);
        assert!(!run.is_ok, "{words:?}: {}", run.out);
        assert!(run.err.contains(message), "{words:?}: {}", run.err);
        assert!(!path.exists(), "{words:?} left something");
    }
}
