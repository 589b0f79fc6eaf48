//! What a step of a round comes to.

use pleach_store::{BlobError, JobError, RoundChange, RoundState, StoreError};

use crate::adapter_service::ServiceError;

use super::progress::Progress;

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Write this, and look again.
    Change(Box<RoundChange>),
    /// Look again when something has happened.
    Wait,
    /// Let go of it: it waits for a person.
    LetGo,
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// The round cannot go on.
    #[error("{}", .0.message)]
    Failed(JobError),
    /// The store failed: it may be luckier later.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A change of a name could not be stored: it may be later.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl StepError {
    /// The round cannot go on.
    pub(super) fn failed(code: &str, message: impl std::fmt::Display) -> Self {
        Self::Failed(problem(code, message))
    }

    /// Why the round cannot go on.
    ///
    /// # Errors
    /// The same, if a step that is made later may be luckier.
    pub(super) fn lasting(self) -> Result<JobError, Self> {
        match self {
            Self::Failed(error) => Ok(error),
            Self::Store(error) | Self::Service(ServiceError::Store(error)) if !error.may_pass() => {
                Ok(refusal(&error))
            }
            Self::Service(error @ ServiceError::Registry(_)) => Ok(problem("server_error", error)),
            Self::Store(_) | Self::Service(_) => Err(self),
        }
    }

    /// A bug, or a document of a later version.
    pub(super) fn server(error: impl std::fmt::Display) -> Self {
        Self::failed("server_error", error)
    }
}

impl From<serde_json::Error> for StepError {
    fn from(error: serde_json::Error) -> Self {
        Self::server(error)
    }
}

/// Why a round ends of which the store takes or gives something never.
pub(super) fn refusal(error: &StoreError) -> JobError {
    if matches!(error, StoreError::Blob(BlobError::TooLarge { .. })) {
        return problem("data_too_large", error);
    }
    if matches!(error, StoreError::QuotaExceeded { .. }) {
        return problem("quota_exceeded", error);
    }
    // Its words may tell of the server's surroundings.
    tracing::error!(%error, "a round cannot go on");
    problem("server_error", "the store does not have or take what the round needs")
}

/// Why a round ended.
pub(super) fn problem(code: &str, message: impl std::fmt::Display) -> JobError {
    JobError { code: code.to_owned(), message: message.to_string(), param: None }
}

/// A change that ends a round, and says why.
pub(super) fn ends(state: RoundState, error: JobError) -> Next {
    Next::Change(Box::new(RoundChange {
        state: Some(state),
        error: Some(error),
        ..RoundChange::default()
    }))
}

/// A change of state, with what is kept of it.
pub(super) fn goes_to(state: RoundState, progress: &Progress) -> Result<RoundChange, StepError> {
    Ok(RoundChange {
        state: Some(state),
        progress: Some(progress.to_value()?),
        ..RoundChange::default()
    })
}

/// No change of state.
pub(super) fn notes(progress: &Progress) -> Result<Next, StepError> {
    let progress = Some(progress.to_value()?);
    Ok(Next::Change(Box::new(RoundChange { progress, ..RoundChange::default() })))
}
