//! `shadow`, `canary`: the candidate on trial, and its way into service.

use std::sync::Arc;

use pleach_adapters::{Expect, GenerationDigest, RegistryError};
use pleach_store::{Decision, RoundState, StoreError, StoredRound};

use super::{
    ending,
    gating::{moved, name_of},
    progress::Progress,
    rollouts::OnTrial,
    steps::{Next, StepError, ends, goes_to, notes, problem},
    training::trained,
    trial::{Breach, Trial, TrialPhase},
    wake::Waiter,
};
use crate::{
    adapter_service::{ServiceError, Target},
    http::{ids, state::AppState},
    learning::runner::LOOK_EVERY,
    training::model_name,
};

/// Looks after a trial, moves the name when it is over, or takes the candidate back.
pub(super) async fn canary(
    state: &AppState,
    round: &StoredRound,
    mut progress: Progress,
) -> Result<Next, StepError> {
    if progress.is_promoting {
        return promote(state, round, progress).await;
    }
    if let Some(next) = moved(state, round) {
        return Ok(next);
    }
    let (space, rollouts) = (name_of(round).space(), &state.learning.rollouts);
    let known = rollouts.of_round(&space, &round.name, &round.id);
    let on_trial = if let Some(on_trial) = known {
        on_trial
    } else {
        let trial = progress.trial.clone().unwrap_or_else(|| {
            let (judged, negative) = progress.usual;
            let salt = ids::random("");
            Trial::new(salt, progress.policy.rollout.clone(), judged, negative)
        });
        if progress.trial.is_none() {
            // First it is kept, so that whoever follows this process goes on with the same users.
            progress.trial = Some(trial);
            return notes(&progress);
        }
        let candidate = trained(state, round, &progress, None).await?;
        let parent = round.parent.map(|parent| GenerationDigest(parent.0));
        let signals = progress.policy.signals.clone();
        let on_trial = OnTrial::new(round.id.clone(), parent, candidate, signals, trial);
        rollouts.begin(&space, &round.name, on_trial)
    };
    let trial = on_trial.trial();
    let (is_done, is_shadow) = (trial.phase == TrialPhase::Done, trial.phase == TrialPhase::Shadow);
    let breach = trial.breach.clone();
    let is_new = progress.trial.as_ref() != Some(&trial);
    progress.trial = Some(trial);
    if let Some(breach) = breach {
        let Next::Change(mut change) = taken_back(&breach) else { return Ok(Next::Wait) };
        change.progress = Some(progress.to_value()?);
        return Ok(Next::Change(change));
    }
    if round.state == RoundState::Shadow && !is_shadow {
        return Ok(Next::Change(Box::new(goes_to(RoundState::Canary, &progress)?)));
    }
    if is_done {
        progress.is_promoting = true;
        return notes(&progress);
    }
    if is_new { notes(&progress) } else { Ok(Next::Wait) }
}

fn taken_back(breach: &Breach) -> Next {
    ends(RoundState::RolledBack, problem(&breach.guardrail, &breach.message))
}

/// Moves the name by compare-and-swap. That this was begun was written before.
async fn promote(
    state: &AppState,
    round: &StoredRound,
    mut progress: Progress,
) -> Result<Next, StepError> {
    let candidate = trained(state, round, &progress, None).await?;
    let target = name_of(round);
    let here = state.adapters.kept(&target).map(|alias| alias.generation.digest);
    if here != Some(candidate.digest) {
        let parent = round.parent.map(|parent| GenerationDigest(parent.0));
        let expect = parent.map_or(Expect::Absent, Expect::Generation);
        let point =
            state.adapters.point_at(target.clone(), Arc::clone(&candidate), expect, "promoted");
        match point.await {
            Ok(_) => {}
            Err(
                ServiceError::Registry(
                    RegistryError::Mismatch { .. } | RegistryError::AliasExists { .. },
                )
                | ServiceError::Store(StoreError::AliasMoved { .. }),
            ) => {
                let message = format!("the adapter `{}` has been moved meanwhile", round.name);
                return Ok(ends(RoundState::Failed, problem("alias_moved", message)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let named = own_name(state, round);
    let made = state.adapters.point_at(named, Arc::clone(&candidate), Expect::Anything, "promoted");
    if let Err(error) = made.await {
        // It serves under the name that matters.
        tracing::warn!(round = round.id, %error, "a promoted generation has no name of its own");
    }
    let (space, rollouts) = (target.space(), &state.learning.rollouts);
    let on_trial = rollouts.of_round(&space, &round.name, &round.id);
    let on_trial = match (on_trial, &progress.trial) {
        (Some(on_trial), _) => Some(on_trial),
        // Another process was at it.
        (None, Some(trial)) => {
            let parent = round.parent.map(|parent| GenerationDigest(parent.0));
            let signals = progress.policy.signals.clone();
            let (id, trial) = (round.id.clone(), trial.clone());
            let on_trial = OnTrial::new(id, parent, candidate, signals, trial);
            Some(rollouts.begin(&space, &round.name, on_trial))
        }
        (None, None) => None,
    };
    if let Some(on_trial) = on_trial {
        progress.trial = Some(on_trial.watch());
    }
    Ok(Next::Change(Box::new(goes_to(RoundState::Promoted, &progress)?)))
}

/// `ft:BASE:OWNER:NAME:ID`, under which a promoted generation can be asked for whatever its name points at.
pub(super) fn own_name(state: &AppState, round: &StoredRound) -> Target {
    let base = state.adapters.registry().base_names().first().cloned().unwrap_or_default();
    let name = model_name(&base, round.owner.as_str(), Some(&round.name), &round.id);
    Target { name, ..name_of(round) }
}

/// Watches what was promoted before this process was there, or by another, if nobody does so here: from the beginning, as how
/// much of it was done is not stored.
pub(super) async fn watch_again(state: &Arc<AppState>, round: StoredRound) {
    let target = name_of(&round);
    let (space, rollouts) = (target.space(), &state.learning.rollouts);
    if rollouts.of_round(&space, &round.name, &round.id).is_some() {
        return;
    }
    if let Err(error) = state.adapters.refresh(target.clone()).await {
        tracing::warn!(round = round.id, %error, "where its name points is looked at later");
        return;
    }
    let digest = round.candidate.map(|candidate| GenerationDigest(candidate.0));
    let here = state.adapters.kept(&target).filter(|here| Some(here.generation.digest) == digest);
    let Progress { trial: Some(mut trial), policy, .. } = (match Progress::of(&round) {
        Ok(progress) => progress,
        Err(error) => {
            tracing::warn!(round = round.id, %error, "it was promoted and cannot be watched");
            return;
        }
    }) else {
        return ending::settle(state, &round).await;
    };
    let (Some(alias), TrialPhase::Watched) = (here, trial.phase) else {
        return ending::settle(state, &round).await;
    };
    (trial.in_phase, trial.errors_in_phase) = (0, 0);
    let (id, parent) = (round.id.clone(), round.parent.map(|parent| GenerationDigest(parent.0)));
    let on_trial = OnTrial::new(id, parent, alias.generation, policy.signals, trial);
    rollouts.begin(&space, &round.name, on_trial);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let mut waiter = state.learning.wake.waiter();
        watch(&state, &round, &mut waiter).await;
    });
}

/// Watches a promoted candidate until it has served long enough, somebody moves the name, or a guardrail is breached.
pub(super) async fn watch(state: &Arc<AppState>, round: &StoredRound, waiter: &mut Waiter) {
    let (space, rollouts) = (name_of(round).space(), &state.learning.rollouts);
    while state.is_serving() {
        let Some(on_trial) = rollouts.of_round(&space, &round.name, &round.id) else { return };
        let trial = on_trial.trial();
        // Another process may have taken it back.
        if let Err(error) = state.adapters.refresh(name_of(round)).await {
            tracing::warn!(round = round.id, %error, "where its name points is looked at later");
        }
        let here = state.adapters.kept(&name_of(round)).map(|alias| alias.generation.digest);
        if trial.phase == TrialPhase::Settled || here != Some(on_trial.candidate.digest) {
            // First, so that nobody begins anew.
            ending::settle(state, round).await;
            rollouts.end(&space, &round.name, &round.id);
            return;
        }
        if let Some(breach) = &trial.breach {
            let reason = format!("{}: {}", breach.guardrail, breach.message);
            let (owner, id) = (&round.owner, &round.id);
            let decided =
                state.store.decide_round(owner, id, Decision::RollBack, "guardrail", &reason).await;
            match decided {
                Ok(decided) => {
                    state.telemetry.count_round(decided.state.name());
                    ending::clean_up(state, &decided).await;
                    return;
                }
                // A person was faster.
                Err(StoreError::WrongState { .. } | StoreError::NotFound { .. }) => {
                    rollouts.end(&space, &round.name, &round.id);
                    return;
                }
                Err(error) => tracing::warn!(round = id, %error, "it is taken back later"),
            }
        }
        waiter.wait(LOOK_EVERY).await;
    }
}
