//! What follows in memory from a change of names.

use std::sync::Arc;

use pleach_adapters::{Alias, Generation, GenerationDigest, Moved};

use super::changes::Changes;

impl Changes {
    /// What follows from a move in memory: what no alias points at is the first to go, what none can be pointed back at
    /// needs no memory, what is pinned stays.
    pub(super) fn settle(&self, moved: &Moved) {
        for generation in moved.left.iter().chain([&moved.alias.generation]) {
            self.settle_pin(&moved.alias, generation);
            self.settle_order(generation);
        }
        // Asked again here: another change may have taken it up meanwhile.
        for retired in moved.retired() {
            self.retire_in_memory(retired.digest);
        }
    }

    /// What names point at goes after all else, and so do the sums that it is part of.
    fn settle_order(&self, generation: &Generation) {
        let is_current = generation.is_current();
        self.residency.set_current(generation.digest, is_current);
        for sum in self.compositions.with_part(&generation.digest) {
            self.residency.set_current(sum, is_current);
        }
    }

    fn retire_in_memory(&self, digest: GenerationDigest) {
        self.residency.forget(digest);
        for sum in self.compositions.retire(&digest) {
            self.residency.forget(sum);
        }
    }

    /// Pins a generation of an alias on the device, or lets it go, as all its aliases want it by now.
    pub(super) fn settle_pin(&self, alias: &Alias, generation: &Arc<Generation>) {
        let digest = generation.digest;
        if !generation.is_pinned() {
            self.residency.unpin(digest);
            // Its name may have been removed while it was brought to the device.
            if generation.is_retired() {
                self.retire_in_memory(digest);
            }
            return;
        }
        let adapter = Arc::clone(&alias.label);
        if let Some(registered) = generation.other_base() {
            let generation = digest.short();
            tracing::warn!(
                %adapter,
                generation,
                registered,
                served = self.shelf.base_digest,
                "a pinned adapter is not on the device: it was checked against another base model"
            );
            return;
        }
        let (residency, generation) = (self.residency.clone(), Arc::clone(generation));
        self.shelf.runtime.spawn(async move {
            if let Err(error) = residency.pin(digest).await {
                tracing::warn!(%adapter, %error, "a pinned adapter is not on the device");
            }
            // It took its time.
            if !generation.is_pinned() {
                residency.unpin(digest);
            }
            if generation.is_retired() {
                residency.forget(digest);
            }
        });
    }
}
