//! The sequences that have never run, with the policy that orders them: in one place, so that the policy hears of every
//! change.

use std::collections::BTreeMap;

use super::{QueuePolicy, Queued, Sequence, Ticket};
use crate::sequence::{FlowId, SequenceId};

/// Sequences in order of arrival.
#[derive(Debug)]
pub(super) struct Waiting {
    sequences: BTreeMap<Ticket, Sequence>,
    policy: Box<dyn QueuePolicy>,
    next_ticket: u64,
}

impl Waiting {
    pub(super) fn new(policy: Box<dyn QueuePolicy>) -> Self {
        Self { sequences: BTreeMap::new(), policy, next_ticket: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Sequence> {
        self.sequences.get(&ticket)
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Sequence> {
        self.sequences.get_mut(&ticket)
    }

    pub(super) fn push(&mut self, sequence: Sequence) {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.policy.arrived(queued(ticket, &sequence));
        self.sequences.insert(ticket, sequence);
    }

    /// At most `n_max` sequences, the next to admit first. A policy may hold everybody back for others' sake, but not for
    /// nobody's: with `must_name`, there are some if any sequence waits.
    pub(super) fn order(&mut self, n_max: usize, must_name: bool) -> Vec<Ticket> {
        let mut order = Vec::new();
        if self.sequences.is_empty() {
            return order;
        }
        self.policy.order(&mut self.sequences.keys().copied(), n_max, &mut order);
        if order.is_empty() && must_name {
            order.extend(self.sequences.keys().take(n_max));
        }
        order
    }

    /// Takes out one that runs from now on.
    pub(super) fn admit(&mut self, ticket: Ticket, n_uncached: usize) -> Option<Sequence> {
        let sequence = self.sequences.remove(&ticket)?;
        self.policy.admitted(queued(ticket, &sequence), n_uncached);
        Some(sequence)
    }

    /// Takes out one that is not to run.
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let (&ticket, _) = self.sequences.iter().find(|(_, sequence)| sequence.id() == id)?;
        let sequence = self.sequences.remove(&ticket)?;
        self.policy.left(queued(ticket, &sequence));
        Some(sequence)
    }

    /// Takes out the oldest, which is not to run.
    pub(super) fn pop_first(&mut self) -> Option<Sequence> {
        let (ticket, sequence) = self.sequences.pop_first()?;
        self.policy.left(queued(ticket, &sequence));
        Some(sequence)
    }

    /// Drops those that nobody listens to.
    pub(super) fn drop_abandoned(&mut self) {
        let policy = &mut self.policy;
        self.sequences.retain(|&ticket, sequence| {
            let keep = !sequence.is_abandoned();
            if !keep {
                policy.left(queued(ticket, sequence));
            }
            keep
        });
    }

    /// A token was chosen for an admitted sequence.
    pub(super) fn served(&mut self, flow: FlowId) {
        self.policy.served(flow, 1);
    }

    /// An admitted sequence has ended.
    pub(super) fn ended(&mut self, flow: FlowId) {
        self.policy.ended(flow);
    }
}

fn queued(ticket: Ticket, sequence: &Sequence) -> Queued {
    Queued { ticket, flow: sequence.flow() }
}
