//! The registry: which names are allowed, what they resolve to, that equal files are one generation, and that a
//! request keeps the generation it resolved to. Random operations are compared with a simple model.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    thread,
};

use pleach_adapters::{
    Generation, GenerationDigest, GenerationInfo, Registry, RegistryError, Resolution,
    UnknownModel, registry::ALIAS_BYTES_MAX,
};
use proptest::prelude::*;

/// Stands in for the engine's lease: its drop can be watched.
type Lease = Arc<()>;

fn registry(base_names: &[&str]) -> Registry<Lease> {
    Registry::new(base_names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

fn generation(content: u8) -> Arc<Generation<Lease>> {
    Arc::new(Generation {
        digest: GenerationDigest([content; 32]),
        loaded_as: format!("content {content}"),
        lease: Lease::default(),
        info: GenerationInfo {
            base_model_name: None,
            rank_max: 8,
            target_modules: Vec::new(),
            n_parameters: 0,
            tensor_bytes: 0,
        },
    })
}

/// `None` is the base.
fn resolved(
    registry: &Registry<Lease>,
    model_name: &str,
) -> Result<Option<(String, u8)>, UnknownModel> {
    registry.resolve(model_name).map(|resolution| match resolution {
        Resolution::Base => None,
        Resolution::Adapter(alias, generation) => Some((alias.to_string(), generation.digest.0[0])),
    })
}

#[test]
fn base_then_alias_then_qualified_alias() {
    let registry = registry(&["smol", "org/smol", "smol:latest"]);
    for (alias, content) in [("pirate", 1), ("org:pirate", 2), ("v1", 3)] {
        registry.insert(alias, generation(content)).unwrap();
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
        assert_eq!(error, UnknownModel { model_name: unknown.to_owned() });
        assert_eq!(error.to_string(), format!("the model `{unknown}` does not exist"));
    }
}

#[test]
fn names_that_cannot_be_aliases() {
    let registry = registry(&["smol", "org/smol"]);
    registry.insert("taken", generation(7)).unwrap();
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
        assert_eq!(registry.check_new_alias(name).unwrap_err().to_string(), message);
        assert_eq!(registry.insert(name, generation(1)).unwrap_err().to_string(), message);
    }
    assert_eq!(registry.list().len(), 1, "a refused name changes nothing");
    for name in ["smoll", "smol/x", "x:smol", "é", &long[1..]] {
        registry.check_new_alias(name).unwrap();
        registry.insert(name, generation(1)).unwrap();
    }
}

#[test]
fn names_that_cannot_be_a_base() {
    let new = |names: &[&str]| {
        Registry::<Lease>::new(names.iter().map(|name| (*name).to_owned()).collect())
    };
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
    let first = registry.insert("one", generation(1)).unwrap();
    let duplicate = generation(1);
    let watched: Weak<()> = Arc::downgrade(&duplicate.lease);
    let second = registry.insert("two", duplicate).unwrap();
    assert!(Arc::ptr_eq(&first.generation, &second.generation));
    assert!(watched.upgrade().is_none(), "the duplicate's lease ends at once");
    assert!(Arc::ptr_eq(&registry.find(&GenerationDigest([1; 32])).unwrap(), &first.generation));
    assert!(registry.find(&GenerationDigest([2; 32])).is_none());
    // A refused insertion keeps nothing either.
    let refused = generation(9);
    let watched = Arc::downgrade(&refused.lease);
    registry.insert("one", refused).unwrap_err();
    assert!(watched.upgrade().is_none());
}

#[test]
fn a_request_keeps_its_generation() {
    let registry = registry(&["base"]);
    registry.insert("one", generation(1)).unwrap();
    let Resolution::Adapter(_, pinned) = registry.resolve("one").unwrap() else {
        panic!("an adapter")
    };
    let watched = Arc::downgrade(&pinned.lease);
    drop(registry);
    assert!(watched.upgrade().is_some());
    drop(pinned);
    assert!(watched.upgrade().is_none());
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
                    let _ = registry.insert(&format!("a{i}"), generation(i));
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

proptest! {
    #[test]
    fn behaves_like_a_map(operations in prop::collection::vec(("[ab:]{0,3}", 0_u8..4), 0..40)) {
        let registry = registry(&["a", "bb"]);
        let mut model: BTreeMap<String, u8> = BTreeMap::new();
        for (name, content) in operations {
            let allowed = !name.is_empty() && name != "a" && name != "bb" && !name.starts_with("a:") && !name.starts_with("bb:");
            let expected = allowed && !model.contains_key(&name);
            prop_assert_eq!(registry.check_new_alias(&name).is_ok(), expected);
            prop_assert_eq!(registry.insert(&name, generation(content)).is_ok(), expected);
            if expected {
                model.insert(name, content);
            }
        }
        prop_assert_eq!(registry.is_empty(), model.is_empty());
        let listed: Vec<_> = registry.list().iter().map(|a| (a.name.to_string(), a.generation.digest.0[0])).collect();
        prop_assert_eq!(listed, model.clone().into_iter().collect::<Vec<_>>());
        for (name, content) in &model {
            for model_name in [name.clone(), format!("a:{name}"), format!("bb:{name}")] {
                prop_assert_eq!(resolved(&registry, &model_name), Ok(Some((name.clone(), *content))));
            }
        }
        // One generation for each content.
        for one in registry.list() {
            for other in registry.list() {
                let same = one.generation.digest == other.generation.digest;
                prop_assert_eq!(Arc::ptr_eq(&one.generation, &other.generation), same);
            }
        }
    }
}
