//! Where the tests find their data.

use std::path::{Path, PathBuf};

use pleach_engine::gguf::GgufFile;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a file in `tests/fixtures/text`.
pub(crate) fn fixture(name: &str) -> String {
    let path = root().join("tests/fixtures/text").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The default model: its vocabulary is what the reference data was made with.
pub(crate) fn default_model() -> GgufFile {
    let path = pleach_test_setup::default_model();
    GgufFile::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
