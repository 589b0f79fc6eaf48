//! Which sums there are, by digest.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use pleach_adapters::{Generation, GenerationDigest};

/// Most sums that stay in memory while no request wants them. A client can make a new one with every scale, and would
/// otherwise push out adapters that others use.
const IDLE_MAX: usize = 64;

/// A part of a sum.
#[derive(Debug)]
pub(in crate::adapter_service) struct ComposedGeneration {
    pub(in crate::adapter_service) generation: Arc<Generation>,
    pub(in crate::adapter_service) scale: f32,
}

/// A sum while a request wants it: keeps the files of its parts.
#[derive(Debug)]
pub(in crate::adapter_service) struct Composed {
    pub(in crate::adapter_service) digest: GenerationDigest,
    /// In canonical order.
    pub(in crate::adapter_service) parts: Vec<ComposedGeneration>,
}

impl Composed {
    /// Whether a part is retired: nobody can ask for this sum by names any more.
    pub(in crate::adapter_service) fn is_retired(&self) -> bool {
        self.parts.iter().any(|part| part.generation.is_retired())
    }
}

/// The sums that requests want, and those that may still be in memory.
#[derive(Debug, Default)]
pub(in crate::adapter_service) struct Compositions {
    // A std mutex: held for map operations, never over an await.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<GenerationDigest, Entry>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// Gone when no request wants it.
    wanted: Weak<Composed>,
    generations: Vec<GenerationDigest>,
    last_use: u64,
}

/// What becomes of a sum that a request wants.
#[derive(Debug)]
pub(in crate::adapter_service) struct TakenUp {
    /// One for all requests that want it.
    pub(in crate::adapter_service) composed: Arc<Composed>,
    /// Others that have been idle for longest, and are known no more.
    pub(in crate::adapter_service) forgotten: Vec<GenerationDigest>,
}

impl Compositions {
    pub(in crate::adapter_service) fn take_up(&self, composed: Composed) -> TakenUp {
        let mut table = self.lock();
        table.clock += 1;
        let (digest, last_use) = (composed.digest, table.clock);
        let wanted = table.entries.get(&digest).and_then(|entry| entry.wanted.upgrade());
        let composed = wanted.unwrap_or_else(|| Arc::new(composed));
        let generations = composed.parts.iter().map(|part| part.generation.digest).collect();
        let wanted = Arc::downgrade(&composed);
        table.entries.insert(digest, Entry { wanted, generations, last_use });
        TakenUp { composed, forgotten: table.cut() }
    }

    /// A sum that some request wants.
    pub(in crate::adapter_service) fn find(
        &self,
        digest: &GenerationDigest,
    ) -> Option<Arc<Composed>> {
        self.lock().entries.get(digest)?.wanted.upgrade()
    }

    /// The sums that a generation is part of.
    pub(in crate::adapter_service) fn with_part(
        &self,
        generation: &GenerationDigest,
    ) -> Vec<GenerationDigest> {
        let table = self.lock();
        let with_part = table.entries.iter().filter(|(_, entry)| entry.has_part(generation));
        with_part.map(|(digest, _)| *digest).collect()
    }

    /// The sums that a generation is part of; those that no request wants are known no more.
    pub(in crate::adapter_service) fn retire(
        &self,
        generation: &GenerationDigest,
    ) -> Vec<GenerationDigest> {
        let found = self.with_part(generation);
        let is_left = |entry: &Entry| entry.is_wanted() || !entry.has_part(generation);
        self.lock().entries.retain(|_, entry| is_left(entry));
        found
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn has_part(&self, generation: &GenerationDigest) -> bool {
        self.generations.contains(generation)
    }

    fn is_wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }
}

impl Table {
    /// Takes out the sums that have been idle for longest, beyond [`IDLE_MAX`].
    fn cut(&mut self) -> Vec<GenerationDigest> {
        let entries = self.entries.iter().filter(|(_, entry)| !entry.is_wanted());
        let mut idle: Vec<_> = entries.map(|(digest, entry)| (entry.last_use, *digest)).collect();
        idle.sort_unstable();
        idle.truncate(idle.len().saturating_sub(IDLE_MAX));
        for (_, digest) in &idle {
            self.entries.remove(digest);
        }
        idle.into_iter().map(|(_, digest)| digest).collect()
    }
}
