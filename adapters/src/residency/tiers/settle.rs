//! What follows from a change of one entry: its lists, its answers, its end.

use std::sync::Arc;

use super::{Effect, Entry, Place, Tiers};
use crate::{digest::GenerationDigest, residency::ResidencyError};

impl<P, L: Clone> Tiers<P, L> {
    /// After every change of an entry: puts it where it belongs, and forgets it when nothing is left of it.
    pub(super) fn settle(&mut self, digest: GenerationDigest) {
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        if entry.is_forgotten && !entry.is_wanted() {
            if let Place::Resident { lease, n_users: 0, .. } = &entry.place {
                self.effects.push(Effect::DropLease(lease.clone()));
                self.counted.device_evictions += 1;
                entry.place = Place::Absent;
            }
            if !entry.is_installing()
                && let Some(packed) = entry.packed.take()
            {
                self.counted.host_evictions += 1;
                self.effects.push(Effect::DropPacked(packed));
            }
        }
        let ranks = entry.ranks();
        let is_ready = ranks[super::List::Ready as usize].is_some();
        entry.ready_since = is_ready.then(|| entry.ready_since.unwrap_or(self.now));
        let before = std::mem::replace(&mut entry.listed, ranks);
        self.lists.relist(digest, entry.bytes, &before, &ranks);
        if !entry.is_alive() {
            self.entries.remove(&digest);
        }
    }

    /// Puts a packed form into host memory.
    pub(super) fn store(&mut self, digest: GenerationDigest, packed: Arc<P>, bytes: usize) {
        let Some(entry) = self.entries.get_mut(&digest) else {
            // Shut down in the meantime.
            self.effects.push(Effect::DropPacked(packed));
            return;
        };
        entry.is_loading = false;
        if entry.packed.is_some() || !matches!(entry.place, Place::Absent) {
            // Came twice, from a load and from an upload; the bytes that are listed stay as they are.
            self.effects.push(Effect::DropPacked(packed));
        } else {
            // Lists count bytes, and none but that of loads has it now.
            let before = std::mem::take(&mut entry.listed);
            self.lists.relist(digest, entry.bytes, &before, &entry.listed);
            entry.bytes = bytes;
            entry.packed = Some(packed);
            if let Some(error) = self.never_fits(digest) {
                // Now, and not when its turn comes.
                self.refuse(digest, &error);
            }
        }
        self.settle(digest);
    }

    /// Gives all who wait for a resident generation their lease.
    pub(super) fn grant(&mut self, digest: GenerationDigest) {
        let number = self.next_number();
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        let waiters = std::mem::take(&mut entry.waiters);
        if let Place::Resident { lease, n_users, .. } = &mut entry.place {
            if !waiters.is_empty() {
                entry.used_at = number;
            }
            *n_users += waiters.len();
            self.n_waiting -= waiters.len();
            for reply in waiters.into_values() {
                self.effects.push(Effect::Grant { reply, digest, lease: lease.clone() });
            }
        } else {
            unreachable!("generation {} is not resident", digest.short());
        }
        self.settle(digest);
    }

    /// Gives all who wait for a generation this error.
    pub(super) fn refuse(&mut self, digest: GenerationDigest, error: &ResidencyError) {
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        self.n_waiting -= entry.n_waiting();
        entry.prefetch = None;
        for reply in std::mem::take(&mut entry.waiters).into_values() {
            self.effects.push(Effect::Refuse { reply, error: error.clone() });
        }
        self.settle(digest);
    }

    /// [`Self::refuse`], also for whoever comes in the next moment.
    pub(super) fn fail(&mut self, digest: GenerationDigest, error: ResidencyError) {
        self.refuse(digest, &error);
        self.failures.put(digest, error, self.now);
    }

    /// Whether a request that cannot be granted at once is refused at once.
    pub(super) fn refusal(&self, digest: GenerationDigest) -> Result<(), ResidencyError> {
        if let Some(error) = self.failures.get(digest, self.now) {
            return Err(error.clone());
        }
        if let Some(error) = self.never_fits(digest) {
            return Err(error);
        }
        if self.n_waiting >= self.config.max_waiting {
            return Err(ResidencyError::QueueFull { waiting: self.n_waiting });
        }
        Ok(())
    }

    /// The error of a generation that cannot become resident, as far as its size is known.
    pub(super) fn never_fits(&self, digest: GenerationDigest) -> Option<ResidencyError> {
        let entry = self.entries.get(&digest)?;
        if !matches!(entry, Entry { place: Place::Absent, packed: Some(_), .. }) {
            return None;
        }
        let available = self.capacity_bytes - self.lists.bytes(super::List::Pinned);
        if entry.bytes > available {
            let (needed, capacity) = (entry.bytes, self.capacity_bytes);
            return Some(ResidencyError::NeverFits { digest, needed, available, capacity });
        }
        let max_loras = self.max_loras();
        (self.lists.len(super::List::Pinned) >= max_loras)
            .then_some(ResidencyError::AllPlacesPinned { digest, max_loras })
    }
}
