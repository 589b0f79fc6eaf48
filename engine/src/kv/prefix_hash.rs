//! The name of a full KV block: what made its keys and values.

use std::fmt;

use sha2::{Digest, Sha256};

use super::KV_BLOCK_TOKENS;

/// `SHA-256(parent || tokens)`, where the first block's parent is [`PrefixHash::root`] of the sequence's KV key. So equal
/// hashes mean: same key (adapter, scale, tenant salt), same tokens from position 0 to the block's end.
///
/// A cryptographic hash, because an equal hash is taken as proof: a collision that a client can construct would let it
/// read another client's prompt.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixHash([u8; 32]);

impl PrefixHash {
    /// Parent of the first block of every sequence with this key.
    pub fn root(kv_key: &[u8; 32]) -> Self {
        let mut hasher = Sha256::new();
        // Keeps a key that happens to equal some block's hash apart from that block.
        hasher.update(b"pleach kv root");
        hasher.update(kv_key);
        Self(hasher.finalize().into())
    }

    /// Hash of the block with these tokens after the block `self`.
    ///
    /// # Panics
    /// Unless there are exactly [`KV_BLOCK_TOKENS`] tokens: only full blocks have a hash.
    #[must_use]
    pub fn child(&self, tokens: &[u32]) -> Self {
        assert_eq!(tokens.len(), KV_BLOCK_TOKENS, "only a full block has a prefix hash");
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        for token in tokens {
            hasher.update(token.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

impl fmt::Debug for PrefixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PrefixHash({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_parent_and_tokens_all_count() {
        let tokens: Vec<u32> = (0..16).collect();
        let mut other = tokens.clone();
        other[15] = 99;
        let first = PrefixHash::root(&[0; 32]).child(&tokens);
        assert_eq!(first, PrefixHash::root(&[0; 32]).child(&tokens));
        assert_ne!(first, PrefixHash::root(&[1; 32]).child(&tokens));
        assert_ne!(first, PrefixHash::root(&[0; 32]).child(&other));
        assert_ne!(first, first.child(&tokens));
    }
}
