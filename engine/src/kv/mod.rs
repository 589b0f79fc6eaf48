//! Paged memory for keys and values, and the prefix cache over it.
//!
//! The pool only hands out numbers: the bytes belong to the backend. A [`KvBlockId`] means the same place in every layer.

mod block_table;
mod kv_pool;
mod prefix_hash;

pub use block_table::BlockTable;
pub use kv_pool::KvPool;
pub use prefix_hash::PrefixHash;

/// Tokens in one KV block.
pub const KV_BLOCK_TOKENS: usize = 16;

/// One block of the KV pool: room for the keys and values of [`KV_BLOCK_TOKENS`] tokens in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvBlockId(pub u32);

/// KV blocks that `n_tokens` tokens fill, the last one perhaps in part.
pub const fn kv_blocks_for(n_tokens: usize) -> usize {
    n_tokens.div_ceil(KV_BLOCK_TOKENS)
}
