//! Where an alias pointed before.

use std::{collections::VecDeque, sync::Arc};

use crate::{digest::GenerationDigest, generation::Generation};

/// Most earlier generations that an alias keeps. They keep their files, and their memory until it is needed.
pub const HISTORY_MAX: usize = 7;

/// Earlier generations of one alias, the last first, each once. Never the present one. All were taken up by the registry.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Earlier>);

/// A place in a history: its generation is not retired while it is there.
#[derive(Debug)]
struct Earlier(Arc<Generation>);

impl Earlier {
    fn new(generation: Arc<Generation>) -> Self {
        generation.gains_history();
        Self(generation)
    }
}

impl Drop for Earlier {
    fn drop(&mut self) {
        self.0.loses_history();
    }
}

impl FromIterator<Arc<Generation>> for History {
    /// A history as it was elsewhere, the last first; what is too many is left out.
    fn from_iter<I: IntoIterator<Item = Arc<Generation>>>(generations: I) -> Self {
        Self(generations.into_iter().take(HISTORY_MAX).map(Earlier::new).collect())
    }
}

impl History {
    pub(super) fn last(&self) -> Option<Arc<Generation>> {
        self.0.front().map(|Earlier(generation)| Arc::clone(generation))
    }

    pub(super) fn find(&self, digest: GenerationDigest) -> Option<Arc<Generation>> {
        self.generations().find(|generation| generation.digest == digest).cloned()
    }

    pub(super) fn list(&self) -> Vec<Arc<Generation>> {
        self.generations().cloned().collect()
    }

    /// Takes one out, because the alias points there now.
    pub(super) fn forget(&mut self, digest: GenerationDigest) {
        self.0.retain(|Earlier(generation)| generation.digest != digest);
    }

    /// Puts in where the alias pointed; the oldest that is now too many.
    pub(super) fn push(&mut self, generation: Arc<Generation>) -> Option<Arc<Generation>> {
        self.0.push_front(Earlier::new(generation));
        let cut = if self.0.len() > HISTORY_MAX { self.0.pop_back() } else { None };
        cut.map(|Earlier(ref generation)| Arc::clone(generation))
    }

    /// The alias goes back from `left` to `target`: everything that came after the target, `left` first, is now what
    /// comes last.
    pub(super) fn turn_to(&mut self, target: GenerationDigest, left: Arc<Generation>) {
        self.0.push_front(Earlier::new(left));
        while let Some(first) = self.0.pop_front() {
            if first.0.digest == target {
                return;
            }
            self.0.push_back(first);
        }
    }

    fn generations(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.0.iter().map(|Earlier(generation)| generation)
    }
}
