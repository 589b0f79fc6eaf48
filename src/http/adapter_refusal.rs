//! Refusals that have to do with adapters.

use axum::http::StatusCode;
use pleach_adapters::{RegistryError, ResidencyError};
use pleach_store::StoreError;

use super::error::ApiError;
use crate::adapter_service::ServiceError;

/// Kinds of refusals that have to do with adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterRefusal {
    /// A name that no adapter may have.
    Name,
    /// Files that cannot be an adapter here.
    Files,
    /// A path that may not be read.
    Path,
    /// A path with no adapter.
    NoFiles,
    /// No adapter of that name.
    Unknown,
    /// No such generation.
    UnknownGeneration,
    /// The alias is not as the change expects it, or has not that generation.
    Conflict,
    /// Too large for this server's disk or list.
    Full,
    /// It is registered but cannot be brought to the device.
    Unavailable,
    /// Too many wait.
    Busy,
    /// It was registered for another base than the one that is served.
    OtherBase,
    /// The change could not be stored.
    NotStored,
    /// Adapters that cannot be summed.
    Composition,
}

impl AdapterRefusal {
    pub(super) fn status_and_code(self) -> (StatusCode, &'static str) {
        match self {
            Self::Name => (StatusCode::BAD_REQUEST, "invalid_adapter_name"),
            Self::Files => (StatusCode::BAD_REQUEST, "invalid_adapter"),
            Self::Path => (StatusCode::FORBIDDEN, "adapter_path_not_allowed"),
            Self::NoFiles => (StatusCode::NOT_FOUND, "adapter_files_not_found"),
            Self::Unknown => (StatusCode::NOT_FOUND, "adapter_not_found"),
            Self::UnknownGeneration => (StatusCode::NOT_FOUND, "generation_not_found"),
            Self::Conflict => (StatusCode::CONFLICT, "generation_conflict"),
            Self::Full => (StatusCode::INSUFFICIENT_STORAGE, "adapters_full"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "adapter_unavailable"),
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            Self::OtherBase => (StatusCode::CONFLICT, "base_mismatch"),
            Self::Composition => (StatusCode::BAD_REQUEST, "invalid_composition"),
            Self::NotStored => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
        }
    }
}

impl ApiError {
    /// What the registry's refusal is to a client.
    pub fn from_registry(error: &RegistryError) -> Self {
        let refusal = match error {
            RegistryError::UnknownName { model_name } => {
                return Self::UnknownModel { name: model_name.clone() };
            }
            RegistryError::NoBaseName
            | RegistryError::InvalidBaseName { .. }
            | RegistryError::EmptyAlias
            | RegistryError::AliasTooLong { .. }
            | RegistryError::AliasCharacter { .. }
            | RegistryError::AliasIsBase { .. }
            | RegistryError::AliasBeginsWithBase { .. }
            | RegistryError::AliasHidden { .. } => AdapterRefusal::Name,
            RegistryError::TooManyAliases => AdapterRefusal::Full,
            RegistryError::UnknownAlias { .. } => AdapterRefusal::Unknown,
            RegistryError::UnknownGeneration { .. } => AdapterRefusal::UnknownGeneration,
            RegistryError::AliasExists { .. }
            | RegistryError::Mismatch { .. }
            | RegistryError::NoHistory { .. }
            | RegistryError::ForeignGeneration { .. } => AdapterRefusal::Conflict,
        };
        Self::Adapter { refusal, message: error.to_string() }
    }

    /// Why an adapter cannot be registered, changed or had.
    // By value: it is what `map_err` gives.
    #[expect(clippy::needless_pass_by_value, reason = "an error at the end of its life")]
    pub fn from_service(error: ServiceError) -> Self {
        let refusal = match &error {
            ServiceError::Registry(error) => return Self::from_registry(error),
            ServiceError::Residency { error, .. } => match error {
                ResidencyError::ShuttingDown => return Self::ShuttingDown,
                ResidencyError::QueueFull { .. } => AdapterRefusal::Busy,
                ResidencyError::NeverFits { .. }
                | ResidencyError::AllPlacesPinned { .. }
                | ResidencyError::LoadFailed { .. }
                | ResidencyError::DeviceFailed { .. }
                | ResidencyError::DeviceFull { .. } => {
                    tracing::warn!(%error, "an adapter cannot be had");
                    AdapterRefusal::Unavailable
                }
            },
            ServiceError::Store(error) => return Self::from_store(error),
            ServiceError::OtherBase { .. } => AdapterRefusal::OtherBase,
            ServiceError::StoredFile(_) | ServiceError::Remote { .. } => {
                AdapterRefusal::Unavailable
            }
            ServiceError::ConfiguredChanged { .. } | ServiceError::NotKept => {
                AdapterRefusal::Conflict
            }
            ServiceError::NoRoots | ServiceError::OutsideRoots { .. } => AdapterRefusal::Path,
            ServiceError::NoAdapter { .. } => AdapterRefusal::NoFiles,
            ServiceError::Adapter(_)
            | ServiceError::RankTooLarge { .. }
            | ServiceError::NeverFits { .. }
            | ServiceError::Pack(_)
            | ServiceError::UploadTooLarge { .. } => AdapterRefusal::Files,
            ServiceError::Composition(_)
            | ServiceError::BaseAsPart { .. }
            | ServiceError::PartTwice { .. }
            | ServiceError::NotComposable { .. } => AdapterRefusal::Composition,
            ServiceError::SpoolFull { .. } => AdapterRefusal::Full,
            ServiceError::Busy { .. } => AdapterRefusal::Busy,
            ServiceError::Spool(_) | ServiceError::Panicked => {
                return Self::Internal { detail: error.to_string() };
            }
        };
        Self::Adapter { refusal, message: error.to_string() }
    }

    /// What the store's refusal is to a client. Only what is about the client's own names is told in its words: others
    /// name places of the server.
    fn from_store(error: &StoreError) -> Self {
        let adapter = |refusal, message| Self::Adapter { refusal, message };
        if let StoreError::UnknownAlias { alias, .. } = error {
            return Self::from_registry(&RegistryError::UnknownAlias { alias: alias.clone() });
        }
        if let StoreError::QuotaExceeded { quota, limit, wanted, .. } = error {
            return Self::beyond_quota(quota, *limit, *wanted);
        }
        let is_conflict = matches!(
            error,
            StoreError::AliasMoved { .. }
                | StoreError::NoEarlierGeneration { .. }
                | StoreError::NotInHistory { .. }
        );
        if is_conflict {
            return adapter(AdapterRefusal::Conflict, error.to_string());
        }
        tracing::error!(%error, "the store failed");
        let message = "the server could not store the change; whether it was made is to be seen";
        adapter(AdapterRefusal::NotStored, message.to_owned())
    }
}
