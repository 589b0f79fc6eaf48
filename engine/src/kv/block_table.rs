//! Where the keys and values of one sequence are.

use super::{KV_BLOCK_TOKENS, KvBlockId, KvPool, kv_blocks_for};

/// The KV blocks of one sequence in order of position: token `p` lies in block `p / 16`, place `p % 16`.
///
/// It owns one use of each of its blocks; give them back with [`BlockTable::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<KvBlockId>,
}

impl BlockTable {
    /// Adds a block at the end, taking over one use of it.
    pub fn push(&mut self, block: KvBlockId) {
        self.blocks.push(block);
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All blocks.
    pub fn blocks(&self) -> &[KvBlockId] {
        &self.blocks
    }

    /// The blocks of the first `n_tokens` tokens.
    ///
    /// # Panics
    /// When the table is shorter: a step would write outside its own memory.
    pub fn for_tokens(&self, n_tokens: usize) -> &[KvBlockId] {
        assert!(
            n_tokens <= self.blocks.len() * KV_BLOCK_TOKENS,
            "{n_tokens} tokens need more than {} kv blocks",
            self.blocks.len()
        );
        &self.blocks[..kv_blocks_for(n_tokens)]
    }

    /// Gives every block back, the last one first: of what stays cached the tail is then evicted before the head, and a
    /// head without its tail is still useful, while a tail without its head is not.
    pub fn release(&mut self, pool: &mut KvPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
    }
}
