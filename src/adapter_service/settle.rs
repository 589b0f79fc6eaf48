//! What follows in memory from a change of names.

use std::sync::Arc;

use pleach_adapters::{Generation, Moved};

use super::changes::Changes;

impl Changes {
    /// What follows from a move in memory: what no alias points at needs none, what is pinned stays.
    pub(super) fn settle(&self, moved: &Moved) {
        if let Some(left) = &moved.left {
            self.settle_pin(left);
        }
        self.settle_pin(&moved.alias.generation);
        // Asked again here: another change may have taken it up meanwhile.
        if let Some(left) = moved.retired() {
            self.residency.forget(left.digest);
        }
    }

    /// Pins a generation on the device, or lets it go, as its aliases want it by now.
    pub(super) fn settle_pin(&self, generation: &Arc<Generation>) {
        let digest = generation.digest;
        if !generation.is_pinned() {
            self.residency.unpin(digest);
            return;
        }
        let (residency, generation) = (self.residency.clone(), Arc::clone(generation));
        self.shelf.runtime.spawn(async move {
            if let Err(error) = residency.pin(digest).await {
                tracing::warn!(adapter = generation.loaded_as, %error, "a pinned adapter is not on the device");
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
