//! What the registry's lock guards: the aliases of every namespace, and the generations that somebody holds.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use super::{ALIASES_MAX, Alias, Expect, RegistryError, alias_name::strip_base, history::History};
use crate::{
    digest::GenerationDigest,
    generation::{Generation, Pointers},
    namespace::Namespace,
};

/// Entries of ended generations are swept out when there are this many and twice as many as after the last sweep.
const SWEEP_MIN: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Names {
    spaces: HashMap<Namespace, HashMap<Arc<str>, Entry>>,
    n_aliases: usize,
    contents: HashMap<GenerationDigest, Content>,
    sweep_at: usize,
}

/// An alias and where it pointed before.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) alias: Alias,
    pub(super) history: History,
}

/// What an alias was and where it pointed before: it counts for neither any more.
pub(super) struct Ended {
    pub(super) alias: Alias,
    pub(super) earlier: Vec<Arc<Generation>>,
}

/// All that somebody holds of one digest.
#[derive(Debug, Default)]
struct Content {
    pointers: Arc<Pointers>,
    /// Of a namespace, the last one with files of ours counts, else the last one.
    by_space: Vec<(Namespace, Weak<Generation>)>,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.n_aliases
    }

    pub(super) fn get(&self, space: &Namespace, name: &str) -> Option<&Entry> {
        self.spaces.get(space)?.get(name)
    }

    pub(super) fn get_mut(&mut self, space: &Namespace, name: &str) -> Option<&mut Entry> {
        self.spaces.get_mut(space)?.get_mut(name)
    }

    /// Puts in an alias that is not there.
    pub(super) fn insert(&mut self, entry: Entry) {
        let Alias { namespace, name, generation, is_pinned, .. } = &entry.alias;
        generation.gains_alias(*is_pinned);
        let space = self.spaces.entry(namespace.clone()).or_default();
        let replaced = space.insert(Arc::clone(name), entry);
        assert!(replaced.is_none(), "an alias was there already");
        self.n_aliases += 1;
    }

    /// Takes an alias out, which still counts as pointing at its generation: for the caller to end.
    pub(super) fn take(&mut self, space: &Namespace, name: &str) -> Option<Entry> {
        let aliases = self.spaces.get_mut(space)?;
        let entry = aliases.remove(name)?;
        if aliases.is_empty() {
            self.spaces.remove(space);
        }
        self.n_aliases -= 1;
        Some(entry)
    }

    pub(super) fn entries_of(&self, space: &Namespace) -> impl Iterator<Item = &Entry> {
        self.spaces.get(space).into_iter().flat_map(HashMap::values)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.spaces.values().flat_map(HashMap::values)
    }

    /// What a model name means to a namespace: one of its own names, else a shared one.
    pub(super) fn find(
        &self,
        caller: &Namespace,
        model_name: &str,
        base_names: &[String],
    ) -> Option<&Entry> {
        visible_to(caller).find_map(|space| {
            let aliases = self.spaces.get(&space)?;
            aliases.get(model_name).or_else(|| {
                let qualified = base_names.iter().filter_map(|base| {
                    Some((base.len(), aliases.get(strip_base(model_name, base)?)?))
                });
                qualified.max_by_key(|(base_bytes, _)| *base_bytes).map(|(_, entry)| entry)
            })
        })
    }

    pub(super) fn check(
        &self,
        space: &Namespace,
        name: &str,
        expect: Expect,
    ) -> Result<(), RegistryError> {
        let found = self.get(space, name).map(|entry| entry.alias.generation.digest);
        let alias = || name.to_owned();
        match (expect, found) {
            (Expect::Absent, Some(generation)) => {
                Err(RegistryError::AliasExists { alias: alias(), generation })
            }
            (Expect::Generation(expected), found) if found != Some(expected) => {
                Err(RegistryError::Mismatch { alias: alias(), expected, found })
            }
            (Expect::Absent | Expect::Anything, None) if self.n_aliases >= ALIASES_MAX => {
                Err(RegistryError::TooManyAliases)
            }
            _ => Ok(()),
        }
    }

    /// Where an alias can be pointed back to: the last generation of its history, or `to`.
    pub(super) fn roll_back_target(
        &self,
        space: &Namespace,
        name: &str,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Arc<Generation>, RegistryError> {
        self.check(space, name, expect)?;
        let unknown = || RegistryError::UnknownAlias { alias: name.to_owned() };
        let Entry { alias, history } = self.get(space, name).ok_or_else(unknown)?;
        match to {
            Some(to) if to == alias.generation.digest => Ok(Arc::clone(&alias.generation)),
            Some(to) => history.find(to).ok_or_else(|| self.not_of(name, to, space)),
            None => {
                history.last().ok_or_else(|| RegistryError::NoHistory { alias: name.to_owned() })
            }
        }
    }

    /// The namespace's generation of this digest, which may be the given one from now on.
    pub(super) fn admit(
        &mut self,
        space: &Namespace,
        generation: &Arc<Generation>,
    ) -> Arc<Generation> {
        if let Some(known) = self.known(space, &generation.digest) {
            known.learn_from(generation);
            if known.files.are_ours() || !generation.files.are_ours() {
                return known;
            }
        }
        self.supersede(space, generation);
        Arc::clone(generation)
    }

    /// Makes this the namespace's generation of its digest. What was it before lives on with those who hold it.
    pub(super) fn supersede(&mut self, space: &Namespace, generation: &Arc<Generation>) {
        if self.contents.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.contents.retain(|_, content| content.living().next().is_some());
            self.sweep_at = 2 * self.contents.len();
        }
        let content = self.contents.entry(generation.digest).or_default();
        content.by_space.retain(|(_, generation)| generation.strong_count() > 0);
        content.by_space.push((space.clone(), Arc::downgrade(generation)));
        generation.share(Arc::clone(&content.pointers));
    }

    /// The namespace's generation of this digest, if somebody holds it.
    pub(super) fn known(
        &self,
        space: &Namespace,
        digest: &GenerationDigest,
    ) -> Option<Arc<Generation>> {
        let by_space = &self.contents.get(digest)?.by_space;
        let of_space = by_space.iter().rev().filter(|(owner, _)| owner == space);
        let living: Vec<_> = of_space.filter_map(|(_, generation)| generation.upgrade()).collect();
        let ours = living.iter().find(|generation| generation.files.are_ours());
        ours.or(living.first()).cloned()
    }

    /// Every generation of this digest that somebody holds.
    pub(super) fn held(&self, digest: &GenerationDigest) -> Vec<Arc<Generation>> {
        self.contents.get(digest).map(|content| content.living().collect()).unwrap_or_default()
    }

    /// Why an alias has not this generation, as far as a namespace may know.
    pub(super) fn not_of(
        &self,
        alias: &str,
        generation: GenerationDigest,
        caller: &Namespace,
    ) -> RegistryError {
        let alias = alias.to_owned();
        if visible_to(caller).any(|space| self.known(&space, &generation).is_some()) {
            RegistryError::ForeignGeneration { alias, generation }
        } else {
            RegistryError::UnknownGeneration { alias, generation }
        }
    }
}

impl Content {
    fn living(&self) -> impl Iterator<Item = Arc<Generation>> + '_ {
        self.by_space.iter().filter_map(|(_, generation)| generation.upgrade())
    }
}

impl Entry {
    /// Points elsewhere; where it pointed, if that is somewhere else. `keep` puts that into the history.
    pub(super) fn moves_to(
        &mut self,
        generation: Arc<Generation>,
        keep: impl FnOnce(&mut History, Arc<Generation>),
    ) -> Option<Arc<Generation>> {
        if generation.digest == self.alias.generation.digest {
            return None;
        }
        let is_pinned = self.alias.is_pinned;
        generation.gains_alias(is_pinned);
        let left = std::mem::replace(&mut self.alias.generation, generation);
        keep(&mut self.history, Arc::clone(&left));
        left.loses_alias(is_pinned);
        Some(left)
    }

    /// The alias is gone, or another has its place.
    pub(super) fn end(self) -> Ended {
        let Self { alias, history } = self;
        alias.generation.loses_alias(alias.is_pinned);
        let earlier = history.list();
        Ended { alias, earlier }
    }
}

/// Whose names a namespace may use, its own first.
pub(super) fn visible_to(caller: &Namespace) -> impl Iterator<Item = Namespace> {
    let shared = (!caller.is_shared()).then(Namespace::shared);
    std::iter::once(caller.clone()).chain(shared)
}
