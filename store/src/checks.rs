//! What texts may be stored.

use crate::error::StoreError;

/// Longest name of a tenant, a key or an alias, and longest `who` of a move: they are shown in tables.
pub(crate) const NAME_BYTES_MAX: usize = 256;
/// Longest reason of a move, and longest description of where a generation came from.
pub(crate) const NOTE_BYTES_MAX: usize = 4096;
/// Longest JSON document of the learning loop: a policy, a round's progress or verdict, a recipe.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Longest name of a file of a generation.
const FILE_NAME_BYTES_MAX: usize = 128;

/// A name: not empty, not longer than [`NAME_BYTES_MAX`], no control characters.
pub(crate) fn check_name(what: &'static str, text: &str) -> Result<(), StoreError> {
    if text.is_empty() {
        return Err(refused(what, text, "is empty"));
    }
    check_text(what, text, NAME_BYTES_MAX)
}

/// A text of limited length without control characters. (NUL cannot be stored in PostgreSQL.)
pub(crate) fn check_text(
    what: &'static str,
    text: &str,
    bytes_max: usize,
) -> Result<(), StoreError> {
    if text.len() > bytes_max {
        return Err(refused(what, text, "is too long"));
    }
    if text.chars().any(char::is_control) {
        return Err(refused(what, text, "has a control character"));
    }
    Ok(())
}

/// A JSON document as it is stored. PostgreSQL keeps no NUL; in JSON it is an escape.
pub(crate) fn document(value: &serde_json::Value) -> Result<String, StoreError> {
    let text = value.to_string();
    if text.len() > DOCUMENT_BYTES_MAX {
        let (bytes, bytes_max) = (text.len(), DOCUMENT_BYTES_MAX);
        return Err(StoreError::MetadataTooLong { bytes, bytes_max });
    }
    Ok(text)
}

/// A file's name: one path component on every system.
pub(crate) fn check_file_name(name: &str) -> Result<(), StoreError> {
    let what = "name of a file";
    if name.len() > FILE_NAME_BYTES_MAX {
        return Err(refused(what, name, "is too long"));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(is_plain) {
        return Err(refused(what, name, "is not made of letters, digits, `_`, `-` and inner dots"));
    }
    Ok(())
}

fn refused(what: &'static str, text: &str, reason: &'static str) -> StoreError {
    // Enough to find it, however long it is.
    let text = text.chars().take(NAME_BYTES_MAX / 4).collect();
    StoreError::InvalidText { what, text, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_one_component() {
        for good in ["adapter_model.safetensors", "a", "A-1_b.json"] {
            assert!(check_file_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(FILE_NAME_BYTES_MAX + 1);
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "é", "a b", "a\0", &long] {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_short_and_printable() {
        assert!(check_name("name", "Ünal & sons").is_ok());
        for bad in ["", "a\nb", "a\0", &"a".repeat(NAME_BYTES_MAX + 1)] {
            let message = check_name("name", bad).unwrap_err().to_string();
            assert!(message.starts_with("the name "), "{message}");
        }
    }
}
