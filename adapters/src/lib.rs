//! Adapters of pleach: file formats, validation, generations and the registry of aliases.
//!
//! ```text
//! folder ── peft::load_peft ──> LoadedAdapter (checked f32 weights, digest)
//!    ──> Generation (where its files are) ── Registry::point ──> Alias, moved by compare-and-swap
//! request's model name ── Registry::resolve ──> pinned Generation
//! digest ── Residency::lease: disk ─> host memory ─> device ──> ResidentLease
//! ```
//!
//! This crate reads what others wrote, so nothing here trusts a length, an offset or a pattern; what is not supported
//! is refused by the name of the key or tensor that asks for it. It knows nothing of HTTP, tenants or text.

pub mod digest;
pub mod generation;
mod namespace;
pub mod peft;
pub mod registry;
pub mod residency;

pub use digest::{GenerationDigest, NotADigest, base_kv_key};
pub use generation::{AdapterFiles, FolderInPlace, Generation, GenerationInfo, KnownGeneration};
pub use namespace::Namespace;
pub use peft::{AdapterConfig, AdapterError, LoadedAdapter, load_peft, load_peft_files};
pub use registry::{Alias, Expect, KnownAlias, Moved, Registry, RegistryError, Resolution};
pub use residency::{
    AdapterDevice, AdapterSource, InstallError, Residency, ResidencyConfig, ResidencyError,
    ResidencyLimits, ResidencyStats, ResidentLease, Tier,
};
