//! The real `openai` client: `tests/python/openai_client.py` asserts, this starts the server and the script.

use std::process::Command;

use crate::{
    program::run,
    server::{BASE, Server, reference_adapter},
};

const API_KEY: &str = "key-of-the-test";
/// So many tests are in the script: a script that ran none would pass too.
const N_TESTS: usize = 32;

#[test]
fn the_openai_client_drives_every_endpoint() {
    let adapters = [reference_adapter("pirate"), reference_adapter("extract")].concat();
    // Exact products: the answers are compared with the reference's, token by token.
    let mut arguments = vec!["--activations", "f32", "--api-key", API_KEY];
    arguments.extend(adapters.iter().map(String::as_str));
    let server = Server::start(&arguments);
    let script = pleach_test_setup::workspace().join("tests/python/openai_client.py");
    let mut python = Command::new(pleach_test_setup::python());
    // The caller's own settings of the client must not reach it.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("OPENAI_")) {
            python.env_remove(name);
        }
    }
    python.env("PYTHONDONTWRITEBYTECODE", "1").env("NO_PROXY", "*");
    python.arg(script).args([&server.url, API_KEY, BASE]).arg(pleach_test_setup::fixtures());
    let outcome = run(&mut python, "");
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.out, outcome.err);
    let ran = format!("Ran {N_TESTS} tests");
    assert!(outcome.err.contains(&ran), "not {ran:?}: {}", outcome.err);
}
