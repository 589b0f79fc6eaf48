//! Which names users may send, and what each points at now.
//!
//! A request's model name is looked up in this order: a served base name; a whole alias; `BASE:ALIAS`, for every base
//! name that fits, the longest first. Aliases that could be taken for one of the other two are refused, so the order
//! never decides what a name means.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::SystemTime,
};

use pleach_engine::engine::AdapterLease;

use crate::{digest::GenerationDigest, generation::Generation};

/// Longest alias: it is echoed in every response and is a metric label.
pub const ALIAS_BYTES_MAX: usize = 256;

/// Separates base and alias in a model name.
const SEPARATOR: char = ':';

/// A name that cannot be served.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// No base name at all.
    #[error("a server needs at least one name of its base model")]
    NoBaseName,
    /// A base name that is empty or holds a comma, white space or a control character.
    #[error(
        "base model name {name:?} is empty or holds a comma, white space or a control character"
    )]
    InvalidBaseName {
        /// The name.
        name: String,
    },
    /// An empty alias.
    #[error("an adapter's name may not be empty")]
    EmptyAlias,
    /// An alias beyond the limit.
    #[error(
        "an adapter's name of {bytes} bytes is too long, at most {ALIAS_BYTES_MAX} are allowed"
    )]
    AliasTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A comma, white space or control character.
    #[error(
        "adapter name {alias:?} holds {character:?}: commas, white space and control characters are not allowed"
    )]
    AliasCharacter {
        /// The alias.
        alias: String,
        /// The first such character.
        character: char,
    },
    /// The alias is a base name.
    #[error("adapter name `{alias}` is a name of the base model")]
    AliasIsBase {
        /// The alias.
        alias: String,
    },
    /// The alias could be taken for `BASE:ALIAS`.
    #[error("adapter name `{alias}` begins with the base model's name `{base}` and a colon")]
    AliasBeginsWithBase {
        /// The alias.
        alias: String,
        /// The base name.
        base: String,
    },
    /// The alias points at a generation already.
    #[error("an adapter named `{alias}` is loaded already, generation {}", generation.short())]
    AliasExists {
        /// The alias.
        alias: String,
        /// Where it points.
        generation: GenerationDigest,
    },
}

/// No base name and no alias.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the model `{model_name}` does not exist")]
pub struct UnknownModel {
    /// What was asked for.
    pub model_name: String,
}

/// A name that users send, and the generation it points at now.
#[derive(Debug)]
pub struct Alias<L = AdapterLease> {
    /// The name.
    pub name: Arc<str>,
    /// Where it points.
    pub generation: Arc<Generation<L>>,
    /// When it was made.
    pub created: SystemTime,
}

// By hand: a derive would ask for `L: Clone`.
impl<L> Clone for Alias<L> {
    fn clone(&self) -> Self {
        Self {
            name: Arc::clone(&self.name),
            generation: Arc::clone(&self.generation),
            created: self.created,
        }
    }
}

/// What a model name means.
#[derive(Debug)]
pub enum Resolution<L = AdapterLease> {
    /// The plain base.
    Base,
    /// An adapter: its alias (without `BASE:`), and the generation, pinned for the request by this `Arc`.
    Adapter(Arc<str>, Arc<Generation<L>>),
}

impl<L> Clone for Resolution<L> {
    fn clone(&self) -> Self {
        match self {
            Self::Base => Self::Base,
            Self::Adapter(alias, generation) => {
                Self::Adapter(Arc::clone(alias), Arc::clone(generation))
            }
        }
    }
}

/// All names of one server. Share it in an `Arc`; no method blocks for longer than a map operation, none is async, so
/// its lock is never held over an await.
#[derive(Debug)]
pub struct Registry<L = AdapterLease> {
    /// The first is the one to show; at least one.
    base_names: Vec<String>,
    aliases: RwLock<HashMap<Arc<str>, Alias<L>>>,
}

impl<L> Registry<L> {
    /// A registry without adapters, for a base that answers to all of `base_names`.
    ///
    /// # Errors
    /// When there is no base name, or one cannot be sent as a model name.
    pub fn new(base_names: Vec<String>) -> Result<Self, RegistryError> {
        if base_names.is_empty() {
            return Err(RegistryError::NoBaseName);
        }
        if let Some(name) =
            base_names.iter().find(|name| name.is_empty() || name.contains(is_forbidden))
        {
            return Err(RegistryError::InvalidBaseName { name: name.clone() });
        }
        Ok(Self { base_names, aliases: RwLock::default() })
    }

    /// The names of the base; the first is the one to show.
    pub fn base_names(&self) -> &[String] {
        &self.base_names
    }

    /// What a model name means now. A later move of the alias does not change what was returned.
    ///
    /// # Errors
    /// [`UnknownModel`].
    pub fn resolve(&self, model_name: &str) -> Result<Resolution<L>, UnknownModel> {
        if self.base_names.iter().any(|base| base == model_name) {
            return Ok(Resolution::Base);
        }
        let aliases = self.read();
        let alias = aliases.get(model_name).or_else(|| {
            let qualified = self.base_names.iter().filter_map(|base| {
                let alias = strip_base(model_name, base)?;
                Some((base.len(), aliases.get(alias)?))
            });
            qualified.max_by_key(|(base_bytes, _)| *base_bytes).map(|(_, alias)| alias)
        });
        match alias {
            Some(alias) => {
                Ok(Resolution::Adapter(Arc::clone(&alias.name), Arc::clone(&alias.generation)))
            }
            None => Err(UnknownModel { model_name: model_name.to_owned() }),
        }
    }

    /// Whether [`Self::insert`] would take this name now. Ask before the work of loading.
    ///
    /// # Errors
    /// The rule that the name breaks.
    pub fn check_new_alias(&self, name: &str) -> Result<(), RegistryError> {
        self.check_name(name)?;
        match self.read().get(name) {
            Some(alias) => Err(exists(alias)),
            None => Ok(()),
        }
    }

    /// A resident generation with this digest, so that equal files need not be installed twice.
    pub fn find(&self, digest: &GenerationDigest) -> Option<Arc<Generation<L>>> {
        find_in(&self.read(), digest)
    }

    /// Makes a new alias. If a generation of equal digest is resident, the alias points at that one and the given one
    /// (with its lease) is dropped: equal files are one generation.
    ///
    /// # Errors
    /// When the name breaks a rule or exists; nothing changed then.
    pub fn insert(
        &self,
        name: &str,
        generation: Arc<Generation<L>>,
    ) -> Result<Alias<L>, RegistryError> {
        self.check_name(name)?;
        let mut aliases = self.write();
        let resident = find_in(&aliases, &generation.digest);
        let alias = match aliases.entry(Arc::from(name)) {
            Entry::Occupied(entry) => return Err(exists(entry.get())),
            Entry::Vacant(entry) => {
                let name = Arc::clone(entry.key());
                let generation = resident.unwrap_or_else(|| Arc::clone(&generation));
                entry.insert(Alias { name, generation, created: SystemTime::now() }).clone()
            }
        };
        // The lease of a duplicate ends after the lock: giving a slot back is the engine's business, not a reader's.
        drop(aliases);
        drop(generation);
        Ok(alias)
    }

    /// All aliases, sorted by name.
    pub fn list(&self) -> Vec<Alias<L>> {
        let mut aliases: Vec<_> = self.read().values().cloned().collect();
        aliases.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        aliases
    }

    /// How many aliases there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether only the base is served.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check_name(&self, name: &str) -> Result<(), RegistryError> {
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
        if self.base_names.iter().any(|base| base == name) {
            return Err(RegistryError::AliasIsBase { alias: alias() });
        }
        match self.base_names.iter().find(|base| strip_base(name, base).is_some()) {
            Some(base) => {
                Err(RegistryError::AliasBeginsWithBase { alias: alias(), base: base.clone() })
            }
            None => Ok(()),
        }
    }

    // No code runs under the lock that could leave the map half changed, so a poisoned lock is still good.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Alias<L>>> {
        self.aliases.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Alias<L>>> {
        self.aliases.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find_in<L>(
    aliases: &HashMap<Arc<str>, Alias<L>>,
    digest: &GenerationDigest,
) -> Option<Arc<Generation<L>>> {
    aliases
        .values()
        .find(|alias| alias.generation.digest == *digest)
        .map(|alias| Arc::clone(&alias.generation))
}

fn exists<L>(alias: &Alias<L>) -> RegistryError {
    RegistryError::AliasExists {
        alias: alias.name.to_string(),
        generation: alias.generation.digest,
    }
}

/// `ALIAS` of `BASE:ALIAS`.
fn strip_base<'a>(model_name: &'a str, base: &str) -> Option<&'a str> {
    model_name.strip_prefix(base)?.strip_prefix(SEPARATOR)
}

/// Commas separate names in lists; the others make two names look alike in a log or a shell.
fn is_forbidden(character: char) -> bool {
    character == ',' || character.is_whitespace() || character.is_control()
}
