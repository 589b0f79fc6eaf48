//! Host memory: what to drop, what to load.

use super::{Effect, List, Tiers};

impl<P, L: Clone> Tiers<P, L> {
    /// Drops what nobody needs, least recently used first, until the limits are kept.
    pub(super) fn trim_host(&mut self) {
        while self.lists.bytes(List::Host) > self.limits.host_bytes_max
            || self.lists.len(List::Host) > self.limits.max_cpu_loras
        {
            let Some((_, digest)) = self.lists.first(List::Droppable) else { return };
            if let Some(packed) =
                self.entries.get_mut(&digest).and_then(|entry| entry.packed.take())
            {
                self.counted.host_evictions += 1;
                self.effects.push(Effect::DropPacked(packed));
            }
            self.settle(digest);
        }
    }

    /// Starts loads, in order of arrival, as far as what is needed leaves room in host memory.
    pub(super) fn start_loads(&mut self) {
        while self.lists.len(List::Loading) < self.config.max_loads.max(1) {
            let Some((ticket, digest)) = self.lists.first(List::ToLoad) else { return };
            // Whoever came before all in line for the device is loaded whatever the limits say: an endless stream of
            // later requests that find theirs in host memory must not keep it out.
            let is_first = self.lists.first(List::Ready).is_none_or(|(ready, _)| ticket < ready)
                && self.lists.len(List::Loading) == 0;
            if !is_first && !self.host_has_room() {
                return;
            }
            if let Some(entry) = self.entries.get_mut(&digest) {
                entry.is_loading = true;
                self.effects.push(Effect::Load(digest));
            }
            self.settle(digest);
        }
    }

    /// Sizes are not known before the load, so this may let in as many generations too many as there are loads.
    fn host_has_room(&self) -> bool {
        let lists = &self.lists;
        let needed_bytes = lists.bytes(List::Host) - lists.bytes(List::Droppable);
        let n_needed = lists.len(List::Host) - lists.len(List::Droppable);
        needed_bytes < self.limits.host_bytes_max
            && n_needed + lists.len(List::Loading) < self.limits.max_cpu_loras
    }
}
