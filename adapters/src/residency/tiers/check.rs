//! For tests: every list and sum is what the entries say.

use super::{List, Place, Tiers};
use crate::digest::GenerationDigest;

impl<P, L: Clone> Tiers<P, L> {
    /// Whether anything of a generation is remembered.
    pub(in crate::residency) fn remembers(&self, digest: &GenerationDigest) -> bool {
        self.entries.contains_key(digest)
    }

    pub(in crate::residency) fn check(&self) {
        let all = [
            List::Device,
            List::Pinned,
            List::InUse,
            List::Idle,
            List::Busy,
            List::Draining,
            List::Installing,
            List::Host,
            List::Droppable,
            List::Ready,
            List::ToLoad,
            List::Loading,
        ];
        for list in all {
            let members: Vec<_> = self
                .entries
                .values()
                .filter(|entry| entry.ranks()[list as usize].is_some())
                .collect();
            assert_eq!(self.lists.len(list), members.len(), "{list:?}");
            let bytes: usize = members.iter().map(|entry| entry.bytes).sum();
            assert_eq!(self.lists.bytes(list), bytes, "{list:?}");
        }
        let mut n_waiting = 0;
        for (digest, entry) in &self.entries {
            assert_eq!(entry.listed, entry.ranks(), "{digest} is not settled");
            assert!(entry.is_alive(), "{digest} is kept for nothing");
            assert_eq!(entry.ready_since.is_some(), entry.listed[List::Ready as usize].is_some());
            n_waiting += entry.n_waiting();
            if let Place::Resident { is_draining, .. } = entry.place {
                assert!(
                    is_draining || entry.n_waiting() == 0,
                    "{digest} is resident, yet has waiters"
                );
                assert!(!(is_draining && entry.is_pinned), "{digest} is pinned and draining");
            } else {
                assert!(!entry.is_pinned, "{digest} is pinned and not resident");
            }
        }
        assert_eq!(self.n_waiting, n_waiting);
        assert!(n_waiting <= self.config.max_waiting);
        assert!(self.lists.bytes(List::Device) <= self.capacity_bytes, "over capacity");
        assert!(self.lists.len(List::Installing) <= self.config.max_installs.max(1));
        assert!(self.lists.len(List::Loading) <= self.config.max_loads.max(1));
        if self.lists.bytes(List::Host) > self.limits.host_bytes_max
            || self.lists.len(List::Host) > self.limits.max_cpu_loras
        {
            assert_eq!(self.lists.len(List::Droppable), 0, "host memory over its limits");
        }
    }
}
