//! An alias, and what can be asked and told about one.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::SystemTime,
};

use crate::{digest::GenerationDigest, generation::Generation, namespace::Namespace};

/// A name that users send, and the generation it points at now.
#[derive(Clone, Debug)]
pub struct Alias {
    /// Whose name it is.
    pub namespace: Namespace,
    /// The name.
    pub name: Arc<str>,
    /// What is measured is told apart by this: the name, after `NAMESPACE/` unless it is shared.
    pub label: Arc<str>,
    /// Where it points.
    pub generation: Arc<Generation>,
    /// Whether its generation is to stay in memory.
    pub is_pinned: bool,
    /// When it was made.
    pub created: SystemTime,
    /// Requests that it was resolved for and that got their adapter; whoever serves them counts.
    pub n_requests: Arc<AtomicU64>,
}

impl Alias {
    /// A name that nobody has used yet. It is of no registry by itself.
    pub fn new(namespace: &Namespace, name: &str, generation: Arc<Generation>) -> Self {
        let name: Arc<str> = Arc::from(name);
        let label = if namespace.is_shared() {
            Arc::clone(&name)
        } else {
            Arc::from(format!("{namespace}/{name}"))
        };
        Self {
            namespace: namespace.clone(),
            name,
            label,
            generation,
            is_pinned: false,
            created: SystemTime::now(),
            n_requests: Arc::default(),
        }
    }
}

/// What a model name means.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// The plain base.
    Base,
    /// An adapter: its alias (without `BASE:`), with the generation that is pinned for the request.
    Adapter(Alias),
}

/// Where an alias must point for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anywhere, or nowhere.
    Anything,
    /// It must not exist.
    Absent,
    /// At this generation.
    Generation(GenerationDigest),
}

/// A change that was made.
#[derive(Clone, Debug)]
pub struct Moved {
    /// The alias now; for a removed one, as it was.
    pub alias: Alias,
    /// Whether it was made by this.
    pub is_new: bool,
    /// The generation that it left, if it left one.
    pub left: Option<Arc<Generation>>,
    /// Earlier ones that it cannot be pointed back at any more.
    pub given_up: Vec<Arc<Generation>>,
}

impl Moved {
    /// All that the alias has or had, each digest once, of which no alias of any namespace has anything now: neither points
    /// there nor has it in its history. Requests may still use it. Its present generation is among them when somebody has
    /// removed the alias meanwhile.
    pub fn retired(&self) -> Vec<&Arc<Generation>> {
        let all = self.given_up.iter().chain(&self.left).chain([&self.alias.generation]);
        let mut retired: Vec<_> = all.filter(|generation| generation.is_retired()).collect();
        retired.sort_unstable_by_key(|generation| generation.digest);
        retired.dedup_by_key(|generation| generation.digest);
        retired
    }
}

/// An alias as it was before a restart.
#[derive(Clone, Debug)]
pub struct KnownAlias {
    /// The name.
    pub name: String,
    /// Where it points.
    pub generation: Arc<Generation>,
    /// Where it pointed before, the last first.
    pub history: Vec<Arc<Generation>>,
    /// Whether its generation is to stay in memory.
    pub is_pinned: bool,
    /// When it was made.
    pub created: SystemTime,
}
