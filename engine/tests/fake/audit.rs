//! A policy that keeps book of what it hears, and fails when that does not add up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use pleach_engine::{
    engine::EngineStats,
    scheduler::{QueuePolicy, Queued, Ticket},
    sequence::FlowId,
};

use super::mix;

/// What a policy was told.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    waiting: BTreeMap<Ticket, FlowId>,
    n_running_of: BTreeMap<FlowId, usize>,
    pub(crate) n_tokens_of: BTreeMap<FlowId, usize>,
    pub(crate) n_uncached: usize,
    pub(crate) n_admitted: usize,
    pub(crate) n_left: usize,
}

/// First come, first served, or in an order without sense. Clones share the book.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    is_shuffled: bool,
    heard: Arc<Mutex<Heard>>,
}

impl Audit {
    pub(crate) fn new(is_shuffled: bool) -> Self {
        Self { is_shuffled, heard: Arc::default() }
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    /// When all sequences have ended.
    pub(crate) fn check_end(&self, stats: &EngineStats) {
        let heard = self.heard();
        assert!(heard.waiting.is_empty(), "{heard:?}");
        assert!(heard.n_running_of.values().all(|&n| n == 0), "{heard:?}");
        let n_tokens: usize = heard.n_tokens_of.values().sum();
        assert_eq!(n_tokens as u64, stats.completion_tokens);
        // Those that ended early were not computed to the end.
        assert!(heard.n_uncached as u64 + stats.prefix_hits >= stats.prompt_tokens, "{heard:?}");
    }

    fn unqueue(&self, queued: Queued) -> MutexGuard<'_, Heard> {
        let mut heard = self.heard();
        assert_eq!(heard.waiting.remove(&queued.ticket), Some(queued.flow), "it does not wait");
        heard
    }
}

impl QueuePolicy for Audit {
    fn order(
        &mut self,
        waiting: &mut dyn Iterator<Item = Ticket>,
        n_max: usize,
        order: &mut Vec<Ticket>,
    ) {
        assert!(order.is_empty());
        order.extend(waiting);
        assert!(
            order.iter().eq(self.heard().waiting.keys()),
            "those who wait are not those heard of"
        );
        if self.is_shuffled {
            order.sort_by_key(|ticket| mix(ticket.0, &[1]));
        }
        order.truncate(n_max);
    }

    fn arrived(&mut self, queued: Queued) {
        let mut heard = self.heard();
        assert!(heard.waiting.last_key_value().is_none_or(|(&last, _)| last < queued.ticket));
        heard.waiting.insert(queued.ticket, queued.flow);
    }

    fn admitted(&mut self, queued: Queued, n_uncached: usize) {
        assert!(n_uncached > 0);
        let mut heard = self.unqueue(queued);
        heard.n_uncached += n_uncached;
        heard.n_admitted += 1;
        *heard.n_running_of.entry(queued.flow).or_default() += 1;
    }

    fn left(&mut self, queued: Queued) {
        self.unqueue(queued).n_left += 1;
    }

    fn served(&mut self, flow: FlowId, n_tokens: usize) {
        let mut heard = self.heard();
        assert!(heard.n_running_of.get(&flow).is_some_and(|&n| n > 0), "{flow:?} does not run");
        *heard.n_tokens_of.entry(flow).or_default() += n_tokens;
    }

    fn ended(&mut self, flow: FlowId) {
        let mut heard = self.heard();
        let n_running = heard.n_running_of.get_mut(&flow).expect("it was admitted");
        *n_running = n_running.checked_sub(1).expect("it ended twice");
    }
}
