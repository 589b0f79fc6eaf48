//! Which names an adapter may have, and how a model name is taken apart.

use super::{ALIAS_BYTES_MAX, RegistryError};

/// Separates base and alias in a model name.
const SEPARATOR: char = ':';

/// The names of the base.
///
/// # Errors
/// When there is none, or one cannot be sent as a model name.
pub(super) fn check_base_names(base_names: &[String]) -> Result<(), RegistryError> {
    if base_names.is_empty() {
        return Err(RegistryError::NoBaseName);
    }
    let is_bad = |name: &&String| name.is_empty() || name.contains(is_forbidden);
    match base_names.iter().find(is_bad) {
        Some(name) => Err(RegistryError::InvalidBaseName { name: name.clone() }),
        None => Ok(()),
    }
}

/// A name for an adapter of a base with these names.
///
/// # Errors
/// The rule that it breaks.
pub(super) fn check_alias(name: &str, base_names: &[String]) -> Result<(), RegistryError> {
    let alias = || name.to_owned();
    if name.is_empty() {
        return Err(RegistryError::EmptyAlias);
    }
    if name.len() > ALIAS_BYTES_MAX {
        return Err(RegistryError::AliasTooLong { bytes: name.len() });
    }
    if let Some(character) = name.chars().find(|character| is_forbidden(*character)) {
        return Err(RegistryError::AliasCharacter { alias: alias(), character });
    }
    if base_names.iter().any(|base| base == name) {
        return Err(RegistryError::AliasIsBase { alias: alias() });
    }
    match base_names.iter().find(|base| strip_base(name, base).is_some()) {
        Some(base) => {
            Err(RegistryError::AliasBeginsWithBase { alias: alias(), base: base.clone() })
        }
        None => Ok(()),
    }
}

/// `ALIAS` of `BASE:ALIAS`.
pub(super) fn strip_base<'a>(model_name: &'a str, base: &str) -> Option<&'a str> {
    model_name.strip_prefix(base)?.strip_prefix(SEPARATOR)
}

/// Commas separate names in lists; the others make two names look alike in a log or a shell.
fn is_forbidden(character: char) -> bool {
    character == ',' || character.is_whitespace() || character.is_control()
}
