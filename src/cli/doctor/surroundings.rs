//! The store of models, Python, the hub and a running server.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use super::machine::output_of;
use crate::{
    cli::chat::server::http_client,
    models::{ModelStore, is_writable},
};

/// The time that anything on the network has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// `PLEACH_HOME`.
#[derive(Debug, Serialize)]
pub(super) struct Home {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
    /// Whether files can be made there, or the folder itself where it is missing.
    pub(super) is_writable: bool,
    pub(super) models: Vec<Model>,
}

/// One model of the store.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) is_verified: bool,
}

impl Home {
    pub(super) fn remark(&self) -> &'static str {
        match (self.exists, self.is_writable) {
            (true, true) => "",
            (true, false) => " (read-only)",
            (false, true) => " (made when needed)",
            (false, false) => " (missing, and cannot be made)",
        }
    }
}

/// Looks at the store.
pub(super) fn home(store: &ModelStore) -> Home {
    let path = store.home().to_owned();
    let nearest = path.ancestors().find(|folder| folder.exists()).unwrap_or_else(|| Path::new("."));
    let models = store.list().into_iter().map(|model| {
        let is_verified = model.verified.is_some();
        Model { name: model.name, path: model.path, bytes: model.bytes, is_verified }
    });
    Home {
        exists: path.is_dir(),
        is_writable: nearest.is_dir() && is_writable(nearest),
        models: models.collect(),
        path,
    }
}

/// Python with its pip.
#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) pip: Option<String>,
}

/// Looks for Python.
pub(super) async fn python() -> Option<Program> {
    for name in ["python3", "python"] {
        let Some(version) = output_of(name, &["--version"]).await else { continue };
        let pip = output_of(name, &["-m", "pip", "--version"]).await;
        // "pip 23.2.1 from /usr/lib/…"
        let pip = pip.map(|text| text.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        return Some(Program {
            name,
            version: version.trim().trim_start_matches("Python ").to_owned(),
            pip,
        });
    }
    None
}

/// What an address answers.
#[derive(Debug, Serialize)]
pub(super) struct Reach {
    pub(super) url: String,
    /// The HTTP status, if anything answers.
    pub(super) status: Option<u16>,
    pub(super) error: Option<String>,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, &self.error) {
            (Some(status), _) => write!(f, "{} answers {status}", self.url),
            (None, Some(error)) => write!(f, "{}: {error}", self.url),
            (None, None) => write!(f, "{}: nothing answers", self.url),
        }
    }
}

/// Asks `url` for anything at all.
pub(super) async fn reach(url: String) -> Reach {
    let answer = async {
        let response = http_client(&url)?.get(&url).timeout(ANSWER_TIMEOUT).send().await?;
        anyhow::Ok(response.status().as_u16())
    };
    let (status, error) = match answer.await {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.root_cause().to_string())),
    };
    Reach { url, status, error }
}
