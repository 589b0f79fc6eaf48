//! The decisions about all tiers, as a state machine: events in, [`Effect`]s out, time as an argument.
//!
//! Events are the public methods; each changes one [`Entry`] and settles it in its lists. [`Tiers::decide`] then looks
//! at the lists alone: `serve.rs` at the line for the device and whom to evict, `drain.rs` at whom to drain for who is
//! first in that line, `host.rs` at host memory and loads. Every decision costs O(log n), but for draining, which
//! costs what it drains.

mod drain;
mod entry;
mod failures;
mod host;
mod lists;
mod serve;
mod settle;

#[cfg(test)]
mod check;

use std::{collections::HashMap, sync::Arc, time::Duration};

use drain::Head;
use entry::{Entry, Place, Reply};
use failures::Failures;
use lists::{List, Lists};
use serve::Shortage;
use tokio::{sync::oneshot, time::Instant};

use super::{
    InstallError, ResidencyConfig, ResidencyError, ResidencyLimits, ResidencyStats, ResidentLease,
    Tier,
};
use crate::digest::GenerationDigest;

/// Longer is never; keeps sums of times within their range.
const DRAIN_AFTER_MAX: Duration = Duration::from_hours(24);

/// What a load brings: the packed form and its bytes.
pub(super) type Loaded<P> = Result<(Arc<P>, usize), Box<dyn std::error::Error + Send + Sync>>;

/// What must be done after the lock, in this order.
#[derive(Debug)]
pub(super) enum Effect<P, L> {
    /// Hand out a lease; it is counted as a user already.
    Grant {
        reply: Reply<L>,
        digest: GenerationDigest,
        lease: L,
    },
    Refuse {
        reply: Reply<L>,
        error: ResidencyError,
    },
    /// Load, then call [`Tiers::loaded`].
    Load(GenerationDigest),
    /// Install, then call [`Tiers::installed`].
    Install(GenerationDigest, Arc<P>),
    DropLease(L),
    DropPacked(Arc<P>),
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Requested<L> {
    /// It is counted as a user already.
    Granted(L),
    Waits {
        /// For [`Tiers::cancel`].
        ticket: u64,
        answer: oneshot::Receiver<Result<ResidentLease<L>, ResidencyError>>,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tiers<P, L> {
    config: ResidencyConfig,
    limits: ResidencyLimits,
    capacity_bytes: usize,
    entries: HashMap<GenerationDigest, Entry<P, L>>,
    lists: Lists,
    failures: Failures,
    /// Who is first in line and finds no room.
    head: Option<Head>,
    /// Whom the device had no room for, against our books.
    shortage: Option<Shortage>,
    n_waiting: usize,
    /// The last ticket, id or time of use given out.
    last_number: u64,
    now: Instant,
    wake_at: Option<Instant>,
    effects: Vec<Effect<P, L>>,
    /// Its counters only.
    counted: ResidencyStats,
    is_shut_down: bool,
}

impl<P, L: Clone> Tiers<P, L> {
    pub(super) fn new(config: ResidencyConfig, capacity_bytes: usize) -> Self {
        let drain_after = config.drain_after.min(DRAIN_AFTER_MAX);
        Self {
            config: ResidencyConfig { drain_after, ..config },
            limits: config.limits,
            capacity_bytes,
            entries: HashMap::new(),
            lists: Lists::default(),
            failures: Failures::new(config.failure_kept),
            head: None,
            shortage: None,
            n_waiting: 0,
            last_number: 0,
            now: Instant::now(),
            wake_at: None,
            effects: Vec::new(),
            counted: ResidencyStats::default(),
            is_shut_down: false,
        }
    }

    /// Before every event.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// After every event: what to do, and when to decide again if nothing happens until then.
    pub(super) fn decide(&mut self) -> (Vec<Effect<P, L>>, Option<Instant>) {
        self.wake_at = None;
        if !self.is_shut_down {
            self.trim_device();
            self.serve();
            self.trim_host();
            self.start_loads();
        }
        (std::mem::take(&mut self.effects), self.wake_at)
    }

    /// A request. Granted if the generation is resident and takes requests.
    pub(super) fn request(
        &mut self,
        digest: GenerationDigest,
    ) -> Result<Requested<L>, ResidencyError> {
        if self.is_shut_down {
            return Err(ResidencyError::ShuttingDown);
        }
        let number = self.next_number();
        if let Some(entry) = self.entries.get_mut(&digest)
            && let Place::Resident { lease, n_users, is_draining: false } = &mut entry.place
        {
            *n_users += 1;
            entry.used_at = number;
            let lease = lease.clone();
            self.counted.device_hits += 1;
            self.settle(digest);
            return Ok(Requested::Granted(lease));
        }
        self.refusal(digest)?;
        let entry = self.entries.entry(digest).or_insert_with(|| Entry::new(number));
        let (reply, answer) = oneshot::channel();
        entry.waiters.insert(number, reply);
        let counter = match (&entry.place, &entry.packed) {
            (Place::Resident { .. }, _) => &mut self.counted.held_back,
            (_, Some(_)) => &mut self.counted.host_hits,
            (_, None) => &mut self.counted.misses,
        };
        *counter += 1;
        self.n_waiting += 1;
        self.settle(digest);
        Ok(Requested::Waits { ticket: number, answer })
    }

    /// A request is taken back; without effect if it was answered.
    pub(super) fn cancel(&mut self, digest: GenerationDigest, ticket: u64) {
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        if entry.waiters.remove(&ticket).is_some() {
            self.n_waiting -= 1;
            self.settle(digest);
        }
    }

    /// The last clone of a lease is gone.
    pub(super) fn release(&mut self, digest: GenerationDigest) {
        let number = self.next_number();
        // No entry: shut down in the meantime.
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        let Place::Resident { n_users, .. } = &mut entry.place else {
            unreachable!("generation {} was in use and not resident", digest.short())
        };
        assert!(*n_users > 0, "a lease of {} came back twice", digest.short());
        *n_users -= 1;
        if *n_users == 0 {
            entry.used_at = number;
        }
        self.settle(digest);
    }

    /// Like a request of nobody.
    pub(super) fn prefetch(&mut self, digest: GenerationDigest) {
        let number = self.next_number();
        if let Some(entry) = self.entries.get_mut(&digest) {
            let is_served = match entry.place {
                Place::Absent => false,
                Place::Installing => true,
                Place::Resident { is_draining, .. } => {
                    // So that it is still there when the request comes.
                    entry.used_at = number;
                    !is_draining
                }
            };
            if is_served || entry.is_wanted() {
                self.settle(digest);
                return;
            }
        }
        if self.is_shut_down || self.refusal(digest).is_err() {
            self.settle(digest);
            return;
        }
        self.entries.entry(digest).or_insert_with(|| Entry::new(number)).prefetch = Some(number);
        self.n_waiting += 1;
        self.settle(digest);
    }

    /// A load has ended.
    pub(super) fn loaded(&mut self, digest: GenerationDigest, loaded: Loaded<P>) {
        match loaded {
            Ok((packed, bytes)) => {
                self.counted.loads += 1;
                self.store(digest, packed, bytes);
            }
            Err(reason) => {
                self.counted.load_failures += 1;
                let Some(entry) = self.entries.get_mut(&digest) else { return };
                entry.is_loading = false;
                // An upload may have brought it while a broken file was read.
                if entry.packed.is_none() && matches!(entry.place, Place::Absent) {
                    self.fail(digest, ResidencyError::LoadFailed { digest, reason: reason.into() });
                }
                self.settle(digest);
            }
        }
    }

    /// A packed form from elsewhere.
    pub(super) fn offer(&mut self, digest: GenerationDigest, packed: Arc<P>, bytes: usize) {
        if self.is_shut_down {
            self.effects.push(Effect::DropPacked(packed));
            return;
        }
        let number = self.next_number();
        self.failures.remove(digest);
        let entry = self.entries.entry(digest).or_insert_with(|| Entry::new(number));
        (entry.is_forgotten, entry.is_earlier) = (false, false);
        let is_loading = entry.is_loading;
        self.store(digest, packed, bytes);
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.is_loading = is_loading;
            self.settle(digest);
        }
    }

    /// An install has ended.
    pub(super) fn installed(
        &mut self,
        digest: GenerationDigest,
        installed: Result<L, InstallError>,
    ) {
        let number = self.next_number();
        let Some(entry) = self.entries.get_mut(&digest).filter(|entry| entry.is_installing())
        else {
            // Shut down in the meantime.
            self.effects.extend(installed.ok().map(Effect::DropLease));
            return;
        };
        match installed {
            Ok(lease) => {
                self.counted.installs += 1;
                entry.place = Place::Resident { lease, n_users: 0, is_draining: false };
                entry.used_at = number;
                self.n_waiting -= usize::from(entry.prefetch.take().is_some());
                self.settle_shortage(digest);
                self.grant(digest);
            }
            Err(InstallError::OutOfMemory) => {
                self.counted.out_of_memory += 1;
                entry.place = Place::Absent;
                self.settle(digest);
                self.run_short(digest);
            }
            Err(InstallError::Failed(reason)) => {
                self.counted.install_failures += 1;
                entry.place = Place::Absent;
                self.settle_shortage(digest);
                self.fail(digest, ResidencyError::DeviceFailed { digest, reason: reason.into() });
            }
        }
    }

    /// Pins a resident generation; the caller holds a lease.
    pub(super) fn pin(&mut self, digest: GenerationDigest) {
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        if matches!(entry.place, Place::Resident { .. }) {
            entry.is_pinned = true;
            entry.is_forgotten = false;
            self.undrain(digest);
        }
    }

    pub(super) fn unpin(&mut self, digest: GenerationDigest) {
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.is_pinned = false;
            self.settle(digest);
        }
    }

    /// Whether a name points at it.
    pub(super) fn set_current(&mut self, digest: GenerationDigest, is_current: bool) {
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.is_earlier = !is_current;
            self.settle(digest);
        }
    }

    pub(super) fn forget(&mut self, digest: GenerationDigest) {
        self.failures.remove(digest);
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.is_pinned = false;
            entry.is_forgotten = true;
            // Nobody asked but the prefetch.
            self.n_waiting -= usize::from(entry.prefetch.take().is_some());
            self.settle(digest);
        }
    }

    pub(super) fn tier(&self, digest: &GenerationDigest) -> Tier {
        match self.entries.get(digest) {
            Some(Entry { place: Place::Resident { .. }, .. }) => Tier::Device,
            Some(Entry { packed: Some(_), .. }) => Tier::Host,
            Some(_) | None => Tier::Disk,
        }
    }

    pub(super) fn limits(&self) -> ResidencyLimits {
        self.limits
    }

    pub(super) fn set_limits(&mut self, limits: ResidencyLimits) {
        self.limits = limits;
    }

    pub(super) fn stats(&self) -> ResidencyStats {
        ResidencyStats {
            device_capacity_bytes: self.capacity_bytes,
            device_bytes: self.lists.bytes(List::Device),
            device_generations: self.lists.len(List::Device),
            in_use_generations: self.lists.len(List::InUse),
            draining_generations: self.lists.len(List::Draining),
            pinned_bytes: self.lists.bytes(List::Pinned),
            pinned_generations: self.lists.len(List::Pinned),
            host_bytes: self.lists.bytes(List::Host),
            host_generations: self.lists.len(List::Host),
            waiting: self.n_waiting,
            loading: self.lists.len(List::Loading),
            installing: self.lists.len(List::Installing),
            ..self.counted
        }
    }

    pub(super) fn shutdown(&mut self) {
        self.is_shut_down = true;
        self.lists = Lists::default();
        self.head = None;
        self.shortage = None;
        self.n_waiting = 0;
        for (_, entry) in self.entries.drain() {
            let refuse = |reply| Effect::Refuse { reply, error: ResidencyError::ShuttingDown };
            self.effects.extend(entry.waiters.into_values().map(refuse));
            self.effects.extend(entry.packed.map(Effect::DropPacked));
            if let Place::Resident { lease, .. } = entry.place {
                self.effects.push(Effect::DropLease(lease));
            }
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn max_loras(&self) -> usize {
        self.limits.max_loras.max(1)
    }
}
