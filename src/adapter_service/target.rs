//! What a change is about.

use pleach_adapters::{Namespace, RegistryError, registry::is_hidden};
use pleach_store::Owner;

/// A name of an owner that is to be changed, and by whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// Whose name.
    pub owner: Owner,
    /// The name.
    pub name: String,
    /// Who changes it, for the log of moves.
    pub who: String,
}

impl Target {
    /// Where the name is looked for.
    pub fn space(&self) -> Namespace {
        Namespace::new(self.owner.as_str())
    }

    /// A name that somebody may change who asks for it: a hidden one does not exist for them.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAlias`].
    pub(super) fn must_be_open(&self) -> Result<(), RegistryError> {
        if is_hidden(&self.name) {
            return Err(RegistryError::UnknownAlias { alias: self.name.clone() });
        }
        Ok(())
    }

    /// A name that somebody may make who asks for it.
    ///
    /// # Errors
    /// [`RegistryError::AliasHidden`].
    pub(super) fn may_be_made(&self) -> Result<(), RegistryError> {
        if is_hidden(&self.name) {
            return Err(RegistryError::AliasHidden { alias: self.name.clone() });
        }
        Ok(())
    }
}
