//! The line for the device: who is next, who must go for it, and what to do when the device disagrees with our books.

use std::time::Duration;

use tokio::time::Instant;

use super::{Effect, List, Place, Tiers};
use crate::{digest::GenerationDigest, residency::ResidencyError};

/// First and longest pause after the device had no room; each is twice the one before.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(64);

/// After so many refusals in a row it is not only memory on its way back: what is free lies in pieces. From then on
/// each refusal costs another resident its place.
const REFUSALS_BEFORE_EVICTION: u32 = 3;

/// The device had no room for a generation that should fit. Until it has, nobody else is installed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortage {
    digest: GenerationDigest,
    since: Instant,
    refusals: u32,
    retry_at: Instant,
}

/// Whether a generation can be installed now.
enum Room {
    Made,
    NotYet,
    Never(ResidencyError),
}

impl<P, L: Clone> Tiers<P, L> {
    /// Evicts what lowered limits forbid.
    pub(super) fn trim_device(&mut self) {
        while self.lists.len(List::Device) > self.max_loras() && self.evict_idle() {}
    }

    /// Starts installs, in order, as far as there is room.
    pub(super) fn serve(&mut self) {
        loop {
            if self.is_retry_under_way() {
                return;
            }
            let shortage = self.shortage.map(|shortage| shortage.digest);
            let next = shortage.and_then(|digest| {
                let ticket = self.entries.get(&digest)?.first_ticket()?;
                Some((ticket, digest))
            });
            let Some((ticket, digest)) = next.or_else(|| self.lists.first(List::Ready)) else {
                self.stop_draining();
                return;
            };
            self.undrain_earlier_than(ticket);
            if self.lists.len(List::Installing) >= self.config.max_installs.max(1) {
                return;
            }
            match self.make_room(digest) {
                Room::Made => self.start_install(digest),
                Room::Never(error) => self.refuse(digest, &error),
                Room::NotYet if self.is_only_prefetched(digest) => self.drop_prefetch(digest),
                Room::NotYet => {
                    self.drain_for(ticket, digest);
                    return;
                }
            }
        }
    }

    /// The device had no room. Whoever ran short first keeps its place until it has room or gives up.
    pub(super) fn run_short(&mut self, digest: GenerationDigest) {
        if self.is_only_prefetched(digest) {
            self.settle_shortage(digest);
            self.drop_prefetch(digest);
            return;
        }
        let fresh = Shortage { digest, since: self.now, refusals: 0, retry_at: self.now };
        let mut shortage = self.shortage.unwrap_or(fresh);
        if shortage.digest != digest {
            return;
        }
        let waited = self.now.duration_since(shortage.since);
        let Some(entry) = self.entries.get(&digest).filter(|entry| entry.is_wanted()) else {
            self.shortage = None;
            return;
        };
        if waited >= self.config.out_of_memory_patience {
            let needed = entry.bytes;
            self.shortage = None;
            self.refuse(digest, &ResidencyError::DeviceFull { digest, needed, waited });
            return;
        }
        let pause = RETRY_PAUSE.saturating_mul(1 << shortage.refusals.min(16));
        shortage.retry_at = self.now + pause.min(RETRY_PAUSE_MAX);
        shortage.refusals = shortage.refusals.saturating_add(1);
        self.shortage = Some(shortage);
        if shortage.refusals > REFUSALS_BEFORE_EVICTION && !self.evict_idle() {
            self.drain_one();
        }
    }

    /// This generation has its place, or no hope of one.
    pub(super) fn settle_shortage(&mut self, digest: GenerationDigest) {
        self.shortage = self.shortage.filter(|shortage| shortage.digest != digest);
    }

    /// Whether the line has to wait for who ran short. Ends the shortage if nobody wants that generation any more.
    fn is_retry_under_way(&mut self) -> bool {
        let Some(shortage) = self.shortage else { return false };
        let Some(entry) = self.entries.get(&shortage.digest) else {
            self.shortage = None;
            return false;
        };
        if entry.is_installing() {
            return true;
        }
        if entry.ready_since.is_none() {
            self.shortage = None;
            return false;
        }
        let is_early = self.now < shortage.retry_at;
        if is_early {
            self.wake_at(shortage.retry_at);
        }
        is_early
    }

    /// Evicts idle residents, least recently used first, if that makes room; also if it does not, once the generation has
    /// waited long enough to have residents drained.
    fn make_room(&mut self, digest: GenerationDigest) -> Room {
        if let Some(error) = self.never_fits(digest) {
            return Room::Never(error);
        }
        let (idle_bytes, n_idle) = (self.lists.bytes(List::Idle), self.lists.len(List::Idle));
        let is_enough = self.would_fit(digest, idle_bytes, n_idle);
        if !is_enough && self.now < self.drains_from(digest) {
            return Room::NotYet;
        }
        while !self.would_fit(digest, 0, 0) {
            if !self.evict_idle() {
                return Room::NotYet;
            }
        }
        Room::Made
    }

    /// Whether there is room when so many bytes and so many residents are gone.
    pub(super) fn would_fit(&self, digest: GenerationDigest, bytes: usize, n: usize) -> bool {
        let needed = self.entries.get(&digest).map_or(0, |entry| entry.bytes);
        self.lists.bytes(List::Device) - bytes + needed <= self.capacity_bytes
            && self.lists.len(List::Device) - n < self.max_loras()
    }

    /// Evicts the least recently used of those that may go. Whether there was one.
    fn evict_idle(&mut self) -> bool {
        let Some((_, digest)) = self.lists.first(List::Idle) else { return false };
        if let Some(entry) = self.entries.get_mut(&digest)
            && let Place::Resident { lease, n_users, .. } =
                std::mem::replace(&mut entry.place, Place::Absent)
        {
            assert_eq!(n_users, 0, "generation {} is in use", digest.short());
            self.counted.device_evictions += 1;
            self.effects.push(Effect::DropLease(lease));
        }
        self.settle(digest);
        true
    }

    fn start_install(&mut self, digest: GenerationDigest) {
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.place = Place::Installing;
            self.effects.extend(entry.packed.clone().map(|packed| Effect::Install(digest, packed)));
        }
        self.settle(digest);
    }

    fn is_only_prefetched(&self, digest: GenerationDigest) -> bool {
        self.entries
            .get(&digest)
            .is_some_and(|entry| entry.waiters.is_empty() && entry.prefetch.is_some())
    }

    fn drop_prefetch(&mut self, digest: GenerationDigest) {
        if let Some(entry) = self.entries.get_mut(&digest) {
            self.n_waiting -= usize::from(entry.prefetch.take().is_some());
        }
        self.settle(digest);
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        debug_assert!(at > self.now, "a wake-up in the past");
        self.wake_at = self.wake_at.into_iter().chain([at]).min();
    }
}
