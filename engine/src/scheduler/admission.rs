//! Who leaves the queue: the first of the policy's order, while there are places, rows and KV blocks.

use std::time::Instant;

use super::{Scheduler, Sequence};
use crate::{
    kv::{KV_BLOCK_TOKENS, KvBlockId, kv_blocks_for},
    sequence::SequenceEvent,
};

/// How far down the queue admission looks for one that need not wait for a prefix.
const LOOK_AHEAD_MAX: usize = 64;

impl Scheduler {
    /// Admits sequences until the step's rows are spoken for, the batch is full or the next one does not fit.
    pub(super) fn admit(&mut self, now: Instant) {
        let n_pending: usize = self.running.iter().map(Sequence::n_pending).sum();
        let mut n_free_rows = self.limits.max_step_rows.saturating_sub(n_pending);
        while n_free_rows > 0 && self.running.len() < self.limits.max_batch {
            let Some(sequence) = self.next_admitted(now) else { break };
            n_free_rows = n_free_rows.saturating_sub(sequence.n_pending());
            self.running.push(sequence);
        }
    }

    fn next_admitted(&mut self, now: Instant) -> Option<Sequence> {
        if let Some(sequence) = self.preempted.front() {
            // Nobody overtakes a preempted sequence: this is what bounds how often it can be preempted.
            let cached = self.fitting_prefix(sequence)?;
            let sequence = self.preempted.pop_front()?;
            return Some(self.start(sequence, &cached, now));
        }
        let mut n_overtaken = 0;
        // The rest of the order is worth working out only when the first waits for a prefix.
        for n_max in [1, LOOK_AHEAD_MAX] {
            let order = self.waiting.order(n_max, self.running.is_empty());
            for ticket in order.into_iter().skip(n_overtaken) {
                let sequence = self.waiting.get(ticket)?;
                if n_overtaken > 0 && !sequence.looks_up_prefix() {
                    // It might itself compute the block that those before it wait for, and so let them wait again.
                    return None;
                }
                let awaited = self.awaited_block(sequence);
                if awaited.is_some() {
                    self.waiting.get_mut(ticket)?.awaited = awaited;
                    n_overtaken += 1;
                    continue;
                }
                // Want of memory, unlike waiting for a prefix, may last: so it is not overtaken.
                let cached = self.fitting_prefix(sequence)?;
                let n_uncached = sequence.n_prompt() - cached.len() * KV_BLOCK_TOKENS;
                let sequence = self.waiting.admit(ticket, n_uncached)?;
                return Some(self.start(sequence, &cached, now));
            }
        }
        None
    }

    /// The block that a waiting sequence had better not compute, because a running one is about to: n choices of one
    /// prompt, or one system prompt of many clients that arrive together.
    ///
    /// Waiting ends when that block is in the index or its maker stops running. Nobody admitted meanwhile can make the
    /// same block, as it would wait for it too; so a sequence waits at most for those that ran before it.
    fn awaited_block(&self, sequence: &Sequence) -> Option<usize> {
        let hashes = sequence.reusable_hashes();
        let is_made = |&block_idx: &usize| {
            let hash = hashes.get(block_idx);
            hash.is_some_and(|hash| {
                self.running.iter().any(|maker| maker.will_publish(block_idx, hash))
            })
        };
        // The answer of the last step first: it saves looking up the whole prefix in every step.
        sequence
            .awaited
            .filter(is_made)
            .or_else(|| Some(self.cached_prefix(sequence).len()).filter(is_made))
    }

    /// Cached blocks at the head of a sequence.
    fn cached_prefix(&self, sequence: &Sequence) -> Vec<KvBlockId> {
        sequence.reusable_hashes().iter().map_while(|hash| self.pool.find(hash)).collect()
    }

    /// The cached blocks at the head of a sequence, if the pool has the rest that all its known tokens need.
    ///
    /// One block for each running sequence is left over, since each may need one soon: else a newcomer could be preempted
    /// right after its prefill. With none running everything is available, so the first in the queue always fits.
    fn fitting_prefix(&self, sequence: &Sequence) -> Option<Vec<KvBlockId>> {
        let cached = self.cached_prefix(sequence);
        let n_needed = kv_blocks_for(sequence.tokens.len()) - cached.len();
        // Those of the prefix that nobody uses are counted as available, and would be no longer.
        let n_woken = cached.iter().filter(|&&block| self.pool.is_idle(block)).count();
        (n_needed + n_woken + self.running.len() <= self.pool.n_available()).then_some(cached)
    }

    fn start(&mut self, mut sequence: Sequence, cached: &[KvBlockId], now: Instant) -> Sequence {
        for &block in cached {
            self.pool.acquire(block);
            sequence.table.push(block);
        }
        while sequence.table.len() < kv_blocks_for(sequence.tokens.len()) {
            let block = self.pool.allocate().expect("fitting_prefix counted the blocks");
            sequence.table.push(block);
        }
        sequence.n_computed = cached.len() * KV_BLOCK_TOKENS;
        sequence.n_published = cached.len();
        sequence.awaited = None;
        if !sequence.was_admitted {
            sequence.was_admitted = true;
            let n_looked_up = if sequence.looks_up_prefix() { sequence.n_prompt() } else { 0 };
            self.counters.prefix_queries += n_looked_up as u64;
            self.counters.prefix_hits += sequence.n_computed as u64;
            sequence.send(SequenceEvent::Admitted { at: now, cached_tokens: sequence.n_computed });
        }
        sequence
    }
}
