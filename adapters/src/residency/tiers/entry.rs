//! What is known of one generation that is not only on disk.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::oneshot, time::Instant};

use super::lists::{List, N_LISTS};
use crate::residency::{ResidencyError, ResidentLease};

/// Above every time of use of a generation that no name points at: those go first, in whatever list.
const CURRENT: u64 = 1 << 63;

/// Where the answer to a request goes.
pub(in crate::residency) type Reply<L> = oneshot::Sender<Result<ResidentLease<L>, ResidencyError>>;

/// Exists while somebody wants the generation, or any of it is in memory.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that are true of it independently")]
pub(super) struct Entry<P, L> {
    /// Its rank in lists whose order means nothing.
    pub(super) id: u64,
    /// Requests that wait, by ticket: in order of arrival.
    pub(super) waiters: BTreeMap<u64, Reply<L>>,
    /// The ticket of a prefetch.
    pub(super) prefetch: Option<u64>,
    pub(super) packed: Option<Arc<P>>,
    /// Of the packed form; known once there was one.
    pub(super) bytes: usize,
    pub(super) is_loading: bool,
    pub(super) place: Place<L>,
    pub(super) is_pinned: bool,
    pub(super) is_forgotten: bool,
    /// No name points at it, though some may again.
    pub(super) is_earlier: bool,
    /// When it was last asked for or fell idle, as a number that only grows.
    pub(super) used_at: u64,
    /// Since when it is in line for the device.
    pub(super) ready_since: Option<Instant>,
    /// Under which rank it is in each list: what [`Self::ranks`] said when it was settled.
    pub(super) listed: [Option<u64>; N_LISTS],
}

/// On the device or not.
#[derive(Debug)]
pub(super) enum Place<L> {
    Absent,
    /// Its bytes are reserved.
    Installing,
    Resident {
        lease: L,
        n_users: usize,
        /// New requests wait.
        is_draining: bool,
    },
}

impl<P, L> Entry<P, L> {
    pub(super) fn new(id: u64) -> Self {
        Self {
            id,
            waiters: BTreeMap::new(),
            prefetch: None,
            packed: None,
            bytes: 0,
            is_loading: false,
            place: Place::Absent,
            is_pinned: false,
            is_forgotten: false,
            is_earlier: false,
            used_at: id,
            ready_since: None,
            listed: [None; N_LISTS],
        }
    }

    /// The ticket of whoever wants it and came first.
    pub(super) fn first_ticket(&self) -> Option<u64> {
        let waiter = self.waiters.keys().next().copied();
        waiter.into_iter().chain(self.prefetch).min()
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.first_ticket().is_some()
    }

    pub(super) fn n_waiting(&self) -> usize {
        self.waiters.len() + usize::from(self.prefetch.is_some())
    }

    pub(super) fn is_installing(&self) -> bool {
        matches!(self.place, Place::Installing)
    }

    /// Whether there is a reason to remember it.
    pub(super) fn is_alive(&self) -> bool {
        self.is_wanted()
            || self.is_loading
            || self.packed.is_some()
            || !matches!(self.place, Place::Absent)
    }

    /// In which lists it belongs, and at which rank: the definition of every list.
    pub(super) fn ranks(&self) -> [Option<u64>; N_LISTS] {
        let mut ranks = [None; N_LISTS];
        let mut put = |list: List, rank: u64, belongs: bool| {
            ranks[list as usize] = belongs.then_some(rank);
        };
        let use_rank = if self.is_earlier { self.used_at } else { CURRENT | self.used_at };
        let is_packed = self.packed.is_some();
        if is_packed {
            put(List::Host, self.id, true);
            put(List::Droppable, use_rank, !self.is_wanted() && !self.is_installing());
        }
        put(List::Loading, self.id, self.is_loading);
        match self.place {
            Place::Absent => {
                if let Some(ticket) = self.first_ticket() {
                    put(List::Ready, ticket, is_packed);
                    put(List::ToLoad, ticket, !is_packed && !self.is_loading);
                }
            }
            Place::Installing => {
                put(List::Device, self.id, true);
                put(List::Installing, self.id, true);
            }
            Place::Resident { n_users, is_draining, .. } => {
                let is_free = !self.is_pinned;
                put(List::Device, self.id, true);
                put(List::Pinned, self.id, self.is_pinned);
                put(List::InUse, self.id, n_users > 0);
                put(List::Idle, use_rank, is_free && n_users == 0);
                put(List::Draining, use_rank, is_draining);
                put(List::Busy, use_rank, is_free && n_users > 0 && !is_draining);
            }
        }
        ranks
    }
}
