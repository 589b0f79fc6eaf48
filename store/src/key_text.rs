//! The text of a key: `plk_<id>_<secret>`, 16 and 64 hex digits.
//!
//! The id finds the row, the secret is compared. Only the SHA-256 of the secret is stored: it has 256 random bits, so
//! there is nothing to guess, and a slow hash would only slow the server.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    digest::{from_hex, to_hex},
    error::StoreError,
    owner::{fill_random, random_id},
};

const PREFIX: &str = "plk_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// The text that a client sends. Shown once, when the key is made; `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeyText {
    id: String,
    secret: [u8; SECRET_BYTES],
}

impl ApiKeyText {
    /// A new one.
    pub(crate) fn random() -> Result<Self, StoreError> {
        let mut secret = [0; SECRET_BYTES];
        fill_random(&mut secret)?;
        Ok(Self { id: random_id()?, secret })
    }

    /// The parts of a text; `None` if it has another form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        from_hex::<ID_BYTES>(id)?;
        Some(Self { id: id.to_owned(), secret: from_hex(secret)? })
    }

    /// The id, which is no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole text.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, to_hex(&self.secret))
    }

    /// What is stored.
    pub(crate) fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// Whether a stored digest is this secret's, in a time that does not depend on how much of it is.
    pub(crate) fn is_secret_of(&self, stored_sha256: &[u8; 32]) -> bool {
        self.secret_sha256().ct_eq(stored_sha256).into()
    }
}

impl fmt::Debug for ApiKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeyText({PREFIX}{}_…)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_there_and_back_and_hide_their_secret() {
        let key = ApiKeyText::random().unwrap();
        let text = key.reveal();
        assert_eq!(text.len(), 85);
        assert_eq!(ApiKeyText::parse(&text), Some(key.clone()));
        assert!(key.is_secret_of(&key.secret_sha256()));
        assert!(!key.is_secret_of(&ApiKeyText::random().unwrap().secret_sha256()));
        assert!(!format!("{key:?}").contains(&to_hex(&key.secret)));
        let bad = [
            "",
            "plk_",
            "plk__",
            &text[1..],
            &text[..84],
            &format!("{text}0"),
            &text.replacen('_', "-", 1),
            &format!("plk_{}", "é".repeat(40)),
        ];
        for bad in bad {
            assert_eq!(ApiKeyText::parse(bad), None, "{bad}");
        }
    }
}
