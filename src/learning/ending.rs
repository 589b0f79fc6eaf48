//! What is left to do when a round has ended, however it did. All of it may be done again, and is until it is done: the store
//! knows of which rounds something is left.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pleach_adapters::{Expect, GenerationDigest, RegistryError};
use pleach_store::{Metadata, Owner, Page, RoundState, StoreError, StoredRound, TenantId};

use super::{
    gating::name_of,
    promotion::{own_name, watch_again},
    steps::StepError,
    training::{ROUND, candidate, delete_file},
};
use crate::{
    adapter_service::{ServiceError, Target, job_of_candidate},
    http::state::AppState,
};

/// How often it is tried again to end what could not be ended.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// Takes the candidate out of service if it did not come to stay, ends the round's jobs, and removes what was kept for it.
/// What fails is done by [`finish_all`].
pub async fn clean_up(state: &AppState, round: &StoredRound) {
    // What was promoted is watched under the name from here on.
    let mut is_settled = round.state != RoundState::Promoted;
    if is_settled {
        state.learning.rollouts.end(&name_of(round).space(), &round.name, &round.id);
        if let Err(error) = take_back(state, round).await {
            tracing::error!(round = round.id, %error, "a candidate is still in service");
            is_settled = false;
        }
    }
    if is_settled {
        settle(state, round).await;
    } else if let Err(error) = remove(state, round).await {
        tracing::warn!(round = round.id, %error, "what a round kept is removed later");
    }
}

/// Removes what was kept for a round and notes that nothing is left to do about it.
pub(super) async fn settle(state: &AppState, round: &StoredRound) {
    let settled = match remove(state, round).await {
        Ok(()) => state.store.round_done(round).await.map_err(StepError::from),
        failed => failed,
    };
    if let Err(error) = settled {
        tracing::warn!(round = round.id, %error, "what a round kept is removed later");
    }
}

/// Does what is left to do about rounds that have ended, whichever process left it and however long ago: takes back what was
/// not to stay, watches what was promoted. Until the server stops.
pub(super) async fn finish_all(state: Arc<AppState>) {
    sweep(&state).await;
    let mut waiter = state.learning.wake.waiter();
    while state.is_serving() {
        let of_task = Arc::clone(&state);
        match tokio::spawn(async move { finish(&of_task).await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "rounds that have ended are looked at later"),
            Err(_) => tracing::error!("ending a round has panicked: it is tried again"),
        }
        // Woken for what is about other rounds, it would try at once what has just failed.
        let next = Instant::now() + TRY_EVERY;
        while state.is_serving() && Instant::now() < next {
            waiter.wait(next.saturating_duration_since(Instant::now())).await;
        }
    }
}

async fn finish(state: &Arc<AppState>) -> Result<(), StoreError> {
    let mut after = None::<String>;
    loop {
        let page = Page { after: after.as_deref(), ..Page::FIRST };
        let listing = state.store.rounds_not_done(&page).await?;
        for round in listing.items {
            if round.state == RoundState::Promoted {
                watch_again(state, round).await;
            } else {
                clean_up(state, &round).await;
            }
        }
        after = listing.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Points the name back where it pointed before, or removes it if it was not there, if it was this round that moved it to
/// the candidate and nobody has moved it since; then removes the candidate's own name, also if whoever did the first did
/// not come to the second.
async fn take_back(state: &AppState, round: &StoredRound) -> Result<(), ServiceError> {
    let Some(candidate) = round.candidate else { return Ok(()) };
    let target = name_of(round);
    let last = state.store.alias_moves(&round.owner, &round.name, None, 1).await?;
    let is_ours =
        last.first().is_some_and(|last| last.who == target.who && last.to == Some(candidate));
    let expect = Expect::Generation(GenerationDigest(candidate.0));
    if Some(candidate) != round.parent && is_ours {
        let back = match round.parent.map(|parent| GenerationDigest(parent.0)) {
            Some(parent) => state.adapters.roll_back(target, Some(parent), expect).await.map(drop),
            None => state.adapters.remove(target, expect).await.map(drop),
        };
        match back {
            // Or it does not point there.
            Ok(())
            | Err(
                ServiceError::Registry(
                    RegistryError::Mismatch { .. } | RegistryError::UnknownAlias { .. },
                )
                | ServiceError::Store(
                    StoreError::AliasMoved { .. } | StoreError::UnknownAlias { .. },
                ),
            ) => {}
            Err(error) => return Err(error),
        }
    }
    let named = own_name(state, round);
    if state.adapters.kept(&named).is_none() {
        return Ok(());
    }
    match state.adapters.remove(named, expect).await {
        Ok(_)
        | Err(
            ServiceError::Registry(
                RegistryError::Mismatch { .. } | RegistryError::UnknownAlias { .. },
            )
            | ServiceError::Store(StoreError::AliasMoved { .. } | StoreError::UnknownAlias { .. }),
        ) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ends jobs, removes hidden names, files of folds, and a data set that was made and not begun with.
async fn remove(state: &AppState, round: &StoredRound) -> Result<(), StepError> {
    let of_round: Metadata = [(ROUND.to_owned(), round.id.clone())].into();
    let jobs = state.store.jobs(&round.owner, &of_round, &Page::FIRST).await?;
    for job in jobs.items {
        if !job.status.is_final() {
            match state.store.cancel_job(&round.owner, &job.id).await {
                Ok(_) | Err(StoreError::WrongState { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            state.training.wake();
        }
        state.adapters.forget_candidate(candidate(round, &job.id)).await?;
    }
    for file in state.store.files_of_round(&round.owner, &round.id).await? {
        // The data set stays for as long as what it is made of.
        if round.file.as_ref() != Some(&file.id) {
            delete_file(state, round, &file.id).await?;
        }
    }
    Ok(())
}

/// Removes what killed processes left of rounds that have ended.
async fn sweep(state: &AppState) {
    for alias in state.adapters.hidden() {
        let Some(job) = job_of_candidate(&alias.name) else { continue };
        let Some(owner) = owner_of(alias.namespace.as_str()) else { continue };
        match is_left_over(state, &owner, job).await {
            Ok(false) => {}
            Ok(true) => {
                let name = alias.name.to_string();
                let target = Target { owner, name, who: "sweep of rounds".to_owned() };
                if let Err(error) = state.adapters.forget_candidate(target).await {
                    tracing::warn!(adapter = &*alias.label, %error, "it is removed later");
                }
            }
            Err(error) => tracing::warn!(adapter = &*alias.label, %error, "it is looked at later"),
        }
    }
}

/// Whose namespace this is.
fn owner_of(namespace: &str) -> Option<Owner> {
    if namespace == Owner::Shared.as_str() {
        return Some(Owner::Shared);
    }
    TenantId::parse(namespace).map(Owner::Tenant)
}

async fn is_left_over(state: &AppState, owner: &Owner, job: &str) -> Result<bool, StoreError> {
    let job = match state.store.job(owner, job).await {
        Ok(job) => job,
        Err(StoreError::NotFound { .. }) => return Ok(true),
        Err(error) => return Err(error),
    };
    let Some(round) = job.metadata.get(ROUND) else { return Ok(true) };
    match state.store.round(owner, round).await {
        Ok(round) => Ok(round.state.is_final()),
        Err(StoreError::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}
