//! The flows of one priority, in order of their counters.

use std::collections::BTreeSet;

use pleach_engine::{scheduler::Ticket, sequence::FlowId};

/// Virtual service: cost divided by weight, in units of 2⁻³² of a token's price. Wide enough never to overflow.
pub(super) type Counter = u128;

/// Where a flow with waiting sequences stands: least counter first, then the longest waiting head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) counter: Counter,
    pub(super) head: Ticket,
    pub(super) flow: FlowId,
}

/// Flows of one priority.
#[derive(Debug, Default)]
pub(super) struct FlowClass {
    /// Flows that have somebody waiting.
    pub(super) backlogged: BTreeSet<Place>,
    /// Flows that have no sequence at all, remembered for a counter above the floor. Others are forgotten: coming back,
    /// they would be lifted to the floor anyway.
    pub(super) idle: BTreeSet<(Counter, FlowId)>,
    /// Where a flow enters at least: the least counter of the backlogged, or that of the last which was. Only grows.
    pub(super) floor: Counter,
    /// Admissions from other classes since one from this class, or since somebody waits.
    pub(super) n_passed_over: usize,
}

impl FlowClass {
    /// Moves a flow, whose counter is `counter`, from one place to another; `None` is not to be backlogged.
    pub(super) fn replace(&mut self, old: Option<Place>, new: Option<Place>, counter: Counter) {
        let was_empty = self.backlogged.is_empty();
        if let Some(old) = old {
            self.backlogged.remove(&old);
        }
        if let Some(new) = new {
            self.backlogged.insert(new);
            if was_empty {
                self.n_passed_over = 0;
            }
        }
        let least = self.backlogged.first().map_or(counter, |first| first.counter);
        self.floor = self.floor.max(least);
    }

    /// The flow that is forgotten with the least harm, if its counter is at most `counter`.
    pub(super) fn pop_idle(&mut self, counter: Counter) -> Option<FlowId> {
        let &(least, _) = self.idle.first()?;
        if least > counter {
            return None;
        }
        self.idle.pop_first().map(|(_, flow)| flow)
    }
}
