//! What a change is about.

use pleach_adapters::Namespace;
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
}
