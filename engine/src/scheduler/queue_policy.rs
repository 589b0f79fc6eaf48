//! Who of the waiting comes first.

use std::{collections::VecDeque, fmt};

use super::Sequence;

/// Orders the sequences that have never run. Preempted ones are not its business: they always come back first.
pub trait QueuePolicy: Send + fmt::Debug {
    /// Writes indices into `waiting` (which is in order of arrival) to `order`, the next to admit first. Indices may be
    /// left out; those sequences are passed over this time. Called before every admission, so it should be cheap.
    ///
    /// No waiting sequence may be passed over forever.
    fn order(&mut self, waiting: &VecDeque<Sequence>, order: &mut Vec<usize>);
}

/// First come, first served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

impl QueuePolicy for Fifo {
    fn order(&mut self, waiting: &VecDeque<Sequence>, order: &mut Vec<usize>) {
        order.extend(0..waiting.len());
    }
}
