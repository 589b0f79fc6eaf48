//! Whose names are meant.

use std::{fmt, sync::Arc};

const SHARED: &str = "shared";

/// Whose names are meant. What it stands for (a tenant) is the business of those who make it. Two namespaces may both
/// have a name; neither learns of the other's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The one whose names everybody may use.
    pub fn shared() -> Self {
        Self::new(SHARED)
    }

    /// The namespace of this id; `shared` is [`Self::shared`].
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// Its id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether everybody may use its names.
    pub fn is_shared(&self) -> bool {
        &*self.0 == SHARED
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
