//! The files of `deploy/`, read and parsed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pleach::cli::serve::Args;
use serde_json::Value;

use crate::{containers, systemd};

/// A path of the repository, given from its root.
pub(crate) fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

pub(crate) fn text(relative: &str) -> String {
    let path = path(relative);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What follows the last dot of a file's name.
fn extension(relative: &str) -> &str {
    relative.rsplit_once('.').unwrap_or_else(|| panic!("{relative}: what is it?")).1
}

/// A YAML, JSON or TOML file as JSON.
pub(crate) fn parse(relative: &str) -> Value {
    let text = text(relative);
    let parsed = match extension(relative) {
        "yaml" | "yml" => {
            serde_saphyr::from_str(&text).map_err(|error: serde_saphyr::Error| error.to_string())
        }
        "json" => serde_json::from_str(&text).map_err(|error| error.to_string()),
        "toml" => toml::from_str(&text).map_err(|error| error.to_string()),
        extension => panic!("{relative}: no parser for {extension}"),
    };
    parsed.unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Variables of an `.env` file, those that are commented out included: they are examples and have to be right too.
pub(crate) fn env_names(relative: &str) -> Vec<String> {
    let text = text(relative);
    let names = text.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix('#').unwrap_or(line).split_once('=')?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        (is_name && !name.is_empty()).then(|| name.to_owned())
    });
    names.collect()
}

/// The entries of an object of strings.
pub(crate) fn strings(object: &Value) -> Vec<(&str, &str)> {
    let entries = object.as_object().unwrap_or_else(|| panic!("no object: {object}"));
    entries.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect()
}

/// The elements of a list; none if it is not there.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What an operator makes below `deploy/`; git ignores it too.
const OPERATORS_OWN: [&str; 2] = ["deploy/compose/.env", "deploy/compose/adapters"];

/// Every file below `deploy/`, from the root of the repository.
pub(crate) fn deployed() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(path(folder.to_str().unwrap())).unwrap() {
            let entry = entry.unwrap();
            let relative = folder.join(entry.file_name());
            if OPERATORS_OWN.iter().any(|own| relative == Path::new(own)) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(relative);
            } else {
                files.push(relative.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn every_file_parses() {
    let files = deployed();
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        match extension(&file) {
            "yaml" | "yml" | "json" => assert!(parse(&file).is_object(), "{file}"),
            "toml" => drop(parse(&file)),
            "env" => assert!(!env_names(&file).is_empty(), "{file}"),
            "Dockerfile" => assert!(!containers::instructions(&file).is_empty(), "{file}"),
            "service" | "conf" => systemd::check_syntax(&file),
            _ => panic!("{file}: add a parser for it"),
        }
    }
}

/// What the server itself would say to them: an unknown key is an error.
#[test]
fn configuration_files_are_taken_by_the_server() {
    let files = deployed().into_iter().filter(|file| extension(file) == "toml");
    let mut n_files = 0;
    for file in files {
        let text = text(&file);
        let read =
            |text: &str| toml::from_str::<Args>(text).unwrap_or_else(|e| panic!("{file}: {e}"));
        read(&text);
        // Examples that are commented out are taken one by one: they may stand for a line that is there.
        for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
            let key = line.split_once(" = ").map(|(key, _)| key);
            if key.is_some_and(|key| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')) {
                read(line);
            }
        }
        n_files += 1;
    }
    assert_eq!(n_files, 3);
}
