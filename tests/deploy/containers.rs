//! The container files.

use crate::{
    files::{parse, path, text},
    program,
};

const CPU: &str = "deploy/container/cpu.Dockerfile";
const CUDA: &str = "deploy/container/cuda.Dockerfile";
const BOTH: [&str; 2] = [CPU, CUDA];

/// An instruction and the rest of its line, continuation lines joined.
pub(crate) type Instruction = (String, String);

pub(crate) fn instructions(file: &str) -> Vec<Instruction> {
    let text = text(file);
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let (name, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{file}: {line}"));
            assert!(name.bytes().all(|byte| byte.is_ascii_uppercase()), "{file}: {line}");
            (name.to_owned(), rest.trim().to_owned())
        })
        .collect()
}

/// The instructions of one stage each; what comes before the first is `ARG`s.
fn stages(file: &str) -> Vec<Vec<Instruction>> {
    let mut stages: Vec<Vec<Instruction>> = Vec::new();
    for instruction in instructions(file) {
        if instruction.0 == "FROM" {
            stages.push(Vec::new());
        }
        match stages.last_mut() {
            Some(stage) => stage.push(instruction),
            None => assert_eq!(instruction.0, "ARG", "{file}"),
        }
    }
    stages
}

/// The values of an instruction in a stage.
fn all<'a>(stage: &'a [Instruction], name: &str) -> Vec<&'a str> {
    stage.iter().filter(|(n, _)| n == name).map(|(_, rest)| rest.as_str()).collect()
}

/// The one value of an instruction in the last stage.
fn last(file: &str, name: &str) -> String {
    let stages = stages(file);
    let values = all(stages.last().unwrap(), name);
    assert_eq!(values.len(), 1, "{file}: {name} {values:?}");
    values[0].to_owned()
}

/// User and group of the image.
pub(crate) fn user() -> (u64, u64) {
    assert_eq!(last(CPU, "USER"), last(CUDA, "USER"));
    let user = last(CPU, "USER");
    let (user, group) = user.split_once(':').expect("user and group");
    (user.parse().expect("a number"), group.parse().expect("a number"))
}

/// A variable of the image.
pub(crate) fn variable(name: &str) -> String {
    let value = |file| {
        let stages = stages(file);
        let set = all(stages.last().unwrap(), "ENV");
        let value = set.iter().find_map(|set| set.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{file}: no {name}")).to_owned()
    };
    assert_eq!(value(CPU), value(CUDA));
    value(CPU)
}

/// Whether `.dockerignore` leaves a path out. The last pattern that fits decides; a folder stands for all below it.
fn is_ignored(relative: &str) -> bool {
    let text = text(".dockerignore");
    let patterns = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let fits = |pattern: &str| {
        let parents = relative.match_indices('/').map(|(at, _)| &relative[..at]);
        parents.chain([relative]).any(|path| {
            let name = path.rsplit('/').next().unwrap();
            match pattern.trim_start_matches('/') {
                pattern if pattern.starts_with("**/*") => name.ends_with(&pattern[4..]),
                pattern if pattern.starts_with("**/") => {
                    path == &pattern[3..] || path.ends_with(&pattern[2..])
                }
                pattern if pattern.ends_with("/*") => path
                    .strip_prefix(&pattern[..pattern.len() - 1])
                    .is_some_and(|rest| !rest.contains('/')),
                pattern => path == pattern,
            }
        })
    };
    patterns.fold(false, |ignored, pattern| match pattern.strip_prefix('!') {
        Some(kept) if fits(kept) => false,
        None if fits(pattern) => true,
        _ => ignored,
    })
}

#[test]
fn stages_copy_from_stages_and_files_that_are_there() {
    for file in BOTH {
        let stages = stages(file);
        assert!(stages.len() >= 2, "{file}: what builds is not what runs");
        let mut names = Vec::new();
        for stage in &stages {
            let (image, name) = match stage[0].1.split_once(" AS ") {
                Some((image, name)) => (image, Some(name)),
                None => (stage[0].1.as_str(), None),
            };
            let (_, tag) =
                image.split_once(':').unwrap_or_else(|| panic!("{file}: {image}: no tag"));
            assert_ne!(tag, "latest", "{file}: {image}");
            for copy in all(stage, "COPY") {
                let mut words: Vec<_> = copy.split_whitespace().collect();
                words.pop().expect("a destination");
                match words[0].strip_prefix("--from=") {
                    Some(from) => assert!(names.contains(&from), "{file}: no stage {from} before"),
                    None => {
                        for source in words {
                            assert!(path(source).exists(), "{file}: COPY {source}");
                            assert!(!is_ignored(source), "{file}: {source} is in .dockerignore");
                        }
                    }
                }
            }
            assert!(all(stage, "ADD").is_empty(), "{file}: COPY does what it says");
            names.extend(name);
        }
    }
}

#[test]
fn what_runs_is_not_root_and_tells_its_health() {
    let (user, group) = user();
    assert!(user >= 1000 && group >= 1000, "{user}:{group}");
    for file in BOTH {
        let stages = stages(file);
        let runs = stages.last().unwrap();
        let at = |name: &str| runs.iter().position(|(n, _)| n == name).unwrap();
        let last_run = runs.iter().rposition(|(name, _)| name == "RUN").unwrap();
        assert!(
            last_run < at("USER") && at("USER") < at("ENTRYPOINT"),
            "{file}: root has to be done"
        );
        let home = variable("PLEACH_HOME");
        let makes = all(runs, "RUN").concat();
        assert!(makes.contains(&format!("--uid {user} --gid pleach")), "{file}");
        assert!(
            makes.contains(&format!("--owner=pleach --group=pleach --mode=0750 {home}")),
            "{file}"
        );
        assert_eq!(last(file, "WORKDIR"), home, "{file}");
        assert_eq!(last(file, "ENTRYPOINT"), r#"["pleach"]"#, "{file}");
        assert_eq!(last(file, "CMD"), r#"["serve"]"#, "{file}");
        assert_eq!(last(file, "EXPOSE"), "8000", "{file}");
        assert_eq!(variable("PLEACH_HOST"), "0.0.0.0");
    }
}

#[tokio::test]
async fn the_health_check_asks_a_route_that_needs_no_key() {
    for file in BOTH {
        let check = last(file, "HEALTHCHECK");
        let (_, command) = check.split_once(" CMD ").unwrap();
        let words: Vec<String> = serde_json::from_str(command.trim()).unwrap();
        let (_, route) =
            words[2].rsplit_once("${PLEACH_PORT:-8000}").expect("the port is said once");
        program::check_open_route(file, route).await;
        let installs = all(stages(file).last().unwrap(), "RUN").concat();
        assert!(words[2].starts_with("exec curl ") && installs.contains(" curl "), "{file}");
    }
}

#[test]
fn toolchains_are_those_of_the_tree() {
    let channel = parse("rust-toolchain.toml")["toolchain"]["channel"].as_str().unwrap().to_owned();
    for file in BOTH {
        let arguments = instructions(file);
        let version = all(&arguments, "ARG")
            .iter()
            .find_map(|a| a.strip_prefix("RUST_VERSION="))
            .unwrap()
            .to_owned();
        assert_eq!(version, channel, "{file}");
        let kernels = if file == CUDA { "PLEACH_CUDA=require" } else { "PLEACH_CUDA=off" };
        assert!(all(&arguments, "ENV").contains(&kernels), "{file}");
    }
    // nvcc 13.0.88 belongs to CUDA 13.0.
    let arguments = instructions(CUDA);
    let cuda = all(&arguments, "ARG")
        .iter()
        .find_map(|a| a.strip_prefix("CUDA_VERSION="))
        .unwrap()
        .to_owned();
    let (release, _) = cuda.rsplit_once('.').unwrap();
    assert!(text("tools/fetch-nvcc").contains(&format!("nvidia-cuda-nvcc=={release}.")), "{cuda}");
}

#[test]
fn nothing_that_cargo_needs_is_ignored() {
    let manifest = parse("Cargo.toml");
    let members = manifest["workspace"]["members"].as_array().unwrap();
    for member in members.iter().map(|member| member.as_str().unwrap()).chain(["."]) {
        for file in ["Cargo.toml", "src/lib.rs"] {
            let file = format!("{member}/{file}").trim_start_matches("./").to_owned();
            assert!(path(&file).is_file() && !is_ignored(&file), "{file}");
        }
    }
    for bench in manifest["bench"].as_array().unwrap() {
        let file = format!("benches/{}.rs", bench["name"].as_str().unwrap());
        assert!(!is_ignored(&file), "{file}");
    }
    for file in [
        "Cargo.lock",
        "benches/engine_step.rs",
        "engine/build.rs",
        "engine/cuda/common/tile.cuh",
        "store/migrations/0001-tenants-and-adapters.sql",
    ] {
        assert!(path(file).is_file() && !is_ignored(file), "{file}");
    }
    for file in [
        "target/release/pleach",
        ".git/HEAD",
        "rust-toolchain.toml",
        "tests/e2e/main.rs",
        "store/tests/fixtures/schema/0001.sql",
        "model.gguf",
    ] {
        assert!(is_ignored(file), "{file}");
    }
}
