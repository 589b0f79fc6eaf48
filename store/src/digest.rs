//! The two digests of this crate, as types of their own so that one is never taken for the other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const DIGEST_BYTES: usize = 32;
const DIGEST_HEX_DIGITS: usize = 2 * DIGEST_BYTES;

/// A text that is no digest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no digest: that is {DIGEST_HEX_DIGITS} lower-case hex digits")]
pub struct DigestParseError {
    /// The text, cut where a digest would have ended.
    pub text: String,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; DIGEST_BYTES]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = DigestParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let cut = || text.chars().take(DIGEST_HEX_DIGITS).collect();
                from_hex(text).map(Self).ok_or_else(|| DigestParseError { text: cut() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = DigestParseError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> Self {
                digest.to_string()
            }
        }
    };
}

digest_type! {
    /// Names an immutable set of adapter weights and settings, made by the crate that knows adapters. Shown as 64 hex
    /// digits.
    GenerationDigest
}

digest_type! {
    /// SHA-256 of a blob's bytes. Shown as 64 hex digits.
    BlobDigest
}

/// Lower-case hex digits, two a byte.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The `N` bytes of exactly `2 N` lower-case hex digits.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_there_and_back_and_nothing_else_is_taken() {
        let digest = BlobDigest(std::array::from_fn(|i| u8::try_from(i * 8).unwrap()));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<BlobDigest>(&json).unwrap(), digest);

        let good = digest.to_string();
        for bad in ["", &good[1..], &format!("{good}0"), &good.to_uppercase(), &"é".repeat(32)] {
            assert!(bad.parse::<BlobDigest>().is_err(), "{bad}");
        }
    }
}
