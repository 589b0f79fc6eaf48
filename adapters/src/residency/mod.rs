//! Memory tiers: thousands of generations are known, some are packed in host memory, some are resident on the device.
//!
//! ```text
//!         load (blocking threads)         install (a task)
//!  disk ─────────────────────────> host ───────────────────> device ──> ResidentLease
//!       <───────────────────────── LRU by bytes <─────────── LRU by bytes, never in use, never pinned
//! ```
//!
//! All decisions are made in [`tiers`], a state machine without clock, thread or await; this file runs what it decides.
//! Its rules:
//!
//! - **One load, one install** for all who want the same generation at the same time.
//! - **First come, first served** for device memory, among those whose packed form is in host memory. A slow load
//!   holds up nobody else; whoever is first holds back the others until it has room, so a large one cannot starve.
//! - **Names count.** What no name points at any more, though one may be pointed back at it, stays until its bytes are
//!   needed, and goes before everything that is asked for by name.
//! - **Draining.** The first in line has waited `drain_after` since its packed form was ready, and there is still no
//!   room, because all unpinned residents are in use: then as many of them as it needs, least recently asked for
//!   first, take no new request. When they don't end, one more is drained after further 1, 3, 7, … × `drain_after`.
//!   Requests held back this way are later in line, and go on at once when room was found without their generation.
//!
//! **The bound.** A request is passed only by requests that came before it. Once first and ready, it has waited at most
//! `drain_after` until no new use of enough residents begins; from then on it waits for the longest use that had begun by
//! then (a request's own limits bound that), for the device to return the memory (`out_of_memory_patience`, then an
//! error), and for one install.
//!
//! It knows no model, no file and no name: [`AdapterDevice`] and [`AdapterSource`] are its whole world.

mod config;
mod device;
mod error;
mod lease;
mod source;
mod stats;
mod tiers;
mod timer;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

pub use config::{ResidencyConfig, ResidencyLimits};
pub use device::{AdapterDevice, InstallError};
pub use error::{Reason, ResidencyError};
pub use lease::ResidentLease;
use lease::TakesBack;
use pleach_engine::engine::panic_message;
pub use source::AdapterSource;
pub use stats::{ResidencyStats, Tier};
use tiers::{Effect, Requested, Tiers};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::Instant,
};

use crate::digest::GenerationDigest;

/// The tiers of one device. Cheap to clone.
pub struct Residency<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> {
    shared: Arc<Shared<D, S>>,
}

struct Shared<D: AdapterDevice, S> {
    device: D,
    source: S,
    /// Leases may be dropped on threads that know no runtime.
    runtime: Handle,
    /// Held for map operations only: never over an await, never while anything of the device's or the source's runs,
    /// but for the clone of a lease.
    tiers: Mutex<Tiers<D::Packed, D::Lease>>,
    /// When to look again although nothing happened. The timer task ends with it.
    wake_at: watch::Sender<Option<Instant>>,
}

impl<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> Residency<D, S> {
    /// Empty tiers.
    ///
    /// # Panics
    /// Outside a tokio runtime with a timer; it is that runtime's threads that load and install.
    pub fn new(device: D, source: S, config: ResidencyConfig) -> Self {
        let tiers = Mutex::new(Tiers::new(config, device.capacity_bytes()));
        let (wake_at, deadline) = watch::channel(None);
        let runtime = Handle::current();
        let shared = Arc::new(Shared { device, source, runtime, tiers, wake_at });
        let weak = Arc::downgrade(&shared);
        shared.runtime.spawn(timer::run(deadline, move || {
            let shared = weak.upgrade()?;
            shared.update(|_| ());
            Some(())
        }));
        Self { shared }
    }

    /// Makes a generation resident and keeps it so while the lease lives: at once when it is resident, else after a load
    /// and an install. Dropping the future takes the request back.
    ///
    /// # Errors
    /// [`ResidencyError`].
    pub async fn lease(
        &self,
        digest: GenerationDigest,
    ) -> Result<ResidentLease<D::Lease>, ResidencyError> {
        match self.shared.update(|tiers| tiers.request(digest))? {
            Requested::Granted(lease) => Ok(self.shared.resident_lease(digest, lease)),
            Requested::Waits { ticket, answer } => {
                let mut waiting =
                    Waiting { shared: &self.shared, digest, ticket, answer, is_answered: false };
                let answer = (&mut waiting.answer).await;
                waiting.is_answered = true;
                answer.unwrap_or(Err(ResidencyError::ShuttingDown))
            }
        }
    }

    /// Begins to bring a generation to the device, for a request that is expected. Evicts what is idle, but neither waits
    /// for room nor drains: what finds no room stays in host memory. Failures are left for the request to find.
    pub fn prefetch(&self, digest: GenerationDigest) {
        self.shared.update(|tiers| tiers.prefetch(digest));
    }

    /// Puts a packed generation that is at hand, say after an upload was checked, into host memory.
    pub fn offer(&self, digest: GenerationDigest, packed: Arc<D::Packed>) {
        let bytes = self.shared.device.packed_bytes(&packed);
        self.shared.update(|tiers| tiers.offer(digest, packed, bytes));
    }

    /// Makes a generation resident until [`Self::unpin`] or [`Self::forget`]. Pinning twice is pinning once.
    ///
    /// # Errors
    /// As [`Self::lease`]; it is not pinned then.
    pub async fn pin(&self, digest: GenerationDigest) -> Result<(), ResidencyError> {
        let lease = self.lease(digest).await?;
        self.shared.update(|tiers| tiers.pin(digest));
        drop(lease);
        Ok(())
    }

    /// Lets a pinned generation be evicted again. Without effect on others.
    pub fn unpin(&self, digest: GenerationDigest) {
        self.shared.update(|tiers| tiers.unpin(digest));
    }

    /// Says whether a name points at a generation. Those that none points at are the first to be evicted and drained. Without
    /// effect on one of which nothing is in memory.
    pub fn set_current(&self, digest: GenerationDigest, is_current: bool) {
        self.shared.update(|tiers| tiers.set_current(digest, is_current));
    }

    /// The generation is retired: leaves host memory and the device as soon as nobody uses it or waits for it.
    pub fn forget(&self, digest: GenerationDigest) {
        self.shared.update(|tiers| tiers.forget(digest));
    }

    /// Where a generation is now.
    pub fn tier(&self, digest: GenerationDigest) -> Tier {
        self.shared.lock().tier(&digest)
    }

    /// The limits in force.
    pub fn limits(&self) -> ResidencyLimits {
        self.shared.lock().limits()
    }

    /// Changes the limits. Lower ones hold for newcomers at once, and for what is there as soon as it is not needed.
    pub fn set_limits(&self, limits: ResidencyLimits) {
        self.shared.update(|tiers| tiers.set_limits(limits));
    }

    /// The numbers now.
    pub fn stats(&self) -> ResidencyStats {
        self.shared.lock().stats()
    }

    /// Refuses everyone who waits and everyone who comes, and lets go of all that is held; leases that are out stay valid.
    pub fn shutdown(&self) {
        self.shared.update(Tiers::shutdown);
    }
}

/// A request in line; leaves it when dropped unanswered.
struct Waiting<'a, D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> {
    shared: &'a Arc<Shared<D, S>>,
    digest: GenerationDigest,
    ticket: u64,
    /// An answer that arrives while this is dropped is dropped with it, and so the lease is given back.
    answer: oneshot::Receiver<Result<ResidentLease<D::Lease>, ResidencyError>>,
    is_answered: bool,
}

impl<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> Drop for Waiting<'_, D, S> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.update(|tiers| tiers.cancel(self.digest, self.ticket));
        }
    }
}

impl<D: AdapterDevice, S> Shared<D, S> {
    // A panic under the lock is a broken invariant of the state machine, and told as such by the thread that had it; the
    // maps themselves are whole.
    fn lock(&self) -> MutexGuard<'_, Tiers<D::Packed, D::Lease>> {
        self.tiers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> Shared<D, S> {
    /// One event: changes the state, decides what follows, and does that after the lock.
    fn update<T>(self: &Arc<Self>, event: impl FnOnce(&mut Tiers<D::Packed, D::Lease>) -> T) -> T {
        let mut tiers = self.lock();
        tiers.set_now(Instant::now());
        let result = event(&mut tiers);
        let (effects, wake_at) = tiers.decide();
        // Under the lock, so that an older decision never overwrites a newer one.
        self.wake_at.send_if_modified(|deadline| std::mem::replace(deadline, wake_at) != wake_at);
        drop(tiers);
        self.perform(effects);
        result
    }

    fn perform(self: &Arc<Self>, effects: Vec<Effect<D::Packed, D::Lease>>) {
        let mut dropped = Vec::new();
        for effect in effects {
            match effect {
                // To someone who has just left: the lease comes back by being dropped.
                Effect::Grant { reply, digest, lease } => {
                    let _ = reply.send(Ok(self.resident_lease(digest, lease)));
                }
                Effect::Refuse { reply, error } => {
                    let _ = reply.send(Err(error));
                }
                Effect::Load(digest) => self.start_load(digest),
                Effect::Install(digest, packed) => self.start_install(digest, packed),
                Effect::DropLease(lease) => drop(lease),
                Effect::DropPacked(packed) => dropped.push(packed),
            }
        }
        if !dropped.is_empty() {
            // Many megabytes go back to the system, and this may be the engine's thread between two steps.
            self.runtime.spawn_blocking(move || drop(dropped));
        }
    }

    fn resident_lease(
        self: &Arc<Self>,
        digest: GenerationDigest,
        lease: D::Lease,
    ) -> ResidentLease<D::Lease> {
        let this: Weak<Self> = Arc::downgrade(self);
        ResidentLease::new(digest, lease, this)
    }

    fn start_load(self: &Arc<Self>, digest: GenerationDigest) {
        let shared = Arc::clone(self);
        self.runtime.spawn_blocking(move || {
            let load = || {
                let packed = Arc::new(shared.source.load(&digest)?);
                let bytes = shared.device.packed_bytes(&packed);
                Ok((packed, bytes))
            };
            let loaded = catch_unwind(AssertUnwindSafe(load))
                .unwrap_or_else(|panic| Err(panic_message(&*panic).into()));
            shared.update(|tiers| tiers.loaded(digest, loaded));
        });
    }

    fn start_install(self: &Arc<Self>, digest: GenerationDigest, packed: Arc<D::Packed>) {
        let shared = Arc::clone(self);
        let install = self.runtime.spawn(async move { shared.device.install(packed).await });
        let shared = Arc::clone(self);
        // Two tasks, so that a panic of the device is seen.
        self.runtime.spawn(async move {
            let installed =
                install.await.unwrap_or_else(|error| Err(InstallError::Failed(error.into())));
            shared.update(|tiers| tiers.installed(digest, installed));
        });
    }
}

impl<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> TakesBack for Shared<D, S> {
    fn take_back(self: Arc<Self>, digest: GenerationDigest) {
        self.update(|tiers| tiers.release(digest));
    }
}

// By hand: derives would ask the same of `D` and `S`.
impl<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> Clone for Residency<D, S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<D: AdapterDevice, S: AdapterSource<Packed = D::Packed>> fmt::Debug for Residency<D, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Residency").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
