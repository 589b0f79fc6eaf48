//! Whom to drain for who is first in line and has waited long enough.

use std::time::Duration;

use tokio::time::Instant;

use super::{Entry, List, Place, Tiers};
use crate::digest::GenerationDigest;

/// Shortest unit of patience, so that draining has steps even if it begins at once.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// First in line for the device, without room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    ticket: u64,
    since: Instant,
}

impl<P, L: Clone> Tiers<P, L> {
    /// When residents may be drained for a generation in line. Counts its whole wait in line: who has waited behind
    /// others does not wait again.
    pub(super) fn drains_from(&self, digest: GenerationDigest) -> Instant {
        let ready_since = self.entries.get(&digest).and_then(|entry| entry.ready_since);
        ready_since.unwrap_or(self.now) + self.config.drain_after
    }

    /// Drains what the first in line needs, and no more than that.
    pub(super) fn drain_for(&mut self, ticket: u64, digest: GenerationDigest) {
        let since = match self.head {
            Some(head) if head.ticket == ticket => head.since,
            _ => self.now,
        };
        self.head = Some(Head { ticket, since });
        let drains_from = self.drains_from(digest);
        if self.now < drains_from {
            self.stop_draining();
            self.head = Some(Head { ticket, since });
            self.wake_at(drains_from);
            return;
        }
        let begun = drains_from.max(since);
        let pause = self.config.drain_after.max(PAUSE_MIN);
        let (mut n_extra, next) = patience(self.now.duration_since(begun), pause);
        self.wake_at(begun + next);

        let (mut bytes, mut n) = (0, 0);
        let mut keep = |tiers: &Self, candidate: GenerationDigest| {
            if tiers.would_fit(digest, bytes, n) {
                let is_extra = n_extra > 0;
                n_extra = n_extra.saturating_sub(1);
                return is_extra;
            }
            bytes += tiers.entries.get(&candidate).map_or(0, |entry| entry.bytes);
            n += 1;
            true
        };
        let mut surplus = Vec::new();
        for (_, draining) in self.lists.iter(List::Draining) {
            if !keep(self, draining) {
                surplus.push(draining);
            }
        }
        let busy = self.lists.iter(List::Busy).map(|(_, digest)| digest);
        let chosen: Vec<_> = busy.take_while(|&busy| keep(self, busy)).collect();
        for digest in surplus {
            self.undrain(digest);
        }
        for digest in chosen {
            self.drain(digest);
        }
    }

    /// Drains one resident more.
    pub(super) fn drain_one(&mut self) {
        if let Some((_, digest)) = self.lists.first(List::Busy) {
            self.drain(digest);
        }
    }

    /// All residents take requests again.
    pub(super) fn stop_draining(&mut self) {
        self.head = None;
        self.undrain_if(|_, _| true);
    }

    /// A resident takes requests again: those that were held back are granted.
    pub(super) fn undrain(&mut self, digest: GenerationDigest) {
        if let Some(entry) = self.entries.get_mut(&digest)
            && let Place::Resident { is_draining, .. } = &mut entry.place
        {
            *is_draining = false;
            self.n_waiting -= usize::from(entry.prefetch.take().is_some());
            self.grant(digest);
        }
    }

    /// A resident that holds back a request which came before the one in line takes requests again: it was drained for
    /// another, that has left.
    pub(super) fn undrain_earlier_than(&mut self, ticket: u64) {
        self.undrain_if(|tiers, draining| {
            let first = tiers.entries.get(&draining).and_then(Entry::first_ticket);
            first.is_some_and(|first| first < ticket)
        });
    }

    fn undrain_if(&mut self, choose: impl Fn(&Self, GenerationDigest) -> bool) {
        let draining = self.lists.iter(List::Draining).map(|(_, digest)| digest);
        let chosen: Vec<_> = draining.filter(|&digest| choose(self, digest)).collect();
        for digest in chosen {
            self.undrain(digest);
        }
    }

    fn drain(&mut self, digest: GenerationDigest) {
        if let Some(entry) = self.entries.get_mut(&digest)
            && let Place::Resident { is_draining, .. } = &mut entry.place
        {
            self.counted.drains += 1;
            *is_draining = true;
        }
        self.settle(digest);
    }
}

/// How many residents more than needed are drained after so long, and when there will be one more: one more after 1
/// pause, two after 3, three after 7, … since the first was chosen. Who was asked for longest ago may be just the one
/// that never ends.
fn patience(waited: Duration, pause: Duration) -> (u32, Duration) {
    let n_pauses = u64::try_from(waited.as_nanos() / pause.as_nanos()).unwrap_or(u64::MAX);
    let n_extra = n_pauses.saturating_add(1).ilog2();
    let next_pauses = (1_u32 << (n_extra + 1).min(31)) - 1;
    (n_extra, pause.saturating_mul(next_pauses))
}
