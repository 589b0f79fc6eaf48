//! Who of the waiting comes first.

use std::fmt;

use crate::sequence::FlowId;

/// Names a waiting sequence to its policy. Tickets ascend in order of arrival and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A waiting sequence, as far as a policy may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Its name.
    pub ticket: Ticket,
    /// Its line.
    pub flow: FlowId,
}

/// Orders the sequences that have never run, and hears what a fair order needs to know. Preempted ones are not its
/// business: they always come back first, and what is computed again is not told again.
///
/// ```text
/// arrived ──> admitted ──> served, served, … ──> ended
///        └──> left
/// ```
/// All are called on the owner thread, between steps, some of them for every sequence: so they neither wait nor take long.
pub trait QueuePolicy: Send + fmt::Debug {
    /// Writes at most `n_max` tickets to `order`, which is empty, the next to admit first; asked for more, it begins with
    /// the same ones. `waiting` has all tickets in order of arrival. Some may be left out; those sequences are passed over
    /// this time. Called before every admission, nearly always with an `n_max` of 1.
    ///
    /// The first stays in front of the others when it finds no room for its keys and values, until another is named first.
    /// No waiting sequence may be passed over forever.
    fn order(
        &mut self,
        waiting: &mut dyn Iterator<Item = Ticket>,
        n_max: usize,
        order: &mut Vec<Ticket>,
    );

    /// A sequence waits.
    fn arrived(&mut self, _queued: Queued) {}

    /// It stopped waiting and runs. `n_uncached` of its prompt's tokens, at least one, are going to be computed; the
    /// others were in the prefix cache.
    fn admitted(&mut self, _queued: Queued, _n_uncached: usize) {}

    /// It stopped waiting and will not run.
    fn left(&mut self, _queued: Queued) {}

    /// `n_tokens` completion tokens were chosen for an admitted sequence of this flow.
    fn served(&mut self, _flow: FlowId, _n_tokens: usize) {}

    /// An admitted sequence of this flow has ended, however it did.
    fn ended(&mut self, _flow: FlowId) {}
}

/// First come, first served, whatever the flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

impl QueuePolicy for Fifo {
    fn order(
        &mut self,
        waiting: &mut dyn Iterator<Item = Ticket>,
        n_max: usize,
        order: &mut Vec<Ticket>,
    ) {
        order.extend(waiting.take(n_max));
    }
}
