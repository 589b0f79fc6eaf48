//! Names of several namespaces.

use std::sync::Arc;

use pleach_adapters::{
    Expect, Generation, KnownAlias, KnownGeneration, Namespace, RegistryError, Resolution,
};

use crate::{Kept, digest, generation, registry, us};

#[test]
fn a_namespace_sees_its_own_names_then_the_shared_ones() {
    let registry = registry(&["base"]);
    let [one, two] = ["one", "two"].map(Namespace::new);
    for (space, name, content) in
        [(&us(), "x", 1), (&us(), "only-shared", 2), (&one, "x", 3), (&one, "mine", 4)]
    {
        registry.point(space, name, generation(content), Expect::Absent).unwrap();
    }
    let meant = |caller: &Namespace, name: &str| match registry.resolve(caller, name) {
        Ok(Resolution::Adapter(alias)) => Ok((alias.namespace, alias.generation.digest.0[0])),
        Ok(Resolution::Base) => panic!("an adapter"),
        Err(error) => Err(error.to_string()),
    };
    for name in ["x", "base:x"] {
        assert_eq!(meant(&one, name), Ok((one.clone(), 3)));
        assert_eq!(meant(&two, name), Ok((us(), 1)));
        assert_eq!(meant(&us(), name), Ok((us(), 1)));
    }
    assert_eq!(meant(&one, "only-shared"), Ok((us(), 2)));
    // Another's name is told like one that nobody has.
    for caller in [&two, &us()] {
        assert_eq!(meant(caller, "mine"), Err("the model `mine` does not exist".to_owned()));
        assert_eq!(meant(caller, "mi"), Err("the model `mi` does not exist".to_owned()));
        assert!(registry.visible(caller, "mine").is_none());
        let changes = [
            registry.remove(caller, "mine", Expect::Anything).unwrap_err(),
            registry.roll_back(caller, "mine", None, Expect::Anything).unwrap_err(),
            registry.pin(caller, "mine", true).unwrap_err(),
        ];
        for error in changes {
            assert_eq!(error, RegistryError::UnknownAlias { alias: "mine".to_owned() });
        }
    }
    let listed = |caller: &Namespace| -> Vec<String> {
        registry.list_visible(caller).iter().map(|alias| alias.label.to_string()).collect()
    };
    assert_eq!(listed(&one), ["one/mine", "only-shared", "one/x"]);
    assert_eq!(listed(&two), ["only-shared", "x"]);
    assert_eq!(registry.list_all().len(), 4);
    // Changes touch the namespace that they name.
    registry.remove(&one, "x", Expect::Generation(digest(3))).unwrap();
    assert_eq!(meant(&one, "x"), Ok((us(), 1)));
    registry.remove(&one, "x", Expect::Anything).unwrap_err();
    assert_eq!(meant(&us(), "x"), Ok((us(), 1)));
}

#[test]
fn equal_weights_of_two_namespaces_share_no_facts() {
    let registry = registry(&["base"]);
    let [one, two] = ["one", "two"].map(Namespace::new);
    let first = registry.point(&one, "x", generation(1), Expect::Absent).unwrap().alias;
    let insist = |caller: &Namespace, content| {
        registry.resolve_generation(caller, "y", digest(content)).unwrap_err()
    };
    registry.point(&two, "y", generation(2), Expect::Absent).unwrap();
    let unknown = |content| RegistryError::UnknownGeneration {
        alias: "y".to_owned(),
        generation: digest(content),
    };
    assert_eq!(insist(&two, 1), unknown(1), "another namespace's generation is told as nobody's");
    registry.point(&us(), "z", generation(3), Expect::Absent).unwrap();
    let foreign = RegistryError::ForeignGeneration { alias: "y".to_owned(), generation: digest(3) };
    assert_eq!(insist(&two, 3), foreign);
    // The same content again: two generations, one digest in memory.
    let second = registry.point(&two, "x", generation(1), Expect::Absent).unwrap().alias;
    assert!(!Arc::ptr_eq(&first.generation, &second.generation));
    assert_eq!(registry.held(&digest(1)).len(), 2);
    let left = registry.remove(&one, "x", Expect::Anything).unwrap();
    assert!(left.retired().is_empty(), "the other namespace still points there");
    assert!(registry.find(&one, &digest(1)).is_some(), "it is held here");
    drop((left, first));
    assert!(registry.find(&one, &digest(1)).is_none());
    registry.pin(&two, "x", true).unwrap();
    assert!(second.generation.is_pinned());
    assert!(registry.remove(&two, "x", Expect::Anything).unwrap().retired().len() == 1);
    assert!(!second.generation.is_pinned());
}

#[test]
fn what_was_checked_against_another_base_is_known_as_such() {
    let registry = registry(&["base"]);
    let known = KnownGeneration {
        digest: digest(1),
        loaded_as: "x".to_owned(),
        info: generation(1).info.clone(),
        created: std::time::SystemTime::UNIX_EPOCH,
        other_base: Some("abc".to_owned()),
    };
    let alias = KnownAlias {
        name: "x".to_owned(),
        generation: Generation::known(known, Kept(Arc::default())),
        history: vec![generation(2), generation(3)],
        is_pinned: true,
        created: std::time::SystemTime::UNIX_EPOCH,
    };
    let alias = registry.restore(&us(), alias).unwrap().alias;
    assert_eq!(alias.generation.other_base(), Some("abc"));
    assert!(alias.is_pinned && alias.generation.is_pinned());
    let history: Vec<_> =
        registry.history(&us(), "x").iter().map(|earlier| earlier.digest).collect();
    assert_eq!(history, [digest(2), digest(3)]);
    // Equal files that were checked now.
    registry.point(&us(), "y", generation(1), Expect::Absent).unwrap();
    assert_eq!(alias.generation.other_base(), None);
    let refused = KnownAlias {
        name: "base".to_owned(),
        generation: generation(4),
        history: Vec::new(),
        is_pinned: false,
        created: std::time::SystemTime::UNIX_EPOCH,
    };
    registry.restore(&us(), refused).unwrap_err();
}
