//! The registry: which names are allowed, what they resolve to, how they move, that equal files are one generation, and
//! that a request keeps the generation it resolved to. Random operations are compared with a simple model.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    thread,
};

use pleach_adapters::{
    AdapterFiles, Alias, Expect, Generation, GenerationDigest, LoadedAdapter, Registry,
    RegistryError, Resolution,
    registry::{ALIAS_BYTES_MAX, HISTORY_MAX},
};
use pleach_engine::adapter_weights::AdapterWeights;
use proptest::prelude::*;

fn registry(base_names: &[&str]) -> Registry {
    Registry::new(base_names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

fn digest(content: u8) -> GenerationDigest {
    GenerationDigest([content; 32])
}

/// A generation whose files are kept by `keeper`.
fn kept(content: u8, keeper: &Arc<()>) -> Arc<Generation> {
    let adapter = LoadedAdapter {
        weights: AdapterWeights::default(),
        digest: digest(content),
        base_model_name: None,
        rank_max: 8,
        target_modules: Vec::new(),
        n_parameters: 0,
        tensor_bytes: 0,
        stored_f16_exact: true,
    };
    let files = AdapterFiles::kept_by("nowhere", Arc::clone(keeper));
    Generation::new(format!("content {content}"), &adapter, files)
}

fn generation(content: u8) -> Arc<Generation> {
    kept(content, &Arc::default())
}

fn insert(registry: &Registry, name: &str, content: u8) -> Result<Alias, RegistryError> {
    registry.point(name, generation(content), Expect::Absent).map(|moved| moved.alias)
}

/// `None` is the base.
fn resolved(registry: &Registry, model_name: &str) -> Result<Option<(String, u8)>, RegistryError> {
    registry.resolve(model_name).map(|resolution| match resolution {
        Resolution::Base => None,
        Resolution::Adapter(alias) => Some((alias.name.to_string(), alias.generation.digest.0[0])),
    })
}

#[test]
fn base_then_alias_then_qualified_alias() {
    let registry = registry(&["smol", "org/smol", "smol:latest"]);
    for (alias, content) in [("pirate", 1), ("org:pirate", 2), ("v1", 3)] {
        insert(&registry, alias, content).unwrap();
    }
    let adapter = |alias: &str, content| Ok(Some((alias.to_owned(), content)));
    for (model_name, expected) in [
        ("smol", Ok(None)),
        ("org/smol", Ok(None)),
        ("smol:latest", Ok(None)),
        ("pirate", adapter("pirate", 1)),
        ("smol:pirate", adapter("pirate", 1)),
        ("org/smol:pirate", adapter("pirate", 1)),
        ("smol:latest:pirate", adapter("pirate", 1)),
        ("org:pirate", adapter("org:pirate", 2)),
        ("smol:org:pirate", adapter("org:pirate", 2)),
    ] {
        assert_eq!(resolved(&registry, model_name), expected, "{model_name}");
    }
    for unknown in [
        "",
        "Smol",
        "smol:",
        "smol:smol",
        "other:pirate",
        "pirate:smol",
        "smol:nobody",
        ":pirate",
        "pirate ",
    ] {
        let error = resolved(&registry, unknown).unwrap_err();
        assert_eq!(error, RegistryError::UnknownName { model_name: unknown.to_owned() });
        assert_eq!(error.to_string(), format!("the model `{unknown}` does not exist"));
    }
}

#[test]
fn names_that_cannot_be_aliases() {
    let registry = registry(&["smol", "org/smol"]);
    insert(&registry, "taken", 7).unwrap();
    let long = "x".repeat(ALIAS_BYTES_MAX + 1);
    for (name, message) in [
        ("", "an adapter's name may not be empty"),
        (&long, "an adapter's name of 257 bytes is too long, at most 256 are allowed"),
        ("smol", "adapter name `smol` is a name of the base model"),
        ("org/smol", "adapter name `org/smol` is a name of the base model"),
        ("smol:x", "adapter name `smol:x` begins with the base model's name `smol` and a colon"),
        (
            "a,b",
            "adapter name \"a,b\" holds ',': commas, white space and control characters are not allowed",
        ),
        (
            "a b",
            "adapter name \"a b\" holds ' ': commas, white space and control characters are not allowed",
        ),
        (
            "a\n",
            "adapter name \"a\\n\" holds '\\n': commas, white space and control characters are not allowed",
        ),
        (
            "a\u{7f}",
            "adapter name \"a\\u{7f}\" holds '\\u{7f}': commas, white space and control characters are not allowed",
        ),
        ("taken", "an adapter named `taken` is loaded already, generation 070707070707"),
    ] {
        assert_eq!(registry.check(name, Expect::Absent).unwrap_err().to_string(), message);
        assert_eq!(insert(&registry, name, 1).unwrap_err().to_string(), message);
    }
    assert_eq!(registry.list().len(), 1, "a refused name changes nothing");
    for name in ["smoll", "smol/x", "x:smol", "é", &long[1..]] {
        registry.check(name, Expect::Absent).unwrap();
        insert(&registry, name, 1).unwrap();
    }
}

#[test]
fn names_that_cannot_be_a_base() {
    let new = |names: &[&str]| Registry::new(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(new(&[]).unwrap_err(), RegistryError::NoBaseName);
    for name in ["", "a b", "a,b", "a\t"] {
        assert_eq!(
            new(&["ok", name]).unwrap_err(),
            RegistryError::InvalidBaseName { name: name.to_owned() }
        );
    }
}

#[test]
fn equal_files_are_one_generation() {
    let registry = registry(&["base"]);
    let first = insert(&registry, "one", 1).unwrap();
    let keeper = Arc::new(());
    let watched: Weak<()> = Arc::downgrade(&keeper);
    let second = registry.point("two", kept(1, &keeper), Expect::Absent).unwrap().alias;
    drop(keeper);
    assert!(Arc::ptr_eq(&first.generation, &second.generation));
    assert!(watched.upgrade().is_none(), "the duplicate's files go at once");
    assert!(Arc::ptr_eq(&registry.find(&digest(1)).unwrap(), &first.generation));
    assert!(registry.find(&digest(2)).is_none());
    // A refused one is kept no longer either.
    let keeper = Arc::new(());
    registry.point("one", kept(9, &keeper), Expect::Absent).unwrap_err();
    assert_eq!(Arc::strong_count(&keeper), 1);
    assert!(registry.find(&digest(9)).is_none());
    // It is retired when the last of its aliases leaves.
    assert!(registry.remove("one", Expect::Anything).unwrap().retired.is_none());
    let retired = registry.remove("two", Expect::Anything).unwrap().retired.unwrap();
    assert!(Arc::ptr_eq(&retired, &first.generation) && retired.is_retired());
}

#[test]
fn a_request_keeps_its_generation() {
    let registry = registry(&["base"]);
    let keeper = Arc::new(());
    registry.point("one", kept(1, &keeper), Expect::Absent).unwrap();
    let Resolution::Adapter(pinned) = registry.resolve("one").unwrap() else {
        panic!("an adapter")
    };
    let moved = registry.point("one", generation(2), Expect::Generation(digest(1))).unwrap();
    assert_eq!(moved.retired.unwrap().digest, digest(1));
    assert_eq!(pinned.generation.digest, digest(1));
    assert_eq!(resolved(&registry, "one").unwrap(), Some(("one".to_owned(), 2)));
    registry.remove("one", Expect::Anything).unwrap();
    // Nobody but the request has it now; it can still be loaded for it.
    assert!(registry.find(&digest(1)).is_some());
    assert_eq!(Arc::strong_count(&keeper), 2);
    drop(pinned);
    assert!(registry.find(&digest(1)).is_none());
    assert_eq!(Arc::strong_count(&keeper), 1);
}

#[test]
fn a_change_is_made_only_where_it_is_expected() {
    let registry = registry(&["base"]);
    let expect = |content| Expect::Generation(digest(content));
    let at = || resolved(&registry, "one").ok().flatten().map(|(_, content)| content);
    let error = registry.point("one", generation(1), expect(1)).unwrap_err().to_string();
    assert_eq!(error, "the adapter `one` does not exist, not at the expected 010101010101");
    insert(&registry, "one", 1).unwrap();
    for error in [
        registry.point("one", generation(3), expect(2)).unwrap_err(),
        registry.remove("one", expect(2)).unwrap_err(),
        registry.roll_back("one", None, expect(2)).unwrap_err(),
        registry.check("one", expect(2)).unwrap_err(),
    ] {
        let message = "the adapter `one` points at 010101010101, not at the expected 020202020202";
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(at(), Some(1));
    registry.point("one", generation(2), expect(1)).unwrap();
    assert_eq!(at(), Some(2));
    // Of many that expect the same, one wins.
    let winners = thread::scope(|scope| {
        let registry = &registry;
        let moves: Vec<_> = (10..30_u8)
            .map(|content| {
                scope.spawn(move || {
                    registry
                        .point("one", generation(content), Expect::Generation(digest(2)))
                        .is_ok()
                })
            })
            .collect();
        moves.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(winners, 1);
    let removed = registry.remove("one", Expect::Anything).unwrap();
    assert!(removed.alias.generation.digest.0[0] >= 10);
    assert_eq!(
        registry.remove("one", Expect::Anything).unwrap_err(),
        RegistryError::UnknownAlias { alias: "one".to_owned() }
    );
}

#[test]
fn rolling_back_turns_the_history() {
    let registry = registry(&["base"]);
    let back = |to: Option<u8>| {
        registry
            .roll_back("one", to.map(digest), Expect::Anything)
            .map(|moved| moved.alias.generation.digest.0[0])
    };
    let history = || -> Vec<u8> {
        registry.history("one").iter().map(|generation| generation.digest.0[0]).collect()
    };
    assert_eq!(back(None).unwrap_err(), RegistryError::UnknownAlias { alias: "one".to_owned() });
    insert(&registry, "one", 1).unwrap();
    insert(&registry, "other", 9).unwrap();
    assert_eq!(back(None).unwrap_err(), RegistryError::NoHistory { alias: "one".to_owned() });
    assert_eq!(back(Some(1)), Ok(1));
    let foreign =
        RegistryError::ForeignGeneration { alias: "one".to_owned(), generation: digest(9) };
    assert_eq!(back(Some(9)).unwrap_err(), foreign);
    let unknown =
        RegistryError::UnknownGeneration { alias: "one".to_owned(), generation: digest(8) };
    assert_eq!(back(Some(8)).unwrap_err(), unknown);
    for content in 2..=4 {
        registry.point("one", generation(content), Expect::Anything).unwrap();
    }
    assert_eq!(history(), [3, 2, 1]);
    assert_eq!((back(None), history()), (Ok(3), vec![2, 1, 4]));
    assert_eq!((back(None), history()), (Ok(2), vec![1, 4, 3]));
    assert_eq!((back(Some(4)), history()), (Ok(4), vec![3, 2, 1]));
    // Any of them can be pinned, others cannot.
    assert_eq!(
        registry.resolve_generation("base:one", digest(2)).unwrap().generation.digest,
        digest(2)
    );
    assert_eq!(registry.resolve_generation("one", digest(4)).unwrap().generation.digest, digest(4));
    assert_eq!(registry.resolve_generation("one", digest(9)).unwrap_err(), foreign);
    assert_eq!(registry.resolve_generation("one", digest(8)).unwrap_err(), unknown);
    // One that comes again is in the history once.
    registry.point("one", generation(2), Expect::Anything).unwrap();
    assert_eq!(history(), [4, 3, 1]);
    for content in 20..40 {
        registry.point("one", generation(content), Expect::Anything).unwrap();
    }
    assert_eq!(history(), (39 - u8::try_from(HISTORY_MAX).unwrap()..39).rev().collect::<Vec<_>>());
    assert!(registry.find(&digest(1)).is_none(), "what is cut off is given up");
}

#[test]
fn readers_never_see_a_half_made_alias() {
    let registry = registry(&["base"]);
    thread::scope(|scope| {
        for _ in 0..2 {
            let registry = &registry;
            scope.spawn(move || {
                for i in 0..100_u8 {
                    // Both write every name; one of them wins.
                    let _ = insert(registry, &format!("a{i}"), i);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for i in (0..100_u8).cycle().take(2000) {
                    if let Ok(found) = resolved(&registry, &format!("base:a{i}")) {
                        assert_eq!(found, Some((format!("a{i}"), i)));
                    }
                }
            });
        }
    });
    assert_eq!(registry.len(), 100);
    let names: Vec<_> = registry.list().iter().map(|alias| alias.name.to_string()).collect();
    assert!(names.is_sorted());
}

#[derive(Clone, Debug)]
enum Operation {
    Insert(&'static str, u8),
    Point(&'static str, u8),
    Swap(&'static str, u8, u8),
    RollBack(&'static str, Option<u8>),
    Remove(&'static str),
    /// A request begins on the alias and lives until the end.
    Resolve(&'static str),
    EndOldest,
}

fn operation() -> impl Strategy<Value = Operation> {
    let name = prop::sample::select(vec!["x", "y", "bb:z", "a:y", "a", ""]);
    let content = 0_u8..12;
    prop_oneof![
        1 => (name.clone(), content.clone()).prop_map(|(name, new)| Operation::Insert(name, new)),
        3 => (name.clone(), content.clone()).prop_map(|(name, new)| Operation::Point(name, new)),
        1 => (name.clone(), content.clone(), content.clone())
            .prop_map(|(name, old, new)| Operation::Swap(name, old, new)),
        1 => (name.clone(), prop::option::of(content))
            .prop_map(|(name, to)| Operation::RollBack(name, to)),
        1 => name.clone().prop_map(Operation::Remove),
        1 => name.prop_map(Operation::Resolve),
        1 => Just(Operation::EndOldest),
    ]
}

/// Names by their present generation and the earlier ones, the last first.
#[derive(Default)]
struct Model(BTreeMap<&'static str, Vec<u8>>);

impl Model {
    fn allows(name: &str) -> bool {
        !matches!(name, "" | "a" | "bb") && !name.starts_with("a:") && !name.starts_with("bb:")
    }

    fn point(&mut self, name: &'static str, content: u8) {
        let line = self.0.entry(name).or_default();
        line.retain(|other| *other != content);
        line.insert(0, content);
        line.truncate(1 + HISTORY_MAX);
    }

    fn roll_back(&mut self, name: &str, to: Option<u8>) -> bool {
        let Some(line) = self.0.get_mut(name) else { return false };
        let place = match to {
            Some(to) => line.iter().position(|content| *content == to),
            None => (line.len() > 1).then_some(1),
        };
        place.map(|place| line.rotate_left(place)).is_some()
    }
}

proptest! {
    #[test]
    fn behaves_like_its_model(operations in prop::collection::vec(operation(), 0..60)) {
        let registry = registry(&["a", "bb"]);
        let mut model = Model::default();
        let mut requests: Vec<Alias> = Vec::new();
        for operation in operations {
            let before: BTreeSet<u8> = model.0.values().map(|line| line[0]).collect();
            let done = match operation.clone() {
                Operation::Insert(name, content) => {
                    let expected = Model::allows(name) && !model.0.contains_key(name);
                    if expected { model.point(name, content) }
                    let done = registry.point(name, generation(content), Expect::Absent);
                    prop_assert_eq!(done.is_ok(), expected);
                    done.ok()
                }
                Operation::Point(name, content) => {
                    let expected = Model::allows(name);
                    if expected { model.point(name, content) }
                    let done = registry.point(name, generation(content), Expect::Anything);
                    prop_assert_eq!(done.is_ok(), expected);
                    done.ok()
                }
                Operation::Swap(name, old, new) => {
                    let expected = model.0.get(name).is_some_and(|line| line[0] == old);
                    if expected { model.point(name, new) }
                    let done = registry.point(name, generation(new), Expect::Generation(digest(old)));
                    prop_assert_eq!(done.is_ok(), expected);
                    done.ok()
                }
                Operation::RollBack(name, to) => {
                    let expected = model.roll_back(name, to);
                    let done = registry.roll_back(name, to.map(digest), Expect::Anything);
                    prop_assert_eq!(done.is_ok(), expected);
                    done.ok()
                }
                Operation::Remove(name) => {
                    let done = registry.remove(name, Expect::Anything);
                    prop_assert_eq!(done.is_ok(), model.0.remove(name).is_some());
                    done.ok()
                }
                Operation::Resolve(name) => {
                    if let Ok(Resolution::Adapter(alias)) = registry.resolve(name) {
                        requests.push(alias);
                    }
                    None
                }
                Operation::EndOldest => {
                    if !requests.is_empty() { requests.remove(0); }
                    None
                }
            };
            // What is said to be retired is what no name points at any more.
            let after: BTreeSet<u8> = model.0.values().map(|line| line[0]).collect();
            let retired = done.and_then(|moved| moved.retired).map(|left| left.digest.0[0]);
            prop_assert_eq!(retired.into_iter().collect::<Vec<_>>(), before.difference(&after).copied().collect::<Vec<_>>(), "{:?}", operation);
            // Known is what a name points at, has in its history, or a request uses.
            let mut held: BTreeSet<u8> = model.0.values().flatten().copied().collect();
            held.extend(requests.iter().map(|request| request.generation.digest.0[0]));
            for content in 0..12 {
                prop_assert_eq!(registry.find(&digest(content)).is_some(), held.contains(&content));
            }
        }
        let listed: Vec<_> = registry.list().iter().map(|alias| (alias.name.to_string(), alias.generation.digest.0[0])).collect();
        let expected: Vec<_> = model.0.iter().map(|(name, line)| ((*name).to_owned(), line[0])).collect();
        prop_assert_eq!(listed, expected);
        prop_assert_eq!((registry.len(), registry.is_empty()), (model.0.len(), model.0.is_empty()));
        for (name, line) in &model.0 {
            let history: Vec<_> = registry.history(name).iter().map(|generation| generation.digest.0[0]).collect();
            prop_assert_eq!(&history[..], &line[1..]);
            for model_name in [(*name).to_owned(), format!("a:{name}"), format!("bb:{name}")] {
                prop_assert_eq!(resolved(&registry, &model_name), Ok(Some(((*name).to_owned(), line[0]))));
            }
        }
    }
}
