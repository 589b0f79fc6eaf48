//! Ordered lists of generations with the sum of their bytes.

use std::collections::BTreeMap;

use crate::digest::GenerationDigest;

/// Which lists there are. [`super::entry::Entry::ranks`] says who belongs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum List {
    /// Device bytes taken: resident or being installed.
    Device,
    /// Resident for good.
    Pinned,
    /// Resident with a lease.
    InUse,
    /// Evictable now; least recently used first.
    Idle,
    /// Residents that could be set draining; least recently asked for first.
    Busy,
    /// Residents set draining, in use or just idle; least recently asked for first.
    Draining,
    /// Installs under way.
    Installing,
    /// Packed in host memory.
    Host,
    /// Those of them that nobody needs now; least recently used first.
    Droppable,
    /// In line for the device; first come, first.
    Ready,
    /// In line for a load; first come, first.
    ToLoad,
    /// Loads under way.
    Loading,
}

pub(super) const N_LISTS: usize = List::Loading as usize + 1;

#[derive(Debug, Default)]
struct Ranked {
    /// By rank; ranks within a list are unique.
    members: BTreeMap<u64, GenerationDigest>,
    bytes: usize,
}

/// All lists.
#[derive(Debug, Default)]
pub(super) struct Lists([Ranked; N_LISTS]);

impl Lists {
    pub(super) fn len(&self, list: List) -> usize {
        self.0[list as usize].members.len()
    }

    pub(super) fn bytes(&self, list: List) -> usize {
        self.0[list as usize].bytes
    }

    pub(super) fn first(&self, list: List) -> Option<(u64, GenerationDigest)> {
        self.iter(list).next()
    }

    pub(super) fn iter(&self, list: List) -> impl Iterator<Item = (u64, GenerationDigest)> + '_ {
        self.0[list as usize].members.iter().map(|(&rank, &digest)| (rank, digest))
    }

    /// Moves a generation of unchanged `bytes` from where it was to where it belongs.
    pub(super) fn relist(
        &mut self,
        digest: GenerationDigest,
        bytes: usize,
        before: &[Option<u64>; N_LISTS],
        after: &[Option<u64>; N_LISTS],
    ) {
        for ((list, before), after) in self.0.iter_mut().zip(before).zip(after) {
            if before == after {
                continue;
            }
            if let Some(rank) = before {
                let removed = list.members.remove(rank);
                assert_eq!(removed, Some(digest), "a list lost rank {rank}");
                list.bytes -= bytes;
            }
            if let Some(rank) = after {
                let displaced = list.members.insert(*rank, digest);
                assert_eq!(displaced, None, "rank {rank} was taken");
                list.bytes += bytes;
            }
        }
    }
}
