//! How a request waits: for its adapter, then for the engine.
//!
//! Behind a tenant that floods stand others, so nobody of it may hold what others need while it waits. An adapter that a
//! waiting sequence holds cannot leave the device: so only as many sequences of a tenant as fill a batch go on to their
//! adapter and the engine's queue, in order of arrival; the rest wait before, holding nothing. And only [`COLD_TURNS`] of
//! its requests are in the line for the device at a time. A quiet tenant that wants a cold adapter then waits for few loads
//! and two batches of each other tenant, and not for all that they sent.
//!
//! The operator's requests go straight on.
//!
//! [`COLD_TURNS`]: super::COLD_TURNS

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{LiveSequence, LiveTenant, QueueShare, Refusal, meter::Meter};

/// The sequences of a request that are not yet handed to the engine.
#[derive(Debug)]
pub struct Line {
    tenant: Option<Arc<LiveTenant>>,
    sequences: Vec<LiveSequence>,
    queued: Option<Arc<QueuedRequest>>,
    turns: Option<OwnedSemaphorePermit>,
    meter: Arc<Meter>,
}

/// A request that waits, as the quota counts it: until the last of its sequences is admitted.
#[derive(Debug)]
struct QueuedRequest(Arc<LiveTenant>);

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        self.0.limiter().unqueue();
    }
}

impl Line {
    pub(super) fn enter(
        tenant: Option<&Arc<LiveTenant>>,
        meter: Arc<Meter>,
        share: &Arc<QueueShare>,
        n_sequences: usize,
    ) -> Result<Self, Refusal> {
        let flow = tenant.map(|tenant| tenant.flow).unwrap_or_default();
        let sequences = share.enter(flow, n_sequences)?;
        let queued = tenant.map(|tenant| {
            tenant.limiter().queue()?;
            Ok(Arc::new(QueuedRequest(Arc::clone(tenant))))
        });
        let queued = queued.transpose()?;
        Ok(Self { tenant: tenant.cloned(), sequences, queued, turns: None, meter })
    }

    /// Waits until the request may stand in the line for the device; it may while what is returned lives. To be called
    /// before [`Self::turns`], for an adapter that is not there.
    pub async fn cold_turn(&self) -> Option<OwnedSemaphorePermit> {
        let tenant = self.tenant.as_ref()?;
        // Nobody closes it.
        Arc::clone(&tenant.cold_turns).acquire_owned().await.ok()
    }

    /// Waits until the request may hold its adapter and stand in the engine's queue.
    pub async fn turns(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        let n_turns = self.sequences.len().min(tenant.n_turns);
        let turns: Arc<Semaphore> = Arc::clone(&tenant.turns);
        let n_turns = u32::try_from(n_turns).unwrap_or(u32::MAX);
        self.turns = turns.acquire_many_owned(n_turns).await.ok();
    }

    /// The place of the next sequence, which is with the engine now; `n_prompt` are the tokens that are counted for it.
    ///
    /// # Panics
    /// When called more often than there are sequences.
    pub fn next_place(&mut self, n_prompt: usize) -> SequencePlace {
        let live = self.sequences.pop().expect("the request entered with all of its sequences");
        // A request of more sequences than there are turns has them all, and the rest of it none.
        let turn = self.turns.as_mut().and_then(|turns| turns.split(1));
        SequencePlace {
            live,
            turn,
            queued: self.queued.clone(),
            meter: Arc::clone(&self.meter),
            n_prompt: n_prompt as u64,
        }
    }
}

/// One sequence's place, from the engine's queue to its end.
#[derive(Debug)]
pub struct SequencePlace {
    live: LiveSequence,
    turn: Option<OwnedSemaphorePermit>,
    queued: Option<Arc<QueuedRequest>>,
    meter: Arc<Meter>,
    n_prompt: u64,
}

impl SequencePlace {
    /// The sequence runs: others may take its turn.
    pub fn admitted(&mut self) {
        self.live.admitted();
        (self.turn, self.queued) = (None, None);
        self.meter.prompt(std::mem::take(&mut self.n_prompt));
    }

    /// A token that counts was chosen.
    pub fn token(&self) {
        self.meter.token();
    }
}
