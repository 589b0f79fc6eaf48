//! When rounds begin.

use pleach_adapters::GenerationDigest;
use pleach_store::{NewRound, Owner, Page, StoreError, StoredPolicy, StoredRound};

use super::{
    policy::{Policy, TrainWhen},
    progress::{Progress, Trigger},
};
use crate::{adapter_service::Target, http::state::AppState, telemetry::unix_time};

const HOUR_MS: f64 = 3_600_000.0;

/// What a round begins with.
#[derive(Debug)]
pub struct Begin {
    /// The policy, as it is now.
    pub policy: Policy,
    /// What begins it.
    pub trigger: Trigger,
    /// A generation that is to be made again from what is left of its data.
    pub rebuild_of: Option<GenerationDigest>,
}

/// Begins a round from where the name points now, or from the base if that answers under it; `None` if the owner has no such
/// name.
///
/// # Errors
/// [`StoreError::RoundOpen`]; a store that fails.
pub async fn begin(
    state: &AppState,
    owner: &Owner,
    name: &str,
    begin: Begin,
) -> Result<Option<StoredRound>, StoreError> {
    let target = Target { owner: owner.clone(), name: name.to_owned(), who: String::new() };
    // Another process may have made the name, or moved it.
    if let Err(error) = state.adapters.refresh(target.clone()).await {
        tracing::warn!(%owner, adapter = name, %error, "a round begins where the name was known to point");
    }
    let parent = match state.adapters.kept(&target) {
        // One of another base serves nobody.
        Some(alias) if alias.generation.other_base().is_some() => return Ok(None),
        Some(alias) => Some(alias.generation.digest),
        None if begin.policy.begins_at_base => None,
        None => return Ok(None),
    };
    let newest = match begin.rebuild_of {
        None => state.store.count_labelled(owner, name, None).await?.newest,
        // It learns from nothing new: that is still for the next one to wait for.
        Some(_) => newest_round(state, owner, name).await?.as_ref().and_then(newest_feedback),
    };
    let progress = Progress::new(begin.policy, begin.trigger, newest);
    let progress = progress.to_value().map_err(|error| StoreError::Corrupt {
        table: "rounds",
        column: "progress",
        reason: error.to_string(),
    })?;
    let to_store = |digest: GenerationDigest| pleach_store::GenerationDigest(digest.0);
    let round = NewRound {
        name,
        parent: parent.map(to_store),
        rebuild_of: begin.rebuild_of.map(to_store),
        progress,
    };
    let made = state.store.create_round(owner, &round).await?;
    state.learning.wake.all();
    Ok(Some(made))
}

/// Begins the rounds whose time has come. What keeps one from it is no other's business, unless it is the database.
pub(super) async fn look(state: &AppState) -> Result<(), StoreError> {
    if !state.training.is_on() {
        return Ok(());
    }
    for stored in all(state).await? {
        match begin_if_due(state, &stored).await {
            Ok(()) => {}
            Err(error @ StoreError::Database { .. }) => return Err(error),
            Err(error) => {
                let StoredPolicy { owner, name, .. } = &stored;
                tracing::warn!(%owner, adapter = name, %error, "no round of it can begin");
            }
        }
    }
    Ok(())
}

/// Begins the round of a policy, if its time has come.
async fn begin_if_due(state: &AppState, stored: &StoredPolicy) -> Result<(), StoreError> {
    let StoredPolicy { owner, name, .. } = stored;
    let Some(policy) = read(stored).filter(|policy| policy.is_on) else { return Ok(()) };
    let last = newest_round(state, owner, name).await?;
    if last.as_ref().is_some_and(|round| !round.state.is_final()) {
        return Ok(());
    }
    let seen = last.as_ref().and_then(newest_feedback);
    let new = state.store.count_labelled(owner, name, seen.as_deref()).await?;
    let now_ms = i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX);
    let Some(trigger) = due(policy.train_when, new.feedback, new.oldest_ms, now_ms) else {
        return Ok(());
    };
    match begin(state, owner, name, Begin { policy, trigger, rebuild_of: None }).await {
        Ok(Some(round)) => {
            tracing::info!(round = round.id, %owner, adapter = name, ?trigger, "a round begins");
            Ok(())
        }
        // Its name is not there; or another process was faster.
        Ok(None) | Err(StoreError::RoundOpen { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What makes a round begin now, of so much new feedback of which the oldest came then.
fn due(when: TrainWhen, n_feedback: u64, oldest_ms: Option<i64>, now_ms: i64) -> Option<Trigger> {
    if n_feedback == 0 {
        return None;
    }
    if n_feedback >= when.examples {
        return Some(Trigger::Examples);
    }
    let age_ms = now_ms.saturating_sub(oldest_ms?) as f64;
    (age_ms >= when.age_hours? * HOUR_MS).then_some(Trigger::Age)
}

async fn newest_round(
    state: &AppState,
    owner: &Owner,
    name: &str,
) -> Result<Option<StoredRound>, StoreError> {
    let page = Page { after: None, rows_max: 1 };
    Ok(state.store.rounds(owner, name, &page).await?.items.into_iter().next())
}

/// The last feedback that had come when a round began.
fn newest_feedback(round: &StoredRound) -> Option<String> {
    Progress::of(round).ok()?.newest_feedback
}

/// A stored policy, unless a later version wrote what this one cannot read.
fn read(stored: &StoredPolicy) -> Option<Policy> {
    let policy = serde_json::from_value(stored.body.clone());
    policy
        .inspect_err(|error| {
            tracing::warn!(owner = %stored.owner, adapter = stored.name, %error, "its policy cannot be read");
        })
        .ok()
}

async fn all(state: &AppState) -> Result<Vec<StoredPolicy>, StoreError> {
    let (mut policies, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = Page { after: after.as_deref(), ..Page::FIRST };
        let listing = state.store.policies(&page).await?;
        policies.extend(listing.items);
        after = listing.next;
        if after.is_none() {
            return Ok(policies);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_or_old_enough() {
        let when = TrainWhen { examples: 10, age_hours: Some(2.0) };
        #[expect(clippy::cast_possible_truncation, reason = "whole numbers of tenths of hours")]
        let hour = |hours: f64| 1_000_000_000 + (hours * HOUR_MS) as i64;
        let old = Some(hour(0.0));
        assert_eq!(due(when, 0, None, hour(9.0)), None);
        assert_eq!(due(when, 9, old, hour(1.9)), None);
        assert_eq!(due(when, 10, old, hour(0.0)), Some(Trigger::Examples));
        assert_eq!(due(when, 1, old, hour(2.0)), Some(Trigger::Age));
        assert_eq!(due(TrainWhen { age_hours: None, ..when }, 9, old, hour(1e6)), None);
    }
}
