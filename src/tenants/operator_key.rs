//! The key of whoever runs the server.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// A key (`--api-key`), kept as its digest: comparing digests takes the same time wherever they differ, and nothing that
/// prints the server's state can print the key.
#[derive(Clone)]
pub struct OperatorKey([u8; 32]);

impl OperatorKey {
    /// Keeps a key.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Whether this is the key.
    pub fn matches(&self, key: &str) -> bool {
        let other: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        self.0.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

impl fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::OperatorKey;

    #[test]
    fn only_the_key_matches_and_debug_hides_it() {
        let key = OperatorKey::new("secret");
        assert!(key.matches("secret"));
        for other in ["", "secre", "secret ", "Secret", "secrets"] {
            assert!(!key.matches(other), "{other:?}");
        }
        assert!(!format!("{key:?}").contains("secret"));
    }
}
