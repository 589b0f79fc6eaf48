//! The registry: which names are allowed, what they resolve to, how they move, that equal files are one generation, and
//! that a request keeps the generation it resolved to. Random operations are compared with a simple model.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod model;
mod namespaces;

use std::{
    error::Error,
    sync::{Arc, Weak},
    thread,
};

use pleach_adapters::{
    AdapterFiles, Alias, Expect, Generation, GenerationDigest, LoadedAdapter, Namespace, Registry,
    RegistryError, Resolution,
    registry::{ALIAS_BYTES_MAX, HISTORY_MAX},
};
use pleach_engine::{adapter_weights::AdapterWeights, spec::ModelSpec};

fn registry(base_names: &[&str]) -> Registry {
    Registry::new(base_names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

fn digest(content: u8) -> GenerationDigest {
    GenerationDigest([content; 32])
}

/// The namespace of tests that are about one.
fn us() -> Namespace {
    Namespace::shared()
}

/// Files that nobody reads.
#[derive(Debug)]
struct Kept(#[expect(dead_code, reason = "it is there to be counted")] Arc<()>);

impl AdapterFiles for Kept {
    fn load(&self, _: &ModelSpec) -> Result<LoadedAdapter, Box<dyn Error + Send + Sync>> {
        Err("there is nothing to load".into())
    }
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
    Generation::new(format!("content {content}"), &adapter, Kept(Arc::clone(keeper)))
}

fn generation(content: u8) -> Arc<Generation> {
    kept(content, &Arc::default())
}

fn insert(registry: &Registry, name: &str, content: u8) -> Result<Alias, RegistryError> {
    registry.point(&us(), name, generation(content), Expect::Absent).map(|moved| moved.alias)
}

/// `None` is the base.
fn resolved(registry: &Registry, model_name: &str) -> Result<Option<(String, u8)>, RegistryError> {
    registry.resolve(&us(), model_name).map(|resolution| match resolution {
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
        assert_eq!(registry.check(&us(), name, Expect::Absent).unwrap_err().to_string(), message);
        assert_eq!(insert(&registry, name, 1).unwrap_err().to_string(), message);
    }
    assert_eq!(registry.list(&us()).len(), 1, "a refused name changes nothing");
    for name in ["smoll", "smol/x", "x:smol", "é", &long[1..]] {
        registry.check(&us(), name, Expect::Absent).unwrap();
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
    let second = registry.point(&us(), "two", kept(1, &keeper), Expect::Absent).unwrap().alias;
    drop(keeper);
    assert!(Arc::ptr_eq(&first.generation, &second.generation));
    assert!(watched.upgrade().is_none(), "the duplicate's files go at once");
    assert!(Arc::ptr_eq(&registry.find(&us(), &digest(1)).unwrap(), &first.generation));
    assert!(registry.find(&us(), &digest(2)).is_none());
    // A refused one is kept no longer either.
    let keeper = Arc::new(());
    registry.point(&us(), "one", kept(9, &keeper), Expect::Absent).unwrap_err();
    assert_eq!(Arc::strong_count(&keeper), 1);
    assert!(registry.find(&us(), &digest(9)).is_none());
    // It is retired when the last of its aliases leaves.
    assert!(registry.remove(&us(), "one", Expect::Anything).unwrap().retired().is_empty());
    let removed = registry.remove(&us(), "two", Expect::Anything).unwrap();
    let [retired] = removed.retired()[..] else { panic!("{removed:?}") };
    assert!(Arc::ptr_eq(retired, &first.generation) && retired.is_retired());
}

#[test]
fn a_request_keeps_its_generation() {
    let registry = registry(&["base"]);
    let keeper = Arc::new(());
    registry.point(&us(), "one", kept(1, &keeper), Expect::Absent).unwrap();
    let Resolution::Adapter(pinned) = registry.resolve(&us(), "one").unwrap() else {
        panic!("an adapter")
    };
    let moved = registry.point(&us(), "one", generation(2), Expect::Generation(digest(1))).unwrap();
    assert!(moved.retired().is_empty(), "it can be gone back to");
    assert!(!pinned.generation.is_current() && !pinned.generation.is_retired());
    assert_eq!(pinned.generation.digest, digest(1));
    assert_eq!(resolved(&registry, "one").unwrap(), Some(("one".to_owned(), 2)));
    let removed = registry.remove(&us(), "one", Expect::Anything).unwrap();
    let retired: Vec<_> = removed.retired().iter().map(|it| it.digest).collect();
    assert_eq!(retired, [digest(1), digest(2)], "with a name goes its history");
    drop(removed);
    // Nobody but the request has it now; it can still be loaded for it.
    assert!(registry.find(&us(), &digest(1)).is_some());
    assert_eq!(Arc::strong_count(&keeper), 2);
    drop((pinned, moved));
    assert!(registry.find(&us(), &digest(1)).is_none());
    assert_eq!(Arc::strong_count(&keeper), 1);
}

#[test]
fn a_change_is_made_only_where_it_is_expected() {
    let registry = registry(&["base"]);
    let expect = |content| Expect::Generation(digest(content));
    let at = || resolved(&registry, "one").ok().flatten().map(|(_, content)| content);
    let error = registry.point(&us(), "one", generation(1), expect(1)).unwrap_err().to_string();
    assert_eq!(error, "the adapter `one` does not exist, not at the expected 010101010101");
    insert(&registry, "one", 1).unwrap();
    for error in [
        registry.point(&us(), "one", generation(3), expect(2)).unwrap_err(),
        registry.remove(&us(), "one", expect(2)).unwrap_err(),
        registry.roll_back(&us(), "one", None, expect(2)).unwrap_err(),
        registry.check(&us(), "one", expect(2)).unwrap_err(),
    ] {
        let message = "the adapter `one` points at 010101010101, not at the expected 020202020202";
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(at(), Some(1));
    registry.point(&us(), "one", generation(2), expect(1)).unwrap();
    assert_eq!(at(), Some(2));
    // Of many that expect the same, one wins.
    let winners = thread::scope(|scope| {
        let registry = &registry;
        let moves: Vec<_> = (10..30_u8)
            .map(|content| {
                scope.spawn(move || {
                    registry
                        .point(&us(), "one", generation(content), Expect::Generation(digest(2)))
                        .is_ok()
                })
            })
            .collect();
        moves.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(winners, 1);
    let removed = registry.remove(&us(), "one", Expect::Anything).unwrap();
    assert!(removed.alias.generation.digest.0[0] >= 10);
    assert_eq!(
        registry.remove(&us(), "one", Expect::Anything).unwrap_err(),
        RegistryError::UnknownAlias { alias: "one".to_owned() }
    );
}

#[test]
fn rolling_back_turns_the_history() {
    let registry = registry(&["base"]);
    let back = |to: Option<u8>| {
        registry
            .roll_back(&us(), "one", to.map(digest), Expect::Anything)
            .map(|moved| moved.alias.generation.digest.0[0])
    };
    let history = || -> Vec<u8> {
        registry.history(&us(), "one").iter().map(|generation| generation.digest.0[0]).collect()
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
        registry.point(&us(), "one", generation(content), Expect::Anything).unwrap();
    }
    assert_eq!(history(), [3, 2, 1]);
    assert_eq!((back(None), history()), (Ok(3), vec![2, 1, 4]));
    assert_eq!((back(None), history()), (Ok(2), vec![1, 4, 3]));
    assert_eq!((back(Some(4)), history()), (Ok(4), vec![3, 2, 1]));
    // Any of them can be pinned, others cannot.
    assert_eq!(
        registry.resolve_generation(&us(), "base:one", digest(2)).unwrap().generation.digest,
        digest(2)
    );
    assert_eq!(
        registry.resolve_generation(&us(), "one", digest(4)).unwrap().generation.digest,
        digest(4)
    );
    assert_eq!(registry.resolve_generation(&us(), "one", digest(9)).unwrap_err(), foreign);
    assert_eq!(registry.resolve_generation(&us(), "one", digest(8)).unwrap_err(), unknown);
    // One that comes again is in the history once.
    registry.point(&us(), "one", generation(2), Expect::Anything).unwrap();
    assert_eq!(history(), [4, 3, 1]);
    for content in 20..40 {
        let moved = registry.point(&us(), "one", generation(content), Expect::Anything).unwrap();
        let retired: Vec<_> = moved.retired().iter().map(|it| it.digest).collect();
        // The present one and seven earlier ones are kept.
        assert!(content < 28 || retired == [digest(content - 8)], "{content}: {retired:?}");
    }
    assert_eq!(history(), (39 - u8::try_from(HISTORY_MAX).unwrap()..39).rev().collect::<Vec<_>>());
    assert!(registry.find(&us(), &digest(1)).is_none(), "what is cut off is given up");
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
    let names: Vec<_> = registry.list(&us()).iter().map(|alias| alias.name.to_string()).collect();
    assert!(names.is_sorted());
}
