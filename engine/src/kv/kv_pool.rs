//! Which KV blocks are free, cached or used, and which prefix each cached one holds.
//!
//! ```text
//!            allocate                      publish(hash)
//!   free ──────────────▶ used (users ≥ 1) ──────────────▶ used, in the index
//!    ▲  ▲                 │        ▲                        │
//!    │  └── release ──────┘        └────── acquire ───┐     │ release, last user
//!    │        (no hash)                              │     ▼
//!    └───────────── evicted, oldest first ──────── cached (users = 0, in the index)
//! ```
//!
//! free + cached + used is always the whole pool. The pool knows neither sequences nor tokens.

use std::collections::{BTreeMap, HashMap};

use super::{KvBlockId, PrefixHash};

#[derive(Debug, Default)]
struct BlockState {
    /// Block tables that hold this block.
    users: u32,
    /// Its name in the index.
    hash: Option<PrefixHash>,
    /// Key in `KvPool::cached` while `users` is 0 and `hash` is set.
    cached_at: u64,
}

/// All KV blocks of one engine.
#[derive(Debug)]
pub struct KvPool {
    blocks: Vec<BlockState>,
    /// Blocks that hold nothing of value.
    free: Vec<KvBlockId>,
    /// Blocks without users that can still be found by hash, least recently used first.
    cached: BTreeMap<u64, KvBlockId>,
    index: HashMap<PrefixHash, KvBlockId>,
    n_used: usize,
    /// Counts releases; orders `cached`.
    clock: u64,
}

impl KvPool {
    /// A pool of `n_blocks` free blocks.
    ///
    /// # Panics
    /// When the number does not fit 32 bits.
    pub fn new(n_blocks: usize) -> Self {
        let n = u32::try_from(n_blocks).expect("a kv pool has fewer than 2^32 blocks");
        Self {
            blocks: (0..n).map(|_| BlockState::default()).collect(),
            // Reversed, so that low numbers are handed out first.
            free: (0..n).rev().map(KvBlockId).collect(),
            cached: BTreeMap::new(),
            index: HashMap::new(),
            n_used: 0,
            clock: 0,
        }
    }

    /// All blocks.
    pub fn n_total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks held by at least one block table.
    pub fn n_used(&self) -> usize {
        self.n_used
    }

    /// Blocks that [`allocate`](Self::allocate) can give: free ones, and cached ones after eviction.
    pub fn n_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Blocks without users whose content can still be found.
    pub fn n_cached(&self) -> usize {
        self.cached.len()
    }

    /// A block for one user, with undefined content; evicts the least recently used cached block when none is free.
    /// `None` when all are used.
    ///
    /// # Panics
    /// When an unused block has a user or an evicted one is not in the index: the pool contradicts itself.
    pub fn allocate(&mut self) -> Option<KvBlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.evict()?,
        };
        let state = self.state(block);
        assert!(state.users == 0 && state.hash.is_none(), "a free kv block has a user or a hash");
        state.users = 1;
        self.n_used += 1;
        Some(block)
    }

    /// The block that holds this prefix, if any does. It may be evicted unless it is [acquired](Self::acquire).
    pub fn find(&self, hash: &PrefixHash) -> Option<KvBlockId> {
        self.index.get(hash).copied()
    }

    /// Whether no block table holds the block.
    pub fn is_idle(&self, block: KvBlockId) -> bool {
        self.blocks[block.0 as usize].users == 0
    }

    /// Adds a user to a block that was [found](Self::find).
    ///
    /// # Panics
    /// When the block is free: its content is not defined.
    pub fn acquire(&mut self, block: KvBlockId) {
        let state = self.state(block);
        assert!(state.hash.is_some(), "acquired a kv block outside the index");
        state.users += 1;
        if state.users == 1 {
            let cached_at = state.cached_at;
            let removed = self.cached.remove(&cached_at);
            assert_eq!(removed, Some(block), "an unused kv block of the index is cached");
            self.n_used += 1;
        }
    }

    /// Takes one user away. After the last one the block is cached if it is in the index, else free.
    ///
    /// # Panics
    /// When it has no user: somebody gave it back twice.
    pub fn release(&mut self, block: KvBlockId) {
        self.clock += 1;
        let now = self.clock;
        let state = self.state(block);
        assert!(state.users > 0, "released an unused kv block");
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        if state.hash.is_some() {
            state.cached_at = now;
            self.cached.insert(now, block);
        } else {
            self.free.push(block);
        }
        self.n_used -= 1;
    }

    /// Enters a used, full, successfully computed block in the index. When an equal one is there already, that one stays
    /// the canonical one and this one remains private to its user.
    ///
    /// # Panics
    /// When the block has no user.
    pub fn publish(&mut self, block: KvBlockId, hash: PrefixHash) {
        assert!(!self.is_idle(block), "published an unused kv block");
        if self.index.contains_key(&hash) {
            return;
        }
        let state = self.state(block);
        assert!(state.hash.is_none(), "a kv block has one prefix");
        state.hash = Some(hash);
        self.index.insert(hash, block);
    }

    /// Takes a used block out of the index, because its content is in doubt.
    ///
    /// # Panics
    /// When the block has no user.
    pub fn forget(&mut self, block: KvBlockId) {
        assert!(!self.is_idle(block), "forgot an unused kv block");
        if let Some(hash) = self.state(block).hash.take() {
            self.index.remove(&hash);
        }
    }

    /// Asserts that free + cached + used is the whole pool. Cheap.
    ///
    /// # Panics
    /// When it is not, with the numbers.
    pub fn check_sum(&self) {
        let (free, cached, used, total) =
            (self.free.len(), self.cached.len(), self.n_used, self.blocks.len());
        assert!(
            free + cached + used == total,
            "kv blocks: {free} free + {cached} cached + {used} used != {total}"
        );
    }

    /// Asserts that every block is in exactly the lists that its state says. Visits every block.
    ///
    /// # Panics
    /// At the first contradiction.
    pub fn check(&self) {
        self.check_sum();
        let mut is_free = vec![false; self.blocks.len()];
        for block in &self.free {
            assert!(
                !std::mem::replace(&mut is_free[block.0 as usize], true),
                "{block:?} is free twice"
            );
        }
        let mut n_used = 0;
        for (block, state) in (0u32..).map(KvBlockId).zip(&self.blocks) {
            let indexed = state.hash.is_some_and(|hash| self.index.get(&hash) == Some(&block));
            assert_eq!(state.hash.is_some(), indexed, "{block:?}: index and block disagree");
            let cached = self.cached.get(&state.cached_at) == Some(&block);
            assert_eq!(
                cached,
                indexed && state.users == 0,
                "{block:?}: cached means indexed and unused"
            );
            assert_eq!(
                is_free[block.0 as usize],
                !indexed && state.users == 0,
                "{block:?}: free means unused"
            );
            n_used += usize::from(state.users > 0);
        }
        assert_eq!(n_used, self.n_used, "used kv blocks");
        let hashed = self.blocks.iter().filter(|state| state.hash.is_some()).count();
        assert_eq!(hashed, self.index.len(), "index names a block that does not know it");
    }

    fn evict(&mut self) -> Option<KvBlockId> {
        let (_, block) = self.cached.pop_first()?;
        let hash = self.state(block).hash.take().expect("a cached kv block has a hash");
        let removed = self.index.remove(&hash);
        assert_eq!(removed, Some(block), "a cached kv block is in the index");
        Some(block)
    }

    fn state(&mut self, block: KvBlockId) -> &mut BlockState {
        &mut self.blocks[block.0 as usize]
    }
}
