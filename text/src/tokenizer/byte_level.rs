//! The byte-level alphabet of GPT-2: every byte as one printable character.
//!
//! ```text
//! bytes 0x21..=0x7e, 0xa1..=0xac, 0xae..=0xff   the character of the same number
//! the other 68 bytes, in order                  U+0100, U+0101, ... U+0143   (so a space is U+0120, 'Ġ')
//! ```
//!
//! Source: `bytes_to_unicode` in the GPT-2 encoder.

use std::sync::LazyLock;

/// First character that stands for a byte without a printable character of its own.
const SHIFTED_FIRST: u32 = 0x100;

/// What character stands for each byte.
static CHAR_OF_BYTE: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut n_shifted = 0;
    std::array::from_fn(|byte| {
        // `byte` is below 256, the size of the array.
        #[expect(clippy::cast_possible_truncation, reason = "an index of a 256-entry array")]
        let byte = byte as u8;
        if is_printable(byte) {
            return char::from(byte);
        }
        n_shifted += 1;
        char::from_u32(SHIFTED_FIRST + n_shifted - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
});

/// What byte each character up to the last shifted one stands for.
static BYTE_OF_CHAR: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut table = [None; 0x144];
    for byte in 0..=u8::MAX {
        table[CHAR_OF_BYTE[usize::from(byte)] as usize] = Some(byte);
    }
    table
});

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Appends each byte of `text` as its character.
pub(super) fn push_encoded(text: &str, out: &mut String) {
    out.extend(text.bytes().map(|byte| CHAR_OF_BYTE[usize::from(byte)]));
}

/// Appends the bytes that `token` stands for. A token with a character outside the alphabet was added after training
/// and stands for itself.
pub(super) fn push_decoded(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for character in token.chars() {
        let Some(byte) = BYTE_OF_CHAR.get(character as usize).copied().flatten() else {
            out.truncate(start);
            out.extend_from_slice(token.as_bytes());
            return;
        };
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character_and_comes_back() {
        let mut characters: Vec<char> = CHAR_OF_BYTE.to_vec();
        characters.sort_unstable();
        characters.dedup();
        assert_eq!(characters.len(), 256);
        for byte in 0..=u8::MAX {
            let mut back = Vec::new();
            push_decoded(&CHAR_OF_BYTE[usize::from(byte)].to_string(), &mut back);
            assert_eq!(back, [byte]);
        }
    }

    #[test]
    fn the_known_characters() {
        let mut out = String::new();
        push_encoded(" a\n\t\u{e9}", &mut out);
        assert_eq!(out, "\u{120}a\u{10a}\u{109}\u{c3}\u{a9}");
        assert_eq!(CHAR_OF_BYTE[0xad], '\u{143}');
    }

    #[test]
    fn a_token_outside_the_alphabet_stands_for_itself() {
        let mut out = Vec::new();
        push_decoded("a\u{ff5c}b", &mut out);
        assert_eq!(out, "a\u{ff5c}b".as_bytes());
    }
}
