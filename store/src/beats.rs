//! Whether a process that has claimed something still lives.
//!
//! Who runs a job or a round lets the row's counter grow now and then. Whoever looks times by its own clock, which never
//! jumps, for how long the counter has been the same: no two machines' clocks are compared, nor one's before and after it was
//! set. So nobody is taken for dead before it was watched for as long as that takes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::any::AnyRow;

use crate::{error::StoreError, owner::Owner, row::Fields};

/// Something that a process has claimed or may claim, as it was seen. It is claimed from there, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) owner: Owner,
    pub(crate) id: String,
    /// The process; empty is none.
    pub(crate) runner: String,
    pub(crate) beats: i64,
}

/// Since when each claim has been as it is.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    // A std mutex: held for a walk over what others run, never over an await.
    seen: Mutex<HashMap<Claim, Instant>>,
}

impl Beats {
    /// Takes in all claims that there are now; those that have not changed for `silence`, in their order.
    pub(crate) fn silent(&self, claims: Vec<Claim>, silence: Duration) -> Vec<Claim> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = std::mem::take(&mut *seen);
        let since = |claim: &Claim| before.get(claim).copied().unwrap_or(now);
        *seen = claims.iter().map(|claim| (claim.clone(), since(claim))).collect();
        let is_silent = |claim: &Claim| now.saturating_duration_since(since(claim)) >= silence;
        claims.into_iter().filter(is_silent).collect()
    }
}

/// Reads a row with the columns of a claim.
pub(crate) fn claim_in(row: &AnyRow, table: &'static str) -> Result<Claim, StoreError> {
    let fields = Fields { row, table };
    Ok(Claim {
        owner: fields.owner("owner")?,
        id: fields.text("id")?,
        runner: fields.maybe_text("runner")?.unwrap_or_default(),
        beats: fields.int("beats")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str, runner: &str, beats: i64) -> Claim {
        Claim { owner: Owner::Shared, id: id.to_owned(), runner: runner.to_owned(), beats }
    }

    #[test]
    fn who_is_not_heard_of_is_silent_after_it_was_watched_for_so_long() {
        let beats = Beats::default();
        let silence = Duration::from_millis(20);
        let wait = || std::thread::sleep(Duration::from_millis(25));
        let dead = claim("a", "p1", 7);
        // However long ago it died: nobody has watched it yet.
        assert_eq!(beats.silent(vec![dead.clone(), claim("b", "p2", 1)], silence), []);
        wait();
        let now = vec![dead.clone(), claim("b", "p2", 2), claim("c", "p2", 1)];
        assert_eq!(beats.silent(now, silence), std::slice::from_ref(&dead));
        wait();
        // Another has it, and the counter of one that was gone for a while is looked at anew.
        let now = vec![claim("a", "p3", 7), claim("b", "p2", 3)];
        assert_eq!(beats.silent(now, silence), []);
        let again = claim("c", "p2", 1);
        assert_eq!(beats.silent(vec![again.clone()], silence), []);
        assert_eq!(beats.silent(vec![again.clone()], Duration::ZERO), [again]);
    }
}
