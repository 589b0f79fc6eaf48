//! Why an adapter was not registered.

use std::io;

use pleach_adapters::{AdapterError, RegistryError};
use pleach_engine::backend::RunError;

/// Nothing was registered, and nothing is left of it.
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
    /// A bug in what reads adapters.
    #[error("loading the adapter failed unexpectedly")]
    Panicked,
}
