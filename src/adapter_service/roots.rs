//! The folders below which adapters may be loaded by path, on this machine or in an object store.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use pleach_adapters::peft::CONFIG_FILE;
use pleach_store::{BlobError, RemoteFolder, RemotePath};

use super::error::ServiceError;

/// Folders that the operator named. What is loaded must lie below one of them after all links are followed.
#[derive(Clone, Debug, Default)]
pub struct AllowedRoots {
    /// As named, and with links followed.
    roots: Vec<(PathBuf, PathBuf)>,
    remote: Vec<RemoteFolder>,
}

/// Where a client's path leads.
#[derive(Debug)]
pub(super) enum Place {
    /// Links followed.
    Folder(PathBuf),
    Remote(RemoteFolder, RemotePath),
}

/// A root that cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is not there, or no folder.
    #[error("--adapter-root {}: {source}", root.display())]
    Folder {
        /// As it was named.
        root: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no object store that this program can read.
    #[error("--adapter-root: {0}")]
    Remote(#[from] BlobError),
}

impl AllowedRoots {
    /// Follows links now: a link that is changed later opens nothing new. `s3://BUCKET/PREFIX` is a folder of an object
    /// store; it is not looked at.
    ///
    /// # Errors
    /// A root that is not there, or is no folder.
    pub fn new(roots: &[PathBuf]) -> Result<Self, RootError> {
        let follow = |root: &PathBuf| {
            let real = std::fs::canonicalize(root)?;
            if !real.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok((std::path::absolute(root)?, real))
        };
        let mut allowed = Self::default();
        for root in roots {
            if let Some(url) = root.to_str().filter(|text| RemoteFolder::is_url(text)) {
                allowed.remote.push(RemoteFolder::open(url)?);
            } else {
                let followed = follow(root);
                let root = root.clone();
                allowed.roots.push(followed.map_err(|source| RootError::Folder { root, source })?);
            }
        }
        Ok(allowed)
    }

    /// Allows a folder of an object store too.
    #[must_use]
    pub fn with_remote(mut self, folder: RemoteFolder) -> Self {
        self.remote.push(folder);
        self
    }

    /// Where an adapter is that a client names: below an `s3://` root, or a folder ([`Self::find_folder`]).
    ///
    /// # Errors
    /// [`ServiceError::NoRoots`], [`ServiceError::OutsideRoots`], [`ServiceError::NoAdapter`].
    pub(super) fn find(&self, path: &str) -> Result<Place, ServiceError> {
        if self.roots.is_empty() && self.remote.is_empty() {
            return Err(ServiceError::NoRoots);
        }
        if !RemoteFolder::is_url(path) {
            return self.find_folder(path).map(Place::Folder);
        }
        let found = self.remote.iter().find_map(|folder| Some((folder, folder.below(path)?)));
        let (folder, below) =
            found.ok_or_else(|| ServiceError::OutsideRoots { path: path.to_owned() })?;
        Ok(Place::Remote(folder.clone(), below))
    }

    /// The folder that a client means, links followed. A relative path is looked for below each root in turn. Blocks.
    ///
    /// What lies outside is answered alike whether it is there or not: clients cannot ask which files a server has.
    ///
    /// # Errors
    /// [`ServiceError::OutsideRoots`], [`ServiceError::NoAdapter`].
    fn find_folder(&self, path: &str) -> Result<PathBuf, ServiceError> {
        let outside = || ServiceError::OutsideRoots { path: path.to_owned() };
        let asked = Path::new(path);
        if asked.components().any(|part| part == Component::ParentDir) || path.contains('\0') {
            return Err(outside());
        }
        let mut is_inside = false;
        for (named, real) in &self.roots {
            let below = if asked.is_absolute() {
                let below = asked.strip_prefix(named).or_else(|_| asked.strip_prefix(real));
                let Ok(below) = below else { continue };
                below
            } else {
                asked
            };
            is_inside = true;
            let Ok(folder) = std::fs::canonicalize(real.join(below)) else { continue };
            if !self.holds(&folder) {
                return Err(outside());
            }
            if folder.join(CONFIG_FILE).symlink_metadata().is_ok() {
                return Ok(folder);
            }
        }
        Err(if is_inside { ServiceError::NoAdapter { path: path.to_owned() } } else { outside() })
    }

    /// A file of an allowed folder, links followed. `None` if it is not there.
    pub(super) fn file(&self, folder: &Path, name: &str) -> Result<Option<PathBuf>, ServiceError> {
        let Ok(file) = std::fs::canonicalize(folder.join(name)) else { return Ok(None) };
        if self.holds(&file) {
            Ok(Some(file))
        } else {
            Err(ServiceError::OutsideRoots { path: name.to_owned() })
        }
    }

    fn holds(&self, real: &Path) -> bool {
        self.roots.iter().any(|(_, root)| real.starts_with(root))
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_lies_below_a_root_is_found() {
        let world = tempfile::tempdir().unwrap();
        let at = |path: &str| world.path().join(path);
        for folder in ["root/a", "root/sub/b", "outside/c"] {
            std::fs::create_dir_all(at(folder)).unwrap();
            std::fs::write(at(folder).join(CONFIG_FILE), "{}").unwrap();
        }
        std::fs::create_dir_all(at("root/empty")).unwrap();
        std::fs::create_dir_all(at("rootless")).unwrap();
        symlink(at("outside/c"), at("root/escape")).unwrap();
        symlink(at("root/a"), at("root/inner")).unwrap();
        symlink(at("root"), at("link")).unwrap();
        let roots = AllowedRoots::new(&[at("link")]).unwrap();
        let find = |path: &str| match roots.find(path)? {
            Place::Folder(folder) => Ok(folder),
            Place::Remote(..) => panic!("{path} is no URL"),
        };
        let text = |path: &str| at(path).display().to_string();
        for (path, found) in [
            ("a".to_owned(), "root/a"),
            ("sub/b".to_owned(), "root/sub/b"),
            ("inner".to_owned(), "root/a"),
            (text("link/a"), "root/a"),
            (text("root/a"), "root/a"),
        ] {
            assert_eq!(find(&path).unwrap(), at(found).canonicalize().unwrap(), "{path}");
        }
        for outside in [
            "s3://bucket/a".to_owned(),
            "escape".to_owned(),
            "../outside/c".to_owned(),
            "sub/../../outside/c".to_owned(),
            "a\0".to_owned(),
            text("outside/c"),
            text("outside/nothing"),
            text("rootless"),
            text("root/../outside/c"),
        ] {
            let error = find(&outside).unwrap_err();
            assert!(matches!(error, ServiceError::OutsideRoots { .. }), "{outside}: {error}");
        }
        for nothing in ["empty".to_owned(), "nothing".to_owned(), String::new(), text("root/no")] {
            let error = find(&nothing).unwrap_err();
            assert!(matches!(error, ServiceError::NoAdapter { .. }), "{nothing}: {error}");
        }
        symlink(at("outside/c").join(CONFIG_FILE), at("root/a/stolen")).unwrap();
        roots.file(&at("root/a"), "stolen").unwrap_err();
        assert!(roots.file(&at("root/a"), "missing").unwrap().is_none());
        assert!(roots.file(&at("root/a"), CONFIG_FILE).unwrap().is_some());
        assert!(matches!(AllowedRoots::default().find("a"), Err(ServiceError::NoRoots)));
        let error = AllowedRoots::new(&[at("nowhere")]).unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
    }
}
