//! Taking generations away.

use pleach_store::{AliasChange, BlobError, Expected, Owner, RollBack, StoreError};

use crate::{
    on_both,
    place::{Place, register, tenant},
};

on_both!(what_is_used_stays, a_blob_goes_with_its_last_generation,);

const MOVE: AliasChange<'_> =
    AliasChange { alias: "mia", expected: Expected::Any, who: "ops", reason: "" };

async fn what_is_used_stays(place: Place) {
    let store = place.open().await;
    let owner = Owner::from(tenant(&store, "one").await);
    let (old, new) = (register(&store, &owner, 1).await, register(&store, &owner, 2).await);
    store.move_alias(&owner, &MOVE, &old).await.unwrap();
    for error in [
        store.retire_generation(&owner, &old).await.unwrap_err(),
        store.purge_generation(&owner, &old).await.unwrap_err(),
    ] {
        assert!(matches!(&error, StoreError::GenerationInUse { alias, .. } if alias == "mia"));
    }
    store.move_alias(&owner, &MOVE, &new).await.unwrap();
    let error = store.retire_generation(&owner, &old).await.unwrap_err();
    assert!(matches!(error, StoreError::GenerationInHistory { .. }), "{error}");
    assert_eq!(store.roll_back(&owner, &MOVE, RollBack::Previous).await.unwrap().generation, old);
    store.move_alias(&owner, &MOVE, &new).await.unwrap();

    store.purge_generation(&owner, &old).await.unwrap();
    for gone in [
        store.generation(&owner, &old).await.map(drop).unwrap_err(),
        store.purge_generation(&owner, &old).await.unwrap_err(),
    ] {
        assert!(matches!(gone, StoreError::UnknownGeneration { .. }), "{gone}");
    }
    let none = store.roll_back(&owner, &MOVE, RollBack::Previous).await.unwrap_err();
    assert!(matches!(none, StoreError::NoEarlierGeneration { .. }), "{none}");
    assert_eq!(store.alias(&owner, "mia").await.unwrap().generation, new);

    // The history goes with the alias; the log of moves keeps nothing.
    let third = register(&store, &owner, 3).await;
    store.move_alias(&owner, &MOVE, &third).await.unwrap();
    store.move_alias(&owner, &MOVE, &new).await.unwrap();
    assert!(store.retire_generation(&owner, &third).await.is_err());
    store.delete_alias(&owner, &MOVE).await.unwrap();
    store.retire_generation(&owner, &third).await.unwrap();
}

async fn a_blob_goes_with_its_last_generation(place: Place) {
    let store = place.open().await;
    let (one, two) = (Owner::Shared, Owner::from(tenant(&store, "two").await));
    let generation = register(&store, &one, 1).await;
    register(&store, &two, 1).await;
    let blob = store.generation_files(&one, &generation).await.unwrap()[0].blob;
    store.retire_generation(&one, &generation).await.unwrap();
    assert_eq!(store.read_blob(&blob, 10).await.unwrap(), b"1");
    store.retire_generation(&two, &generation).await.unwrap();
    let error = store.read_blob(&blob, 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Blob(BlobError::Missing { .. })), "{error}");
    // And comes back.
    register(&store, &two, 1).await;
    assert_eq!(store.read_blob(&blob, 10).await.unwrap(), b"1");
}
