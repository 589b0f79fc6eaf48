//! Aliases and their history.

use std::sync::Arc;

use pleach_store::{
    AliasChange, Expected, GenerationDigest, HISTORY_MAX, Owner, Page, RollBack, Store, StoreError,
};

use crate::{
    on_both,
    place::{Place, digest, register, tenant},
};

on_both!(
    a_move_happens_only_from_where_it_is_expected,
    every_move_is_in_the_log,
    a_roll_back_turns_the_history,
    a_history_is_as_long_as_it_may_be,
    a_catalogue_has_all_that_a_server_needs,
    of_many_that_expect_the_same_one_wins,
    pages_are_by_owner_and_name,
);

fn change(alias: &str, expected: Expected) -> AliasChange<'_> {
    AliasChange { alias, expected, who: "ops", reason: "" }
}

async fn registered(store: &Store, owner: &Owner, n: u64) -> Vec<GenerationDigest> {
    let mut digests = Vec::new();
    for n in 0..n {
        digests.push(register(store, owner, n).await);
    }
    digests
}

async fn a_move_happens_only_from_where_it_is_expected(place: Place) {
    let store = place.open().await;
    let owner = Owner::from(tenant(&store, "one").await);
    let generations = registered(&store, &owner, 2).await;
    let to = |expected, n: usize| {
        let (store, owner, generations) = (&store, &owner, &generations);
        async move { store.move_alias(owner, &change("mia", expected), &generations[n]).await }
    };
    let at = Expected::Generation;

    let early = to(at(generations[0]), 0).await.unwrap_err();
    assert!(matches!(early, StoreError::AliasMoved { found: None, .. }), "{early}");
    let made = to(Expected::Absent, 0).await.unwrap();
    assert_eq!((made.generation, made.revision, made.is_pinned), (generations[0], 1, false));
    let again = to(Expected::Absent, 1).await.unwrap_err();
    assert!(again.to_string().ends_with(&format!("is generation {}, not absent", generations[0])));
    let wrong = to(at(generations[1]), 1).await.unwrap_err();
    assert!(matches!(wrong, StoreError::AliasMoved { found, .. } if found == Some(generations[0])));
    let moved = to(at(generations[0]), 1).await.unwrap();
    assert_eq!((moved.generation, moved.revision), (generations[1], 2));
    // To where it is: nothing happens.
    assert_eq!(to(Expected::Any, 1).await.unwrap(), moved);

    store.pin_alias(&owner, "mia", true).await.unwrap();
    assert!(to(Expected::Any, 0).await.unwrap().is_pinned);
    let unknown = store.pin_alias(&Owner::Shared, "mia", true).await.unwrap_err();
    assert!(matches!(unknown, StoreError::UnknownAlias { .. }), "{unknown}");
    let nowhere = store.move_alias(&owner, &change("mia", Expected::Any), &digest(99)).await;
    assert!(matches!(nowhere, Err(StoreError::UnknownGeneration { .. })));
    let absent = store.delete_alias(&owner, &change("leo", Expected::Any)).await.unwrap_err();
    assert!(matches!(absent, StoreError::UnknownAlias { .. }), "{absent}");
}

async fn every_move_is_in_the_log(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    let generations = registered(&store, &owner, 3).await;
    for generation in &generations {
        let change =
            AliasChange { alias: "mia", expected: Expected::Any, who: "Eva", reason: "better" };
        store.move_alias(&owner, &change, generation).await.unwrap();
    }
    store.delete_alias(&owner, &change("mia", Expected::Any)).await.unwrap();
    assert!(store.alias(&owner, "mia").await.is_err());
    // A name that comes back goes on counting, so a revision never means two things.
    let back =
        store.move_alias(&owner, &change("mia", Expected::Absent), &generations[0]).await.unwrap();
    assert_eq!(back.revision, 5);

    let moves = store.alias_moves(&owner, "mia", None, 10).await.unwrap();
    let seen: Vec<_> = moves.iter().map(|entry| (entry.revision, entry.from, entry.to)).collect();
    let at = |n: usize| Some(generations[n]);
    let expected = [
        (5, None, at(0)),
        (4, at(2), None),
        (3, at(1), at(2)),
        (2, at(0), at(1)),
        (1, None, at(0)),
    ];
    assert_eq!(seen, expected);
    assert_eq!((moves[2].who.as_str(), moves[2].reason.as_str()), ("Eva", "better"));
    assert_eq!(store.alias_moves(&owner, "mia", Some(4), 2).await.unwrap(), moves[2..4]);
    assert!(store.alias_moves(&owner, "mia", Some(1), 2).await.unwrap().is_empty());

    assert_eq!(store.cut_moves(&owner, "mia", 3).await.unwrap(), 2);
    assert_eq!(store.cut_moves(&owner, "mia", i64::MAX).await.unwrap(), 2);
    assert_eq!(store.alias_moves(&owner, "mia", None, 10).await.unwrap(), moves[..1]);
    assert!(store.cut_moves(&owner, "leo", 3).await.is_err());
}

async fn a_roll_back_turns_the_history(place: Place) {
    let store = place.open().await;
    let owner = Owner::from(tenant(&store, "one").await);
    let generations = registered(&store, &owner, 3).await;
    let any = change("mia", Expected::Any);
    let none = store.roll_back(&owner, &any, RollBack::Previous).await.unwrap_err();
    assert!(matches!(none, StoreError::UnknownAlias { .. }), "{none}");
    store.move_alias(&owner, &any, &generations[0]).await.unwrap();
    let first = store.roll_back(&owner, &any, RollBack::Previous).await.unwrap_err();
    assert!(matches!(first, StoreError::NoEarlierGeneration { .. }), "{first}");
    store.move_alias(&owner, &any, &generations[1]).await.unwrap();
    store.move_alias(&owner, &any, &generations[2]).await.unwrap();

    let history = async || store.alias_history(&owner, "mia").await.unwrap();
    let back = async |to| {
        let alias = store.roll_back(&owner, &any, to).await?;
        Ok::<_, StoreError>((alias.generation, alias.revision))
    };
    let [first, second, third] = generations[..] else { panic!("three were registered") };
    assert_eq!(history().await, [second, first]);
    // The list turns like a wheel.
    assert_eq!(back(RollBack::Previous).await.unwrap(), (second, 4));
    assert_eq!(history().await, [first, third]);
    assert_eq!(back(RollBack::Previous).await.unwrap(), (first, 5));
    assert_eq!(history().await, [third, second]);
    assert_eq!(back(RollBack::Generation(second)).await.unwrap(), (second, 6));
    assert_eq!(history().await, [first, third]);
    assert_eq!(back(RollBack::Generation(second)).await.unwrap(), (second, 6), "it is there");
    let stale = change("mia", Expected::Generation(third));
    let stale = store.roll_back(&owner, &stale, RollBack::Previous).await.unwrap_err();
    assert!(matches!(stale, StoreError::AliasMoved { .. }), "{stale}");
    let never = back(RollBack::Generation(digest(99))).await.unwrap_err();
    assert!(matches!(never, StoreError::NotInHistory { .. }), "{never}");
    // A move onto an earlier one takes it out of the past, and so it stays over the next process.
    store.move_alias(&owner, &any, &third).await.unwrap();
    assert_eq!(history().await, [second, first]);
    let catalog = place.open().await.catalog().await.unwrap();
    let (alias, history) = &catalog.aliases[0];
    assert_eq!((alias.generation, &history[..]), (third, &[second, first][..]));
    // The history goes with the alias.
    store.delete_alias(&owner, &any).await.unwrap();
    store.move_alias(&owner, &any, &first).await.unwrap();
    assert_eq!(store.alias_history(&owner, "mia").await.unwrap(), []);
}

async fn a_history_is_as_long_as_it_may_be(place: Place) {
    let store = place.open().await;
    let owner = Owner::from(tenant(&store, "one").await);
    let generations = registered(&store, &owner, 11).await;
    let any = change("mia", Expected::Any);
    for generation in &generations {
        store.move_alias(&owner, &any, generation).await.unwrap();
    }
    let mut expected: Vec<_> = generations[10 - HISTORY_MAX..10].to_vec();
    expected.reverse();
    assert_eq!(store.alias_history(&owner, "mia").await.unwrap(), expected);
    // What was cut off can be retired.
    store.retire_generation(&owner, &generations[2]).await.unwrap();
    assert!(store.retire_generation(&owner, &generations[3]).await.is_err());
}

/// Everything of all owners, at once.
async fn a_catalogue_has_all_that_a_server_needs(place: Place) {
    let store = place.open().await;
    assert!(store.catalog().await.unwrap().aliases.is_empty());
    let one = Owner::from(tenant(&store, "one").await);
    for owner in [&one, &Owner::Shared] {
        for generation in registered(&store, owner, 3).await {
            store.move_alias(owner, &change("mia", Expected::Any), &generation).await.unwrap();
        }
    }
    store.pin_alias(&one, "mia", true).await.unwrap();
    let catalog = store.catalog().await.unwrap();
    assert_eq!((catalog.aliases.len(), catalog.generations.len()), (2, 6));
    for (alias, history) in catalog.aliases {
        assert_eq!(alias, store.alias(&alias.owner, "mia").await.unwrap());
        assert_eq!((alias.generation, alias.is_pinned), (digest(2), alias.owner == one));
        assert_eq!(history, [digest(1), digest(0)]);
    }
    for (generation, files) in catalog.generations {
        let owner = &generation.owner;
        assert_eq!(generation, store.generation(owner, &generation.digest).await.unwrap());
        assert_eq!(files, store.generation_files(owner, &generation.digest).await.unwrap());
    }
}

/// Compare-and-swap under contention, from several stores as from several processes.
async fn of_many_that_expect_the_same_one_wins(place: Place) {
    const ROUNDS: usize = 5;
    const CLIENTS: u64 = 6;
    let stores = Arc::new([place.open().await, place.open().await]);
    let owner = Owner::from(tenant(&stores[0], "one").await);
    let start = register(&stores[0], &owner, CLIENTS).await;
    let generations = registered(&stores[0], &owner, CLIENTS).await;
    let first = change("mia", Expected::Absent);
    let mut now = stores[0].move_alias(&owner, &first, &start).await.unwrap();
    for _ in 0..ROUNDS {
        let others = generations.iter().filter(|generation| **generation != now.generation);
        let clients: Vec<_> = others
            .enumerate()
            .map(|(n, to)| {
                let (stores, owner, to) = (Arc::clone(&stores), owner.clone(), *to);
                let expected = Expected::Generation(now.generation);
                tokio::spawn(async move {
                    stores[n % 2].move_alias(&owner, &change("mia", expected), &to).await
                })
            })
            .collect();
        let mut won = Vec::new();
        for client in clients {
            match client.await.unwrap() {
                Ok(alias) => won.push(alias),
                Err(error) => assert!(matches!(error, StoreError::AliasMoved { .. }), "{error}"),
            }
        }
        assert_eq!(won.len(), 1);
        assert_eq!(won[0], stores[0].alias(&owner, "mia").await.unwrap());
        assert_eq!(won[0].revision, now.revision + 1);
        now = won.remove(0);
    }
    let moves = stores[1].alias_moves(&owner, "mia", None, 100).await.unwrap();
    assert_eq!(moves.len(), ROUNDS + 1);
    assert!(moves.windows(2).all(|pair| pair[0].from == pair[1].to), "{moves:?}");
}

async fn pages_are_by_owner_and_name(place: Place) {
    let store = place.open().await;
    let owners =
        [Owner::from(tenant(&store, "one").await), Owner::from(tenant(&store, "two").await)];
    for owner in &owners {
        let generation = register(&store, owner, 1).await;
        for name in ["a", "a/b", "b", "z"] {
            store.move_alias(owner, &change(name, Expected::Absent), &generation).await.unwrap();
        }
    }
    let one = store.aliases(&owners[0], &Page { after: Some("a"), rows_max: 2 }).await.unwrap();
    let names: Vec<_> = one.items.iter().map(|alias| alias.name.as_str()).collect();
    assert_eq!((names, one.next.as_deref()), (vec!["a/b", "b"], Some("b")));

    let (mut all, mut next) = (Vec::new(), None);
    loop {
        let page = Page { after: next.as_deref(), rows_max: 3 };
        let listing = store.all_aliases(&page).await.unwrap();
        all.extend(listing.items);
        next = listing.next;
        if next.is_none() {
            break;
        }
    }
    let mut sorted = all.clone();
    sorted.sort_unstable_by_key(|alias| (alias.owner.clone(), alias.name.clone()));
    assert_eq!(all, sorted);
    assert_eq!(all.len(), 8);
}
