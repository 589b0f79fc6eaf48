//! Every way in which finding or fetching a model can fail.

use std::{io, path::PathBuf};

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Neither a file nor a name that we know.
    #[error(
        "no model file or known name: {name:?}: give the path of a GGUF file, hf:OWNER/REPO[:FILE], or one of: {known}"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names of the catalog.
        known: String,
    },
    /// The path is a folder.
    #[error("{} is a folder: give the path of the GGUF file in it", .0.display())]
    IsFolder(PathBuf),
    /// `hf:` followed by something that names no file of the hub.
    #[error("{reference:?} is not of the form hf:OWNER/REPO[:FILE]: {reason}")]
    BadReference {
        /// What was asked for.
        reference: String,
        /// The part that is wrong.
        reason: &'static str,
    },
    /// Neither `PLEACH_HOME` nor a home folder is set.
    #[error("no folder for models: set PLEACH_HOME")]
    NoHome,
    /// A file of the store could not be read or written.
    #[error("cannot {action} {}: {source}{}", .path.display(), hint_for(.source))]
    Io {
        /// `write`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The request failed before or while the body came.
    #[error("{url}: {}", innermost(.source))]
    Http {
        /// What was asked for.
        url: String,
        /// What the client said.
        source: reqwest::Error,
    },
    /// The server took too long to begin its answer.
    #[error("{url}: no answer within {seconds} s")]
    Timeout {
        /// What was asked for.
        url: String,
        /// The time that it had.
        seconds: u64,
    },
    /// The server refused.
    #[error("{url}: the server answered {status}{hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// Its status.
        status: u16,
        /// What could be done about it, beginning with `: `, or nothing.
        hint: &'static str,
    },
    /// The answer makes no sense.
    #[error("{url}: {reason}")]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The body ended early, again and again.
    #[error(
        "{url}: the connection broke after {received} of {expected} bytes: run the same command to go on from there"
    )]
    Truncated {
        /// What was asked for.
        url: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The file is of another size than the one we know.
    #[error("{origin}: {found} bytes, expected {expected}")]
    Size {
        /// Where it came from.
        origin: String,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The bytes are not the ones that we know.
    #[error("{origin}: SHA-256 is {found}, expected {expected}")]
    Digest {
        /// Where it came from.
        origin: String,
        /// The digest that it should have, in hexadecimal.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// There is no Python to run pip with.
    #[error("none of these programs runs: {tried}")]
    NoPython {
        /// The names that were tried.
        tried: String,
    },
    /// pip failed.
    #[error("pip download {package}: {status}: {tail}")]
    Pip {
        /// Package and version.
        package: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        tail: String,
    },
    /// The package does not hold what it should.
    #[error("{}: {reason}", .path.display())]
    Wheel {
        /// The package file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A repository of the hub holds no GGUF file, or several.
    #[error("{repo} holds {} GGUF files, name one as hf:{repo}:FILE: {}", .files.len(), .files.join(", "))]
    WhichFile {
        /// Owner and name.
        repo: String,
        /// Its GGUF files.
        files: Vec<String>,
    },
    /// No source gave the file.
    #[error("{name}: no source gave the file:{}", listed(reasons))]
    AllSources {
        /// The model.
        name: String,
        /// What each source said, in the order tried.
        reasons: Vec<String>,
    },
}

impl ModelError {
    /// Wraps an error of the file system.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Wraps an error of the HTTP client; the URL is in our own message already.
    pub(super) fn http(url: impl Into<String>) -> impl FnOnce(reqwest::Error) -> Self {
        let url = url.into();
        move |source| Self::Http { url, source: source.without_url() }
    }

    /// Whether trying once more can help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Http { .. } | Self::Timeout { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Unknown { .. }
            | Self::IsFolder(_)
            | Self::BadReference { .. }
            | Self::NoHome
            | Self::Io { .. }
            | Self::BadAnswer { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::NoPython { .. }
            | Self::Pip { .. }
            | Self::Wheel { .. }
            | Self::WhichFile { .. }
            | Self::AllSources { .. } => false,
        }
    }
}

fn hint_for(source: &io::Error) -> &'static str {
    // The rest of the list cannot be told apart in a way that helps.
    #[expect(clippy::wildcard_enum_match_arm, reason = "io::ErrorKind is not exhaustive")]
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or point PLEACH_HOME at a larger disk; what has come so far is kept"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ": point PLEACH_HOME at a folder that this user may write"
        }
        _ => "",
    }
}

fn listed(reasons: &[String]) -> String {
    reasons.iter().flat_map(|reason| ["\n  - ", reason.as_str()]).collect()
}

/// reqwest says only "error sending request"; the reason is at the end of the chain.
fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    source.to_string()
}
