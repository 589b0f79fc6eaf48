//! Why an adapter cannot be registered, changed or had.

use std::io;

use pleach_adapters::{AdapterError, GenerationDigest, RegistryError, ResidencyError};
use pleach_engine::backend::RunError;
use pleach_store::StoreError;

use super::stored_files::StoredFileError;

/// Nothing was changed, except where it says so, and nothing is left of what was to be registered.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A name that cannot be taken, or an alias that is not as expected.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// By path, on a server that allows none.
    #[error(
        "adapters cannot be loaded by path here: the server was started without --adapter-root; upload the files instead"
    )]
    NoRoots,
    /// Not below a root, by itself or through a link.
    #[error("the path {path:?} is not below an allowed folder (--adapter-root)")]
    OutsideRoots {
        /// As it was asked for.
        path: String,
    },
    /// Allowed, but there is no adapter.
    #[error("no adapter found for {path}")]
    NoAdapter {
        /// As it was asked for.
        path: String,
    },
    /// Files that cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A rank beyond this server's limit.
    #[error("the adapter has rank {rank}, this server takes at most {rank_max} (--max-lora-rank)")]
    RankTooLarge {
        /// Its rank.
        rank: usize,
        /// The limit.
        rank_max: usize,
    },
    /// It could never be brought to the device.
    #[error(
        "the adapter needs {needed} bytes of device memory, all adapters together have {capacity} (--adapter-memory)"
    )]
    NeverFits {
        /// Its bytes.
        needed: usize,
        /// All there are.
        capacity: usize,
    },
    /// The device cannot take it.
    #[error(transparent)]
    Pack(#[from] RunError),
    /// Our copy could not be written.
    #[error("cannot keep the adapter's files: {0}")]
    Spool(#[from] io::Error),
    /// Our copies take as much of the disk as they may.
    #[error("adapters loaded at run time take {bytes_max} bytes of disk already")]
    SpoolFull {
        /// Most bytes of all copies.
        bytes_max: u64,
    },
    /// An upload that is larger than any adapter of this model.
    #[error(
        "{file} is larger than {bytes_max} bytes, the most that an adapter of this model can have"
    )]
    UploadTooLarge {
        /// Which file.
        file: &'static str,
        /// Most bytes.
        bytes_max: u64,
    },
    /// Too many registrations at once.
    #[error("{waiting} adapters are being loaded already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// An object store did not give the files.
    #[error("the adapter's files cannot be fetched from {path}")]
    Remote {
        /// As it was asked for.
        path: String,
    },
    /// The store refused the change, or cannot be reached. After a failed commit it is unknown whether the change was
    /// made; what is served is what is stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored file cannot be read.
    #[error(transparent)]
    StoredFile(#[from] StoredFileError),
    /// An adapter of the configuration is not what it was when the server started.
    #[error(
        "the files given by --adapter have changed since the server started: they are now generation {}",
        found.short()
    )]
    ConfiguredChanged {
        /// What they are.
        found: GenerationDigest,
    },
    /// An adapter without files.
    #[error("the adapter's files are not kept")]
    NotKept,
    /// It was checked against another base than the one that is served.
    #[error(
        "the adapter `{alias}` was registered for another base: it was checked against the model file with SHA-256 \
         {registered}, this server has {served}; register its files again to have them checked"
    )]
    OtherBase {
        /// Its name.
        alias: String,
        /// SHA-256 of the base's file then, hexadecimal.
        registered: String,
        /// SHA-256 of the base's file now.
        served: String,
    },
    /// It cannot be brought to the device.
    #[error("the adapter `{alias}` cannot be had: {error}")]
    Residency {
        /// Its name.
        alias: String,
        /// Why.
        error: ResidencyError,
    },
    /// A bug in what reads adapters.
    #[error("loading the adapter failed unexpectedly")]
    Panicked,
}
