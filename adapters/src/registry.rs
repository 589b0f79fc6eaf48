//! Which names users may send, and what each points at now.
//!
//! Names belong to a [`Namespace`]. A namespace uses its own names and the shared ones; nothing that it is told depends on
//! any other. Changes touch the one namespace that they name.
//!
//! A request's model name is looked up in this order: a served base name; then, among its own names before the shared
//! ones, a whole alias or `BASE:ALIAS`, for every base name that fits, the longest first. Aliases that could be taken
//! for a base name or begin with one are refused, so the order never decides what a name of one namespace means.

mod alias;
mod alias_name;
mod error;
mod history;
mod names;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::SystemTime,
};

pub use alias::{Alias, Expect, KnownAlias, Moved, Resolution};
use alias_name::{check_alias, check_base_names};
pub use error::RegistryError;
pub use history::HISTORY_MAX;
use history::History;
use names::{Ended, Entry, Names, visible_to};

use crate::{digest::GenerationDigest, generation::Generation, namespace::Namespace};

/// Longest alias: it is echoed in every response and is a metric label.
pub const ALIAS_BYTES_MAX: usize = 256;
/// Aliases that begin so are known to whoever keeps them, and nobody can ask for them: what has not been let into service.
pub const HIDDEN_PREFIX: &str = "candidate:";
/// Most aliases of a server, all namespaces together.
pub const ALIASES_MAX: usize = 1 << 16;

/// Whether an alias is one that nobody can ask for.
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN_PREFIX)
}

/// All names of one server. Share it in an `Arc`; no method blocks for longer than a map operation, none is async, so
/// its lock is never held over an await.
#[derive(Debug)]
pub struct Registry {
    /// The first is the one to show; at least one.
    base_names: Vec<String>,
    names: RwLock<Names>,
}

impl Registry {
    /// A registry without adapters, for a base that answers to all of `base_names`.
    ///
    /// # Errors
    /// When there is no base name, or one cannot be sent as a model name.
    pub fn new(base_names: Vec<String>) -> Result<Self, RegistryError> {
        check_base_names(&base_names)?;
        Ok(Self { base_names, names: RwLock::default() })
    }

    /// The names of the base; the first is the one to show.
    pub fn base_names(&self) -> &[String] {
        &self.base_names
    }

    /// Whether this is a name of the base.
    pub fn is_base(&self, model_name: &str) -> bool {
        self.base_names.iter().any(|base| base == model_name)
    }

    /// What a model name means to `caller` now. A later move of the alias does not change what was returned.
    ///
    /// # Errors
    /// [`RegistryError::UnknownName`].
    pub fn resolve(
        &self,
        caller: &Namespace,
        model_name: &str,
    ) -> Result<Resolution, RegistryError> {
        if self.is_base(model_name) {
            return Ok(Resolution::Base);
        }
        let names = self.read();
        Ok(Resolution::Adapter(self.entry(&names, caller, model_name)?.alias.clone()))
    }

    /// The alias that a model name means, with a certain generation of its own: the present one or one of its history.
    ///
    /// # Errors
    /// [`RegistryError::UnknownName`], also for a base; [`RegistryError::UnknownGeneration`] when nobody has it whose
    /// names `caller` may use, [`RegistryError::ForeignGeneration`] when it is not this alias's.
    pub fn resolve_generation(
        &self,
        caller: &Namespace,
        model_name: &str,
        digest: GenerationDigest,
    ) -> Result<Alias, RegistryError> {
        let names = self.read();
        let entry = self.entry(&names, caller, model_name)?;
        if entry.alias.generation.digest == digest {
            return Ok(entry.alias.clone());
        }
        match entry.history.find(digest) {
            Some(generation) => Ok(Alias { generation, ..entry.alias.clone() }),
            None => Err(names.not_of(&entry.alias.name, digest, caller)),
        }
    }

    /// Whether [`Self::point`] would make this change now. Ask before the work of loading.
    ///
    /// # Errors
    /// The rule that the name breaks, or what the alias is instead.
    pub fn check(
        &self,
        space: &Namespace,
        name: &str,
        expect: Expect,
    ) -> Result<(), RegistryError> {
        check_alias(name, &self.base_names)?;
        self.read().check(space, name, expect)
    }

    /// The generation of this digest that a namespace has, if somebody holds it; of several the last whose
    /// files are ours, else the last.
    pub fn find(&self, space: &Namespace, digest: &GenerationDigest) -> Option<Arc<Generation>> {
        self.read().known(space, digest)
    }

    /// The generations of this digest that somebody holds, of all namespaces; those whose files are ours first. They have
    /// the same weights, and only that: what else is known of each is its namespace's business.
    pub fn held(&self, digest: &GenerationDigest) -> Vec<Arc<Generation>> {
        let mut held = self.read().held(digest);
        held.sort_by_key(|generation| !generation.files.are_ours());
        held
    }

    /// Points an alias at a generation, and makes the alias if there is none. If the namespace has a generation of equal
    /// digest, the alias points at that one and the given one is dropped: equal files are one generation. What the
    /// alias pointed at goes into its history.
    ///
    /// # Errors
    /// When the name breaks a rule or the alias is not as expected; nothing changed then.
    pub fn point(
        &self,
        space: &Namespace,
        name: &str,
        generation: Arc<Generation>,
        expect: Expect,
    ) -> Result<Moved, RegistryError> {
        check_alias(name, &self.base_names)?;
        let mut names = self.write();
        names.check(space, name, expect)?;
        let known = names.admit(space, &generation);
        let moved = if let Some(entry) = names.get_mut(space, name) {
            let (digest, mut cut) = (known.digest, None);
            let left = entry.moves_to(known, |history, left| {
                history.forget(digest);
                cut = history.push(left);
            });
            let given_up = cut.into_iter().collect();
            Moved { alias: entry.alias.clone(), is_new: false, left, given_up }
        } else {
            let alias = Alias::new(space, name, known);
            names.insert(Entry { alias: alias.clone(), history: History::default() });
            Moved { alias, is_new: true, left: None, given_up: Vec::new() }
        };
        // A duplicate ends after the lock: removing its files is none of the readers' business.
        drop(names);
        drop(generation);
        Ok(moved)
    }

    /// Points an alias back at a generation of its history: the last one, or `to`. The history turns like a wheel, so
    /// that rolling back again goes further back, and what was left is the last to come.
    ///
    /// # Errors
    /// As [`Self::roll_back_target`]; nothing changed then.
    pub fn roll_back(
        &self,
        space: &Namespace,
        name: &str,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Moved, RegistryError> {
        let mut names = self.write();
        let target = names.roll_back_target(space, name, to, expect)?;
        let Some(entry) = names.get_mut(space, name) else {
            return Err(RegistryError::UnknownAlias { alias: name.to_owned() });
        };
        let digest = target.digest;
        let left = entry.moves_to(target, |history, left| history.turn_to(digest, left));
        Ok(Moved { alias: entry.alias.clone(), is_new: false, left, given_up: Vec::new() })
    }

    /// Where [`Self::roll_back`] would point an alias now.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAlias`], [`RegistryError::Mismatch`], [`RegistryError::NoHistory`],
    /// [`RegistryError::UnknownGeneration`], [`RegistryError::ForeignGeneration`].
    pub fn roll_back_target(
        &self,
        space: &Namespace,
        name: &str,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Arc<Generation>, RegistryError> {
        self.read().roll_back_target(space, name, to, expect)
    }

    /// Removes an alias and its history. Requests that resolved to it go on.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAlias`] or [`RegistryError::Mismatch`]; nothing changed then.
    pub fn remove(
        &self,
        space: &Namespace,
        name: &str,
        expect: Expect,
    ) -> Result<Moved, RegistryError> {
        let mut names = self.write();
        names.check(space, name, expect)?;
        let Some(entry) = names.take(space, name) else {
            return Err(RegistryError::UnknownAlias { alias: name.to_owned() });
        };
        let Ended { alias, earlier: given_up } = entry.end();
        let left = Some(Arc::clone(&alias.generation));
        Ok(Moved { alias, is_new: false, left, given_up })
    }

    /// Says whether an alias's generation, and whatever it will point at, is to stay in memory.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAlias`].
    pub fn pin(
        &self,
        space: &Namespace,
        name: &str,
        is_pinned: bool,
    ) -> Result<Alias, RegistryError> {
        let mut names = self.write();
        let Some(Entry { alias, .. }) = names.get_mut(space, name) else {
            return Err(RegistryError::UnknownAlias { alias: name.to_owned() });
        };
        match (alias.is_pinned, is_pinned) {
            (false, true) => alias.generation.gains_pin(),
            (true, false) => alias.generation.loses_pin(),
            (false, false) | (true, true) => {}
        }
        alias.is_pinned = is_pinned;
        Ok(alias.clone())
    }

    /// Makes an alias what it is elsewhere: after a restart, or after somebody else changed it. What it was here is
    /// forgotten, but for its count of requests; the given generations take the places of equal ones.
    ///
    /// # Errors
    /// When the name breaks a rule of this server (its base may have another name now), or there are too many.
    pub fn restore(&self, space: &Namespace, known: KnownAlias) -> Result<Moved, RegistryError> {
        let KnownAlias { name, generation, history, is_pinned, created } = known;
        check_alias(&name, &self.base_names)?;
        let mut names = self.write();
        names.check(space, &name, Expect::Anything)?;
        let before = names.take(space, &name);
        for generation in history.iter().chain([&generation]) {
            names.supersede(space, generation);
        }
        let mut alias = Alias::new(space, &name, generation);
        (alias.is_pinned, alias.created) = (is_pinned, created);
        if let Some(before) = &before {
            alias.n_requests = Arc::clone(&before.alias.n_requests);
        }
        names.insert(Entry { alias: alias.clone(), history: history.into_iter().collect() });
        let (is_new, ended) = (before.is_none(), before.map(Entry::end));
        let (left, given_up) = ended
            .map(|ended| (ended.alias.generation, ended.earlier))
            .map_or((None, Vec::new()), |(left, earlier)| (Some(left), earlier));
        Ok(Moved { alias, is_new, left, given_up })
    }

    /// Says when an alias was made, as whoever keeps it knows better.
    pub fn set_created(&self, space: &Namespace, name: &str, created: SystemTime) {
        if let Some(entry) = self.write().get_mut(space, name) {
            entry.alias.created = created;
        }
    }

    /// Takes a generation out of an alias's history, if it is there: it cannot be gone back to any more.
    pub fn forget_earlier(&self, space: &Namespace, name: &str, digest: GenerationDigest) {
        let mut forgotten = None;
        if let Some(entry) = self.write().get_mut(space, name) {
            forgotten = entry.history.find(digest);
            entry.history.forget(digest);
        }
        // After the lock, for its files.
        drop(forgotten);
    }

    /// An alias of a namespace by its own name, hidden or not.
    pub fn get(&self, space: &Namespace, name: &str) -> Option<Alias> {
        self.read().get(space, name).map(|entry| entry.alias.clone())
    }

    /// The alias that `caller` means by a name: its own, else a shared one.
    pub fn visible(&self, caller: &Namespace, name: &str) -> Option<Alias> {
        if is_hidden(name) {
            return None;
        }
        visible_to(caller).find_map(|space| self.get(&space, name))
    }

    /// Where an alias of a namespace pointed before, the last first; empty for an unknown one.
    pub fn history(&self, space: &Namespace, name: &str) -> Vec<Arc<Generation>> {
        self.read().get(space, name).map(|entry| entry.history.list()).unwrap_or_default()
    }

    /// The aliases of a namespace that can be asked for, sorted by name.
    pub fn list(&self, space: &Namespace) -> Vec<Alias> {
        let names = self.read();
        let aliases = names.entries_of(space).map(|entry| &entry.alias);
        sorted(aliases.filter(|alias| !is_hidden(&alias.name)).cloned().collect())
    }

    /// What `caller` may use, sorted by name: its own aliases, and the shared ones whose name it has not itself.
    pub fn list_visible(&self, caller: &Namespace) -> Vec<Alias> {
        let names = self.read();
        let entries = visible_to(caller).flat_map(|space| {
            let is_own = space == *caller;
            let entries = names.entries_of(&space).map(|entry| &entry.alias).collect::<Vec<_>>();
            let means = |alias: &&Alias| {
                !is_hidden(&alias.name) && (is_own || names.get(caller, &alias.name).is_none())
            };
            entries.into_iter().filter(means).cloned().collect::<Vec<_>>()
        });
        sorted(entries.collect())
    }

    /// All aliases of all namespaces, hidden ones too, sorted by namespace and name.
    pub fn list_all(&self) -> Vec<Alias> {
        let mut all: Vec<_> = self.read().entries().map(|entry| entry.alias.clone()).collect();
        all.sort_unstable_by(|one, other| {
            (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name))
        });
        all
    }

    /// How many aliases there are, all namespaces together.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether only the base is served.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entry<'n>(
        &self,
        names: &'n Names,
        caller: &Namespace,
        model_name: &str,
    ) -> Result<&'n Entry, RegistryError> {
        names
            .find(caller, model_name, &self.base_names)
            .filter(|entry| !is_hidden(&entry.alias.name))
            .ok_or_else(|| RegistryError::UnknownName { model_name: model_name.to_owned() })
    }

    // No code runs under the lock that could leave the maps half changed, so a poisoned lock is still good.
    fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sorted(mut aliases: Vec<Alias>) -> Vec<Alias> {
    aliases.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    aliases
}
