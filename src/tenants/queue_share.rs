//! How much of the server's queue one tenant may fill.
//!
//! Fair order decides who of the waiting comes first; it cannot help a tenant that finds the queue full. So none may have
//! more sequences waiting than it leaves free. Of `B` places the first that floods gets half, the next half of the rest;
//! as the queue moves, `k` that flood come to `B / (k + 1)` each, and as many stay free for one that was quiet so far. What
//! can run at once need not fit the share: a batch is never left empty for the sake of the queue.
//!
//! The operator's own sequences are counted and not held to a share: the engine's bound alone refuses them.
//!
//! Source: the dynamic thresholds of shared-memory switches (Choudhury and Hahne, 1998), with a factor of 1.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pleach_engine::{engine::EngineHandle, sequence::FlowId};

use super::Refusal;

/// The sequences of all callers, from their acceptance to their end.
#[derive(Debug)]
pub struct QueueShare {
    n_batch_max: usize,
    n_queue_max: usize,
    // A std mutex: held for a few additions, never over an await.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Sequences that wait or run.
    live: usize,
    /// Those of them that wait for an adapter or in the engine's queue.
    waiting: usize,
    /// The same by tenant, without the operator's; none is 0.
    waiting_of: HashMap<FlowId, usize>,
}

/// One sequence among the live ones; leaves them when it is dropped.
#[derive(Debug)]
pub struct LiveSequence {
    share: Arc<QueueShare>,
    flow: FlowId,
    is_waiting: bool,
}

impl QueueShare {
    /// Nobody is there. `n_batch_max` sequences run at a time, and `n_queue_max` may wait beside them.
    pub fn new(n_batch_max: usize, n_queue_max: usize) -> Arc<Self> {
        Arc::new(Self { n_batch_max, n_queue_max, counts: Mutex::default() })
    }

    /// [`Self::new`] with an engine's limits.
    pub fn of(engine: &EngineHandle) -> Arc<Self> {
        let n_batch_max = engine.limits().max_batch;
        Self::new(n_batch_max, engine.max_live() - n_batch_max)
    }

    /// Takes in `n` sequences of one request, which wait from now on: all of them or none. The operator's have the default
    /// flow.
    ///
    /// # Errors
    /// When the tenant would have more than its share.
    pub fn enter(self: &Arc<Self>, flow: FlowId, n: usize) -> Result<Vec<LiveSequence>, Refusal> {
        let mut counts = self.lock();
        if flow != FlowId::default() {
            let waiting = counts.waiting_of.get(&flow).copied().unwrap_or(0);
            let n_free = self.n_queue_max.saturating_sub(counts.waiting);
            if counts.live + n > self.n_batch_max && waiting + n > n_free {
                return Err(Refusal::QueueShare { waiting });
            }
            *counts.waiting_of.entry(flow).or_default() += n;
        }
        counts.live += n;
        counts.waiting += n;
        drop(counts);
        let live = |_| LiveSequence { share: Arc::clone(self), flow, is_waiting: true };
        Ok((0..n).map(live).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveSequence {
    /// It waits no more.
    pub fn admitted(&mut self) {
        if std::mem::take(&mut self.is_waiting) {
            self.share.lock().leave_queue(self.flow);
        }
    }
}

impl Drop for LiveSequence {
    fn drop(&mut self) {
        let mut counts = self.share.lock();
        counts.live -= 1;
        if self.is_waiting {
            counts.leave_queue(self.flow);
        }
    }
}

impl Counts {
    fn leave_queue(&mut self, flow: FlowId) {
        self.waiting -= 1;
        if let Some(n) = self.waiting_of.get_mut(&flow) {
            *n -= 1;
            if *n == 0 {
                self.waiting_of.remove(&flow);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn enter_all(share: &Arc<QueueShare>, flow: u64) -> Vec<LiveSequence> {
        std::iter::from_fn(|| share.enter(FlowId(flow), 1).ok()).flatten().take(10_000).collect()
    }

    /// Those that the engine would run.
    fn admit(sequences: &mut [LiveSequence], n: usize) {
        sequences.iter_mut().take(n).for_each(LiveSequence::admitted);
    }

    #[test]
    fn who_floods_leaves_as_much_free_as_it_has() {
        let share = QueueShare::new(8, 100);
        let mut first = enter_all(&share, 1);
        admit(&mut first, 8);
        first.extend(enter_all(&share, 1));
        assert_eq!(first.len(), 8 + 50);
        assert_eq!(share.enter(FlowId(1), 1).unwrap_err(), Refusal::QueueShare { waiting: 50 });
        assert_eq!(enter_all(&share, 2).len(), 25, "what it takes is given back at once");
        let second = share.enter(FlowId(2), 25).unwrap();
        assert!(share.enter(FlowId(2), 1).is_err() && share.enter(FlowId(3), 12).is_ok());
        // The operator is not held to a share.
        let operator = share.enter(FlowId::default(), 60).unwrap();
        assert!(share.enter(FlowId(3), 1).is_err());
        drop((first, second, operator));
        let counts = share.lock();
        assert_eq!((counts.live, counts.waiting, counts.waiting_of.len()), (0, 0, 0));
    }

    #[test]
    fn a_batch_is_filled_whatever_the_share() {
        let share = QueueShare::new(8, 0);
        assert!(share.enter(FlowId(1), 9).is_err());
        let mut eight = share.enter(FlowId(1), 8).unwrap();
        admit(&mut eight, 8);
        assert!(share.enter(FlowId(1), 1).is_err());
        eight.pop();
        assert!(share.enter(FlowId(2), 1).is_ok());
    }

    proptest! {
        /// In whichever order three that flood come and go, a half of a half of a half stays for one that was quiet.
        #[test]
        fn there_is_always_room_for_the_quiet(
            n_queue in 10_usize..200,
            events in prop::collection::vec((1_u64..4, 1_usize..3, 0_usize..4), 1..400),
        ) {
            let share = QueueShare::new(4, n_queue);
            let mut held: Vec<LiveSequence> = Vec::new();
            for (flow, n, what) in events {
                match what {
                    0 if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                    // Only so many can run.
                    1 if held.iter().filter(|sequence| !sequence.is_waiting).count() < 4 => {
                        if let Some(first) = held.iter_mut().find(|sequence| sequence.is_waiting) {
                            first.admitted();
                        }
                    }
                    _ => held.extend(share.enter(FlowId(flow), n).into_iter().flatten()),
                }
                let waiting = held.iter().filter(|sequence| sequence.is_waiting);
                prop_assert_eq!(share.lock().waiting, waiting.count());
                prop_assert_eq!(share.lock().live, held.len());
                // What might have run at once may be beyond the shares, and each may pass its own by a sequence.
                let n_kept = (n_queue / 8).saturating_sub(4 + 2);
                prop_assert!(n_kept == 0 || share.enter(FlowId(9), n_kept).is_ok(), "no room for {n_kept}");
            }
        }
    }
}
