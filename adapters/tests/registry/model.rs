//! Random operations in several namespaces, compared with a simple model.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pleach_adapters::{
    Alias, Expect, Generation, KnownAlias, Moved, Namespace, Registry, Resolution,
    registry::HISTORY_MAX,
};
use proptest::prelude::*;

use crate::{digest, generation, registry};

#[derive(Clone, Debug)]
enum Operation {
    Insert(Name, u8),
    Point(Name, u8),
    Swap(Name, u8, u8),
    RollBack(Name, Option<u8>),
    Remove(Name),
    Pin(Name, bool),
    /// As after a restart: the alias is put there as it is.
    Restore(Name),
    /// A request of a namespace begins on what the name means to it, and lives until the end.
    Resolve(Name),
    EndOldest,
}

/// Namespace and name.
type Name = (&'static str, &'static str);

const SPACES: [&str; 3] = ["shared", "one", "two"];

fn operation() -> impl Strategy<Value = Operation> {
    let name = (
        prop::sample::select(SPACES.to_vec()),
        prop::sample::select(vec!["x", "y", "bb:z", "a:y", "a", ""]),
    );
    let content = 0_u8..12;
    prop_oneof![
        1 => (name.clone(), content.clone()).prop_map(|(name, new)| Operation::Insert(name, new)),
        3 => (name.clone(), content.clone()).prop_map(|(name, new)| Operation::Point(name, new)),
        1 => (name.clone(), content.clone(), content.clone())
            .prop_map(|(name, old, new)| Operation::Swap(name, old, new)),
        1 => (name.clone(), prop::option::of(content))
            .prop_map(|(name, to)| Operation::RollBack(name, to)),
        1 => name.clone().prop_map(Operation::Remove),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, pin)| Operation::Pin(name, pin)),
        1 => name.clone().prop_map(Operation::Restore),
        1 => name.prop_map(Operation::Resolve),
        1 => Just(Operation::EndOldest),
    ]
}

/// Names by their present generation and the earlier ones, the last first.
#[derive(Default)]
struct Model {
    names: BTreeMap<Name, Vec<u8>>,
    pinned: BTreeSet<Name>,
}

impl Model {
    fn allows((_, name): Name) -> bool {
        !matches!(name, "" | "a" | "bb") && !name.starts_with("a:") && !name.starts_with("bb:")
    }

    fn point(&mut self, name: Name, content: u8) {
        let line = self.names.entry(name).or_default();
        line.retain(|other| *other != content);
        line.insert(0, content);
        line.truncate(1 + HISTORY_MAX);
    }

    fn roll_back(&mut self, name: Name, to: Option<u8>) -> bool {
        let Some(line) = self.names.get_mut(&name) else { return false };
        let place = match to {
            Some(to) => line.iter().position(|content| *content == to),
            None => (line.len() > 1).then_some(1),
        };
        place.map(|place| line.rotate_left(place)).is_some()
    }

    /// What a name means to a namespace.
    fn meant(&self, (space, name): Name) -> Option<u8> {
        let line = self.names.get(&(space, name)).or_else(|| self.names.get(&("shared", name)));
        line.map(|line| line[0])
    }

    /// What any name points at.
    fn pointed_at(&self) -> BTreeSet<u8> {
        self.names.values().map(|line| line[0]).collect()
    }

    /// What any name points at or did.
    fn named(&self) -> BTreeSet<u8> {
        self.names.values().flatten().copied().collect()
    }

    fn pinned_contents(&self) -> BTreeSet<u8> {
        self.pinned.iter().map(|name| self.names[name][0]).collect()
    }
}

/// Does to both what an operation says, and compares their answers; what the registry says was retired.
fn apply(
    registry: &Registry,
    model: &mut Model,
    requests: &mut Vec<Alias>,
    operation: &Operation,
) -> Vec<u8> {
    let in_space = |(space, name): Name| (Namespace::new(space), name);
    let moved = match *operation {
        Operation::Insert(name, content) => {
            let expected = Model::allows(name) && !model.names.contains_key(&name);
            if expected {
                model.point(name, content);
            }
            let (space, alias) = in_space(name);
            let done = registry.point(&space, alias, generation(content), Expect::Absent);
            assert_eq!(done.is_ok(), expected);
            assert!(done.as_ref().is_ok_and(|moved| moved.is_new) == expected);
            done
        }
        Operation::Point(name, content) => {
            let expected = Model::allows(name);
            if expected {
                model.point(name, content);
            }
            let (space, alias) = in_space(name);
            let done = registry.point(&space, alias, generation(content), Expect::Anything);
            assert_eq!(done.is_ok(), expected);
            done
        }
        Operation::Swap(name, old, new) => {
            let expected = model.names.get(&name).is_some_and(|line| line[0] == old);
            if expected {
                model.point(name, new);
            }
            let (space, alias) = in_space(name);
            let done =
                registry.point(&space, alias, generation(new), Expect::Generation(digest(old)));
            assert_eq!(done.is_ok(), expected);
            done
        }
        Operation::RollBack(name, to) => {
            let expected = model.roll_back(name, to);
            let (space, alias) = in_space(name);
            let done = registry.roll_back(&space, alias, to.map(digest), Expect::Anything);
            assert_eq!(done.is_ok(), expected);
            done
        }
        Operation::Remove(name) => {
            model.pinned.remove(&name);
            let (space, alias) = in_space(name);
            let done = registry.remove(&space, alias, Expect::Anything);
            assert_eq!(done.is_ok(), model.names.remove(&name).is_some());
            done
        }
        Operation::Pin(name, is_pinned) => {
            let (space, alias) = in_space(name);
            let done = registry.pin(&space, alias, is_pinned);
            assert_eq!(done.is_ok(), model.names.contains_key(&name));
            if done.is_ok() && is_pinned {
                model.pinned.insert(name);
            } else {
                model.pinned.remove(&name);
            }
            return Vec::new();
        }
        Operation::Restore(name) => {
            let Some(line) = model.names.get(&name) else { return Vec::new() };
            let (space, alias) = in_space(name);
            let known = KnownAlias {
                name: alias.to_owned(),
                generation: generation(line[0]),
                history: line[1..].iter().map(|content| generation(*content)).collect(),
                is_pinned: model.pinned.contains(&name),
                created: std::time::SystemTime::UNIX_EPOCH,
            };
            registry.restore(&space, known)
        }
        Operation::Resolve(name) => {
            let (space, alias) = in_space(name);
            if let Ok(Resolution::Adapter(alias)) = registry.resolve(&space, alias) {
                requests.push(alias);
            }
            return Vec::new();
        }
        Operation::EndOldest => {
            if !requests.is_empty() {
                requests.remove(0);
            }
            return Vec::new();
        }
    };
    let moved = moved.ok();
    let retired = moved.iter().flat_map(Moved::retired);
    retired.map(|generation| generation.digest.0[0]).collect()
}

/// Known to a namespace is what one of its names points at, has in its history, or a request to one uses.
fn check_known(registry: &Registry, model: &Model, requests: &[Alias]) {
    for space in SPACES {
        let of_space = model.names.iter().filter(|((owner, _), _)| *owner == space);
        let mut held: BTreeSet<u8> = of_space.flat_map(|(_, line)| line).copied().collect();
        let in_use = requests.iter().filter(|alias| alias.namespace.as_str() == space);
        held.extend(in_use.map(|alias| alias.generation.digest.0[0]));
        for content in 0..12 {
            let found = registry.find(&Namespace::new(space), &digest(content));
            assert_eq!(found.is_some(), held.contains(&content), "{space} {content}");
            if let Some(found) = found {
                assert_eq!(found.is_current(), model.pointed_at().contains(&content));
                assert_eq!(found.is_retired(), !model.named().contains(&content));
                assert_eq!(found.is_pinned(), model.pinned_contents().contains(&content));
            }
        }
    }
}

/// Everything that can be listed.
fn check_lists(registry: &Registry, model: &Model) {
    let n_names = model.names.len();
    assert_eq!((registry.len(), registry.is_empty()), (n_names, n_names == 0));
    let labels: BTreeSet<_> =
        registry.list_all().iter().map(|alias| alias.label.to_string()).collect();
    assert_eq!(labels.len(), n_names);
    for space in SPACES {
        let caller = Namespace::new(space);
        let listed: Vec<_> = registry
            .list_visible(&caller)
            .iter()
            .map(|alias| (alias.name.to_string(), alias.generation.digest.0[0]))
            .collect();
        let names: BTreeSet<_> = model
            .names
            .keys()
            .filter(|(owner, _)| *owner == space || *owner == "shared")
            .map(|(_, name)| *name)
            .collect();
        let meant = |name| model.meant((space, name)).unwrap();
        let expected: Vec<_> =
            names.iter().map(|name| ((*name).to_owned(), meant(*name))).collect();
        assert_eq!(listed, expected);
        for name in ["x", "y", "bb:z", "a:y", "a", ""] {
            for model_name in [format!("a:{name}"), format!("bb:{name}")] {
                let found = match registry.resolve(&caller, &model_name) {
                    Ok(Resolution::Adapter(alias)) => Some(alias.generation.digest.0[0]),
                    Ok(Resolution::Base) | Err(_) => None,
                };
                assert_eq!(found, model.meant((space, name)), "{space} {model_name}");
            }
        }
    }
    for ((space, name), line) in &model.names {
        let space = Namespace::new(space);
        let digests = |generations: Vec<Arc<Generation>>| -> Vec<u8> {
            generations.iter().map(|generation| generation.digest.0[0]).collect()
        };
        assert_eq!(registry.get(&space, name).unwrap().generation.digest, digest(line[0]));
        assert_eq!(digests(registry.history(&space, name)), line[1..]);
    }
}

proptest! {
    #[test]
    fn behaves_like_its_model(operations in prop::collection::vec(operation(), 0..80)) {
        let registry = registry(&["a", "bb"]);
        let mut model = Model::default();
        let mut requests = Vec::new();
        for operation in operations {
            let before = model.named();
            let retired = apply(&registry, &mut model, &mut requests, &operation);
            // What is said to be retired is what no name of any namespace points at any more, or can be pointed back at.
            let left: Vec<_> = before.difference(&model.named()).copied().collect();
            prop_assert_eq!(retired, left, "{:?}", operation);
            check_known(&registry, &model, &requests);
        }
        check_lists(&registry, &model);
    }
}
