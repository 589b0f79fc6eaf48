//! The folder of a training: what it needs to go on, in `.training`, until the adapter is written.
//!
//! ```text
//! DIR/.training/setup.json           what is trained, and how
//!               state.safetensors    weights, moments, and where the training is
//!               best/                the adapter that was best on the validation rows
//! DIR/adapter_config.json, …         at the end, the settings last: without them it is no adapter
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use pleach_trainer::write_atomically;

use super::setup::Setup;

const WORK: &str = ".training";
const SETUP: &str = "setup.json";
const STATE: &str = "state.safetensors";
const BEST: &str = "best";

/// `DIR/.training`.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    /// A new one, in a folder that is empty or not there.
    ///
    /// # Errors
    /// When something is there, or the disk fails.
    pub(super) fn new(out: &Path) -> anyhow::Result<Self> {
        let at = || format!("--out {}", out.display());
        match std::fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) if out.join(WORK).join(SETUP).exists() => {
                bail!("{}: a training was stopped there; --resume goes on with it", at())
            }
            Ok(false) => bail!("{}: the folder is not empty", at()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(at),
        }
        Ok(Self { path: out.join(WORK) })
    }

    /// That of a training that was stopped.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn existing(out: &Path) -> anyhow::Result<Self> {
        let path = out.join(WORK);
        ensure!(
            path.join(SETUP).exists(),
            "--out {}: no training was stopped there",
            out.display()
        );
        Ok(Self { path })
    }

    /// # Errors
    /// When it cannot be read.
    pub(super) fn setup(&self) -> anyhow::Result<Setup> {
        let path = self.path.join(SETUP);
        let at = || path.display().to_string();
        let text = std::fs::read(&path).with_context(at)?;
        serde_json::from_slice(&text).with_context(at)
    }

    /// Keeps what is trained; what was kept before must be the same.
    ///
    /// # Errors
    /// When model or parent are others now, or the disk fails.
    pub(super) fn keep(&self, setup: &Setup) -> anyhow::Result<()> {
        let path = self.path.join(SETUP);
        if path.exists() {
            let kept = self.setup()?;
            let (model, parent) = (&setup.model, &setup.adapter);
            ensure!(kept.base_sha256 == setup.base_sha256, "{model} is another model now");
            let parent = parent.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            ensure!(kept.parent == setup.parent, "{parent} is another adapter now");
            return Ok(());
        }
        std::fs::create_dir_all(&self.path).with_context(|| self.path.display().to_string())?;
        let text = serde_json::to_vec_pretty(setup)?;
        write_atomically(&path, &text).with_context(|| path.display().to_string())
    }

    /// Where the state is.
    pub(super) fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Where the best adapter is.
    pub(super) fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// The adapter is written: nothing of this is needed any more.
    ///
    /// # Errors
    /// Of the disk.
    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.path)
    }
}
