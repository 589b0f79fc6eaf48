//! Registering generations.

use pleach_store::{
    AliasChange, BlobError, Expected, Origin, Owner, Page, StagedBlob, StoreError, TenantSettings,
};

use crate::{
    on_both,
    place::{Place, digest, metadata, register, registration, tenant},
};

on_both!(
    what_is_registered_comes_back_from_the_next_process,
    nothing_stays_of_what_is_refused,
    quotas_are_kept,
    one_tenants_generation_is_unknown_to_another,
    a_generation_that_comes_again_is_noted_for_its_new_base,
    what_is_given_up_leaves_no_blob,
);

fn change(alias: &str, expected: Expected) -> AliasChange<'_> {
    AliasChange { alias, expected, who: "key 1", reason: "first" }
}

async fn what_is_registered_comes_back_from_the_next_process(place: Place) {
    let store = place.open().await;
    let owner = Owner::from(tenant(&store, "one").await);
    let config = store.put_blob("{}").await.unwrap();
    let weights = store.put_blob(vec![7; 3_000_000]).await.unwrap();
    let files = vec![("b.safetensors".to_owned(), weights), ("a.json".to_owned(), config)];
    let mut wanted = registration(&owner, 1, files);
    wanted.origin = Origin::Merge { parents: vec![digest(2), digest(3)] };
    let registered = store.register(&wanted, Some(&change("mia", Expected::Absent))).await.unwrap();
    assert!(registered.is_new);
    let alias = registered.alias.unwrap();
    assert_eq!((alias.generation, alias.revision), (digest(1), 1));
    drop(store);

    let store = place.open().await;
    let found = store.generation(&owner, &digest(1)).await.unwrap();
    assert_eq!((&found.metadata, &found.origin), (&metadata(), &wanted.origin));
    assert_eq!((found.bytes, &found.owner), (3_000_002, &owner));
    assert_eq!(store.generations(&owner, &Page::FIRST).await.unwrap().items, [found]);
    let files = store.generation_files(&owner, &digest(1)).await.unwrap();
    let names: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
    assert_eq!(names, [("a.json", 2), ("b.safetensors", 3_000_000)]);
    assert_eq!(store.read_blob(&files[1].blob, 3_000_000).await.unwrap(), vec![7; 3_000_000]);
    assert_eq!(store.alias(&owner, "mia").await.unwrap(), alias);

    // Again, as after an answer that got lost.
    let again = store.register(&wanted, Some(&change("mia", Expected::Any))).await.unwrap();
    assert!(!again.is_new);
    assert_eq!(again.alias, Some(alias));
}

async fn nothing_stays_of_what_is_refused(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    let there = register(&store, &owner, 1).await;
    let blob = store.put_blob("new").await.unwrap();
    let file = |name: &str| (name.to_owned(), blob);
    let good = registration(&owner, 2, vec![file("a")]);

    let moved = store.register(&good, Some(&change("mia", Expected::Generation(there)))).await;
    assert!(matches!(moved, Err(StoreError::AliasMoved { found: None, .. })));
    let named = store.register(&good, Some(&change("a\tb", Expected::Any))).await;
    assert!(matches!(named, Err(StoreError::InvalidText { .. })));
    let none = store.register(&registration(&owner, 2, vec![]), None).await;
    assert!(matches!(none, Err(StoreError::FileCount { n_files: 0, .. })));
    let many = (0..17).map(|n| file(&n.to_string())).collect();
    let many = store.register(&registration(&owner, 2, many), None).await;
    assert!(matches!(many, Err(StoreError::FileCount { n_files: 17, .. })));
    let twice = registration(&owner, 2, vec![file("a"), file("a")]);
    assert!(matches!(store.register(&twice, None).await, Err(StoreError::FileTwice { .. })));
    let outside = registration(&owner, 2, vec![file("../a")]);
    assert!(matches!(store.register(&outside, None).await, Err(StoreError::InvalidText { .. })));
    let mut long = good.clone();
    long.metadata.target_modules = vec!["x".repeat(70_000)];
    assert!(matches!(store.register(&long, None).await, Err(StoreError::MetadataTooLong { .. })));
    // A blob that was never put, after one that was.
    let never = StagedBlob { digest: pleach_store::BlobDigest([1; 32]), bytes: 3 };
    let expired = registration(&owner, 2, vec![file("a"), ("b".to_owned(), never)]);
    let expired = store.register(&expired, None).await.unwrap_err();
    assert!(
        matches!(expired, StoreError::BlobExpired { digest } if digest == never.digest),
        "{expired}"
    );

    let unknown = store.generation(&owner, &digest(2)).await.unwrap_err();
    assert!(matches!(unknown, StoreError::UnknownGeneration { .. }));
    assert!(store.generation_files(&owner, &digest(2)).await.is_err());
    assert!(matches!(store.alias(&owner, "mia").await, Err(StoreError::UnknownAlias { .. })));
    assert!(store.alias_moves(&owner, "mia", None, 10).await.unwrap().is_empty());
    assert!(store.register(&good, None).await.unwrap().is_new);
}

async fn quotas_are_kept(place: Place) {
    let store = place.open().await;
    let mut settings = TenantSettings::named("one");
    settings.quotas.adapters = Some(2);
    settings.quotas.adapter_bytes = Some(10);
    let id = store.create_tenant(settings.clone()).await.unwrap().id;
    let owner = Owner::from(id.clone());
    let blob = store.put_blob("12345").await.unwrap();
    let files = || vec![("a".to_owned(), blob)];
    for (n, alias) in [(1, "a"), (2, "b")] {
        let change = change(alias, Expected::Absent);
        store.register(&registration(&owner, n, files()), Some(&change)).await.unwrap();
    }
    let third = registration(&owner, 3, files());
    let error = store.register(&third, None).await.unwrap_err().to_string();
    assert_eq!(error, format!("{owner} would have 15 adapter bytes, at most 10 are allowed"));
    let error =
        store.move_alias(&owner, &change("c", Expected::Any), &digest(1)).await.unwrap_err();
    let quota = matches!(error, StoreError::QuotaExceeded { quota: "adapters", wanted: 3, .. });
    assert!(quota, "{error}");
    // A move of an alias that is there, and what is there already, need no more.
    store.move_alias(&owner, &change("b", Expected::Any), &digest(1)).await.unwrap();
    store.register(&registration(&owner, 2, files()), None).await.unwrap();
    settings.quotas.adapter_bytes = None;
    settings.quotas.adapters = None;
    store.change_tenant(&id, &settings).await.unwrap();
    store.register(&third, Some(&change("c", Expected::Absent))).await.unwrap();
}

async fn one_tenants_generation_is_unknown_to_another(place: Place) {
    let store = place.open().await;
    let one = Owner::from(tenant(&store, "one").await);
    let two = Owner::from(tenant(&store, "two").await);
    let digest = register(&store, &one, 1).await;
    for other in [&two, &Owner::Shared] {
        assert!(matches!(
            store.generation(other, &digest).await,
            Err(StoreError::UnknownGeneration { .. })
        ));
        assert!(store.generation_files(other, &digest).await.is_err());
        let moved = store.move_alias(other, &change("a", Expected::Any), &digest).await;
        assert!(matches!(moved, Err(StoreError::UnknownGeneration { .. })));
        assert!(store.generations(other, &Page::FIRST).await.unwrap().items.is_empty());
    }
    // The same content is the other's own, with the same blob below.
    register(&store, &two, 1).await;
    let files = store.generation_files(&two, &digest).await.unwrap();
    assert_eq!(files, store.generation_files(&one, &digest).await.unwrap());
    let missing = pleach_store::BlobDigest([9; 32]);
    let error = store.read_blob(&missing, 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Blob(BlobError::Missing { .. })), "{error}");
}

async fn a_generation_that_comes_again_is_noted_for_its_new_base(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    register(&store, &owner, 1).await;
    let blob = store.put_blob("other bytes").await.unwrap();
    let mut again = registration(&owner, 1, vec![("weights".to_owned(), blob)]);
    again.metadata.base_digest = Some("ab".repeat(32));
    again.metadata.tensor_bytes += 1;
    assert!(!store.register(&again, None).await.unwrap().is_new);
    let found = store.generation(&owner, &digest(1)).await.unwrap().metadata;
    let expected = pleach_store::GenerationMetadata {
        base_digest: again.metadata.base_digest.clone(),
        ..metadata()
    };
    assert_eq!(found, expected, "what else is known is about the files that are kept");
}

async fn what_is_given_up_leaves_no_blob(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    register(&store, &owner, 1).await;
    let used = store.put_blob("1").await.unwrap();
    let unused = store.put_blob("unused").await.unwrap();
    store.discard_blobs(&[used, unused]).await.unwrap();
    assert_eq!(store.read_blob(&used.digest, 10).await.unwrap(), b"1");
    assert!(store.read_blob(&unused.digest, 10).await.is_err());
    // Whoever wanted the same bytes is told to put them again.
    let wanted = registration(&owner, 2, vec![("a".to_owned(), unused)]);
    let expired = store.register(&wanted, None).await.unwrap_err();
    assert!(matches!(expired, StoreError::BlobExpired { .. }), "{expired}");
    store.put_blob("unused").await.unwrap();
    assert!(store.register(&wanted, None).await.unwrap().is_new);
}
