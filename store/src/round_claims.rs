//! Which process runs a round.
//!
//! A process that runs rounds has *claimed* them, and says so again now and then. Who has not been heard of for a while has
//! died: another claims its rounds and goes on from the state that was last written.

use std::{collections::HashSet, time::Duration};

use sqlx::AssertSqlSafe;

use crate::{
    beats::{Claim, claim_in},
    error::StoreError,
    rounds::{StoredRound, state_in},
    store::Store,
};

/// Rounds of a statement at most that a process says it runs.
const BEATS_MAX: usize = 500;

/// In the order in which they began. What waits for somebody to agree needs no process.
const NEXT: &str = "SELECT owner, id, runner, beats FROM rounds WHERE ended_ms IS NULL \
     AND (state <> 'awaiting_approval' OR approved = 1) AND runner IS NULL \
     AND ($1 = 1 OR state IN ('awaiting_approval', 'shadow', 'canary')) ORDER BY id LIMIT 1";
/// What may have been left by processes that died.
const HELD: &str = "SELECT owner, id, state, runner, beats FROM rounds WHERE ended_ms IS NULL \
     AND (state <> 'awaiting_approval' OR approved = 1) AND runner IS NOT NULL ORDER BY id";
const CLAIM: &str = "UPDATE rounds SET runner = $3, beats = beats + 1 \
     WHERE owner = $1 AND id = $2 AND ended_ms IS NULL \
     AND (state <> 'awaiting_approval' OR approved = 1) \
     AND COALESCE(runner, '') = $4 AND beats = $5";

impl Store {
    /// Takes the next round that nobody runs, or whose process was not heard of for `silence` while this one looked now and
    /// then, for the process `runner`, which may have many; with `may_work` any, else one that waits.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_round(
        &self,
        runner: &str,
        silence: Duration,
        may_work: bool,
    ) -> Result<Option<StoredRound>, StoreError> {
        let action = "look for a round";
        let failed = |source| StoreError::database(action, source);
        loop {
            let held =
                sqlx::query(HELD).fetch_all(self.database.readers()).await.map_err(failed)?;
            let mut working = HashSet::new();
            let mut claims = Vec::new();
            for row in &held {
                let claim = claim_in(row, "rounds")?;
                if !state_in(row)?.waits() {
                    working.insert(claim.clone());
                }
                claims.push(claim);
            }
            let silent = self.round_beats.silent(claims, silence);
            let mut next = silent.into_iter().find(|claim| may_work || !working.contains(claim));
            if next.is_none() {
                let free = sqlx::query(NEXT).bind(i64::from(may_work));
                let free = free.fetch_optional(self.database.readers());
                let free = free.await.map_err(failed)?;
                next = free.map(|row| claim_in(&row, "rounds")).transpose()?;
            }
            let Some(Claim { owner, id, runner: before, beats }) = next else { return Ok(None) };
            let claimed = sqlx::query(CLAIM)
                .bind(owner.as_str())
                .bind(&id)
                .bind(runner)
                .bind(before)
                .bind(beats)
                .execute(self.database.writers())
                .await
                .map_err(failed)?;
            // Another process may have been first.
            if claimed.rows_affected() == 1 {
                // It may have changed between the two.
                return self.round(&owner, &id).await.map(Some);
            }
        }
    }

    /// Says that a process still runs these of the rounds that it has claimed, by id; how many of them it has.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn beat_rounds(&self, runner: &str, rounds: &[String]) -> Result<u64, StoreError> {
        let mut n_told = 0;
        for rounds in rounds.chunks(BEATS_MAX) {
            let places: Vec<_> =
                (2..).take(rounds.len()).map(|place| format!("${place}")).collect();
            // Only who is open has a runner; these have an index.
            let query = format!(
                "UPDATE rounds SET beats = beats + 1 \
                 WHERE runner = $1 AND ended_ms IS NULL AND id IN ({})",
                places.join(", ")
            );
            // Made of counted placeholders. A statement for each count is not worth keeping.
            let mut query = sqlx::query(AssertSqlSafe(query)).persistent(false).bind(runner);
            for round in rounds {
                query = query.bind(round);
            }
            let told = query
                .execute(self.database.writers())
                .await
                .map_err(|source| StoreError::database("tell of rounds that are run", source))?;
            n_told += told.rows_affected();
        }
        Ok(n_told)
    }

    /// Lets go of a round that this process cannot go on with, or that waits for somebody to agree.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_round(&self, round: &StoredRound, runner: &str) -> Result<(), StoreError> {
        let query = "UPDATE rounds SET runner = NULL WHERE owner = $1 AND id = $2 AND runner = $3";
        sqlx::query(query)
            .bind(round.owner.as_str())
            .bind(&round.id)
            .bind(runner)
            .execute(self.database.writers())
            .await
            .map_err(|source| {
                StoreError::database(format!("let go of round {:?}", round.id), source)
            })?;
        Ok(())
    }
}
