//! Where things are: the workspace, and the build folder that the running test came from.

use std::path::{Path, PathBuf};

pub(crate) fn workspace() -> PathBuf {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR"));
    // tests/setup, two levels below the root.
    setup.ancestors().nth(2).unwrap_or(setup).to_owned()
}

/// The folder of this build profile, such as `target/release`: programs lie in it, tests in its `deps`.
pub(crate) fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().ok();
    let deps = test.as_deref().and_then(Path::parent).filter(|folder| folder.ends_with("deps"));
    let profile = deps.and_then(Path::parent).map(Path::to_owned);
    // A doc test runs from somewhere else.
    profile.unwrap_or_else(|| workspace().join("target/release"))
}

/// `target`, wherever `CARGO_TARGET_DIR` has it.
pub(crate) fn target_folder() -> PathBuf {
    let profile = profile_folder();
    profile.parent().map(Path::to_owned).unwrap_or(profile)
}
