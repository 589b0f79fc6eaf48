//! Which names users may send, and what each points at now.
//!
//! A request's model name is looked up in this order: a served base name; a whole alias; `BASE:ALIAS`, for every base
//! name that fits, the longest first. Aliases that could be taken for one of the other two are refused, so the order
//! never decides what a name means.

mod error;
mod history;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak, atomic::AtomicU64},
    time::SystemTime,
};

pub use error::RegistryError;
pub use history::HISTORY_MAX;
use history::History;

use crate::{digest::GenerationDigest, generation::Generation};

/// Longest alias: it is echoed in every response and is a metric label.
pub const ALIAS_BYTES_MAX: usize = 256;
/// Most aliases of a server.
pub const ALIASES_MAX: usize = 1 << 16;
/// Entries of ended generations are swept out when there are this many and twice as many as after the last sweep.
const SWEEP_MIN: usize = 64;

/// Separates base and alias in a model name.
const SEPARATOR: char = ':';

/// A name that users send, and the generation it points at now.
#[derive(Clone, Debug)]
pub struct Alias {
    /// The name.
    pub name: Arc<str>,
    /// Where it points.
    pub generation: Arc<Generation>,
    /// When it was made.
    pub created: SystemTime,
    /// Requests that it was resolved for and that got their adapter; whoever serves them counts.
    pub n_requests: Arc<AtomicU64>,
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
    /// The generation that it left, if no other alias points there: it is retired. Requests may still use it.
    pub retired: Option<Arc<Generation>>,
}

/// All names of one server. Share it in an `Arc`; no method blocks for longer than a map operation, none is async, so
/// its lock is never held over an await.
#[derive(Debug)]
pub struct Registry {
    /// The first is the one to show; at least one.
    base_names: Vec<String>,
    names: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    aliases: HashMap<Arc<str>, Entry>,
    /// Every generation that somebody holds, so that equal files are one.
    generations: HashMap<GenerationDigest, Weak<Generation>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry {
    alias: Alias,
    history: History,
}

impl Registry {
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
        Ok(Self { base_names, names: RwLock::default() })
    }

    /// The names of the base; the first is the one to show.
    pub fn base_names(&self) -> &[String] {
        &self.base_names
    }

    /// What a model name means now. A later move of the alias does not change what was returned.
    ///
    /// # Errors
    /// [`RegistryError::UnknownName`].
    pub fn resolve(&self, model_name: &str) -> Result<Resolution, RegistryError> {
        if self.is_base(model_name) {
            return Ok(Resolution::Base);
        }
        let names = self.read();
        Ok(Resolution::Adapter(self.entry(&names, model_name)?.alias.clone()))
    }

    /// The alias that a model name means, with a certain generation of its own: the present one or one of its history.
    ///
    /// # Errors
    /// [`RegistryError::UnknownName`], also for a base; [`RegistryError::UnknownGeneration`] when nobody has it,
    /// [`RegistryError::ForeignGeneration`] when it is not this alias's.
    pub fn resolve_generation(
        &self,
        model_name: &str,
        digest: GenerationDigest,
    ) -> Result<Alias, RegistryError> {
        let names = self.read();
        let entry = self.entry(&names, model_name)?;
        if entry.alias.generation.digest == digest {
            return Ok(entry.alias.clone());
        }
        match entry.history.find(digest) {
            Some(generation) => Ok(Alias { generation, ..entry.alias.clone() }),
            None => Err(names.not_of(&entry.alias.name, digest)),
        }
    }

    /// Whether [`Self::point`] would make this change now. Ask before the work of loading.
    ///
    /// # Errors
    /// The rule that the name breaks, or what the alias is instead.
    pub fn check(&self, name: &str, expect: Expect) -> Result<(), RegistryError> {
        self.check_name(name)?;
        self.read().check(name, expect)
    }

    /// A generation with this digest that somebody holds.
    pub fn find(&self, digest: &GenerationDigest) -> Option<Arc<Generation>> {
        self.read().generations.get(digest)?.upgrade()
    }

    /// Points an alias at a generation, and makes the alias if there is none. If a generation of equal digest is known,
    /// the alias points at that one and the given one is dropped: equal files are one generation. What the alias pointed
    /// at goes into its history.
    ///
    /// # Errors
    /// When the name breaks a rule or the alias is not as expected; nothing changed then.
    pub fn point(
        &self,
        name: &str,
        generation: Arc<Generation>,
        expect: Expect,
    ) -> Result<Moved, RegistryError> {
        self.check_name(name)?;
        let mut names = self.write();
        names.check(name, expect)?;
        let known = names.admit(&generation);
        let mut cut = None;
        let moved = if let Some(entry) = names.aliases.get_mut(name) {
            let before = entry.moves_to(Arc::clone(&known));
            if let Some(before) = &before {
                entry.history.forget(known.digest);
                cut = entry.history.push(Arc::clone(before));
            }
            Moved { alias: entry.alias.clone(), retired: retired(before) }
        } else {
            let name: Arc<str> = Arc::from(name);
            known.gains_alias();
            let alias = Alias {
                name: Arc::clone(&name),
                generation: known,
                created: SystemTime::now(),
                n_requests: Arc::default(),
            };
            names.aliases.insert(name, Entry { alias: alias.clone(), history: History::default() });
            Moved { alias, retired: None }
        };
        // What was given up ends after the lock: removing its files is none of the readers' business.
        drop(names);
        drop((generation, cut));
        Ok(moved)
    }

    /// Points an alias back at a generation of its history: the last one, or `to`. The history turns like a wheel, so
    /// that rolling back again goes further back, and what was left is the last to come.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAlias`], [`RegistryError::Mismatch`], [`RegistryError::NoHistory`],
    /// [`RegistryError::UnknownGeneration`], [`RegistryError::ForeignGeneration`]; nothing changed then.
    pub fn roll_back(
        &self,
        name: &str,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Moved, RegistryError> {
        let mut names = self.write();
        names.check(name, expect)?;
        let foreign = |names: &Names, to| names.not_of(name, to);
        let target = match names.aliases.get(name) {
            None => return Err(RegistryError::UnknownAlias { alias: name.to_owned() }),
            Some(entry) if to == Some(entry.alias.generation.digest) => {
                return Ok(Moved { alias: entry.alias.clone(), retired: None });
            }
            Some(entry) => match to {
                Some(to) => entry.history.find(to).ok_or_else(|| foreign(&names, to))?,
                None => entry
                    .history
                    .last()
                    .ok_or_else(|| RegistryError::NoHistory { alias: name.to_owned() })?,
            },
        };
        let Some(entry) = names.aliases.get_mut(name) else {
            return Err(RegistryError::UnknownAlias { alias: name.to_owned() });
        };
        let before = entry.moves_to(Arc::clone(&target));
        if let Some(before) = &before {
            entry.history.turn_to(target.digest, Arc::clone(before));
        }
        Ok(Moved { alias: entry.alias.clone(), retired: retired(before) })
    }

    /// Removes an alias and its history. Requests that resolved to it go on.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAlias`] or [`RegistryError::Mismatch`]; nothing changed then.
    pub fn remove(&self, name: &str, expect: Expect) -> Result<Moved, RegistryError> {
        let mut names = self.write();
        names.check(name, expect)?;
        let Some(Entry { alias, history }) = names.aliases.remove(name) else {
            return Err(RegistryError::UnknownAlias { alias: name.to_owned() });
        };
        alias.generation.loses_alias();
        drop(names);
        drop(history);
        let retired = retired(Some(Arc::clone(&alias.generation)));
        Ok(Moved { alias, retired })
    }

    /// An alias by its own name.
    pub fn get(&self, name: &str) -> Option<Alias> {
        self.read().aliases.get(name).map(|entry| entry.alias.clone())
    }

    /// Where an alias pointed before, the last first; empty for an unknown one.
    pub fn history(&self, name: &str) -> Vec<Arc<Generation>> {
        self.read().aliases.get(name).map(|entry| entry.history.list()).unwrap_or_default()
    }

    /// All aliases, sorted by name.
    pub fn list(&self) -> Vec<Alias> {
        let mut aliases: Vec<_> =
            self.read().aliases.values().map(|entry| entry.alias.clone()).collect();
        aliases.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        aliases
    }

    /// How many aliases there are.
    pub fn len(&self) -> usize {
        self.read().aliases.len()
    }

    /// Whether only the base is served.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is a name of the base.
    pub fn is_base(&self, model_name: &str) -> bool {
        self.base_names.iter().any(|base| base == model_name)
    }

    fn entry<'n>(&self, names: &'n Names, model_name: &str) -> Result<&'n Entry, RegistryError> {
        let whole = names.aliases.get(model_name);
        let entry = whole.or_else(|| {
            let qualified = self.base_names.iter().filter_map(|base| {
                let alias = strip_base(model_name, base)?;
                Some((base.len(), names.aliases.get(alias)?))
            });
            qualified.max_by_key(|(base_bytes, _)| *base_bytes).map(|(_, entry)| entry)
        });
        entry.ok_or_else(|| RegistryError::UnknownName { model_name: model_name.to_owned() })
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
        if self.is_base(name) {
            return Err(RegistryError::AliasIsBase { alias: alias() });
        }
        match self.base_names.iter().find(|base| strip_base(name, base).is_some()) {
            Some(base) => {
                Err(RegistryError::AliasBeginsWithBase { alias: alias(), base: base.clone() })
            }
            None => Ok(()),
        }
    }

    // No code runs under the lock that could leave the maps half changed, so a poisoned lock is still good.
    fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn check(&self, name: &str, expect: Expect) -> Result<(), RegistryError> {
        let found = self.aliases.get(name).map(|entry| entry.alias.generation.digest);
        let alias = || name.to_owned();
        match (expect, found) {
            (Expect::Absent, Some(generation)) => {
                Err(RegistryError::AliasExists { alias: alias(), generation })
            }
            (Expect::Generation(expected), found) if found != Some(expected) => {
                Err(RegistryError::Mismatch { alias: alias(), expected, found })
            }
            (Expect::Absent | Expect::Anything, None) if self.aliases.len() >= ALIASES_MAX => {
                Err(RegistryError::TooManyAliases)
            }
            _ => Ok(()),
        }
    }

    /// The known generation of this digest, which may be the given one from now on.
    fn admit(&mut self, generation: &Arc<Generation>) -> Arc<Generation> {
        if let Some(known) = self.generations.get(&generation.digest).and_then(Weak::upgrade) {
            return known;
        }
        if self.generations.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.generations.retain(|_, generation| generation.strong_count() > 0);
            self.sweep_at = 2 * self.generations.len();
        }
        self.generations.insert(generation.digest, Arc::downgrade(generation));
        Arc::clone(generation)
    }

    /// Why an alias has not this generation.
    fn not_of(&self, alias: &str, generation: GenerationDigest) -> RegistryError {
        let alias = alias.to_owned();
        if self.generations.get(&generation).is_some_and(|known| known.strong_count() > 0) {
            RegistryError::ForeignGeneration { alias, generation }
        } else {
            RegistryError::UnknownGeneration { alias, generation }
        }
    }
}

impl Entry {
    /// Points elsewhere; where it pointed, if that is somewhere else.
    fn moves_to(&mut self, generation: Arc<Generation>) -> Option<Arc<Generation>> {
        if generation.digest == self.alias.generation.digest {
            return None;
        }
        generation.gains_alias();
        self.alias.generation.loses_alias();
        Some(std::mem::replace(&mut self.alias.generation, generation))
    }
}

fn retired(left: Option<Arc<Generation>>) -> Option<Arc<Generation>> {
    left.filter(|generation| generation.is_retired())
}

/// `ALIAS` of `BASE:ALIAS`.
fn strip_base<'a>(model_name: &'a str, base: &str) -> Option<&'a str> {
    model_name.strip_prefix(base)?.strip_prefix(SEPARATOR)
}

/// Commas separate names in lists; the others make two names look alike in a log or a shell.
fn is_forbidden(character: char) -> bool {
    character == ',' || character.is_whitespace() || character.is_control()
}
