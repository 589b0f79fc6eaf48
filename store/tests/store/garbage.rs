//! What interrupted uploads leave, and what sweeps take.

use std::{sync::Arc, time::Duration};

use object_store::{ObjectStoreExt as _, memory::InMemory};
use pleach_store::{Blobs, Owner, Store, StoreError, StoreOptions, Swept};

use crate::{
    on_both,
    place::{Place, register, registration},
};

on_both!(
    what_was_not_registered_in_time_is_deleted,
    unfinished_uploads_are_deleted_when_they_are_old,
    a_row_without_its_blob_is_forgotten,
    registrations_and_sweeps_never_lose_a_blob,
);

/// Keeping for zero milliseconds still is to the end of this one.
async fn next_millisecond() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

async fn what_was_not_registered_in_time_is_deleted(place: Place) {
    let store = place.open_keeping(Duration::ZERO).await;
    let generation = register(&store, &Owner::Shared, 1).await;
    let late = store.put_blob("late").await.unwrap();
    next_millisecond().await;
    let swept = store.sweep_blobs().await.unwrap();
    assert_eq!(swept, Swept { blobs: 1, bytes: 4, uploads: 0 });
    assert_eq!(store.sweep_blobs().await.unwrap(), Swept::default());
    let file = &store.generation_files(&Owner::Shared, &generation).await.unwrap()[0];
    assert_eq!(store.read_blob(&file.blob, 9).await.unwrap(), b"1");
    let files = vec![("a".to_owned(), late)];
    let expired = store.register(&registration(&Owner::Shared, 2, files.clone()), None).await;
    assert!(matches!(expired, Err(StoreError::BlobExpired { digest }) if digest == late.digest));

    // With time to spare it stays, and who puts it again has that time from then on.
    let patient = place.open().await;
    patient.put_blob("late").await.unwrap();
    next_millisecond().await;
    assert_eq!(store.put_blob("late").await.unwrap(), late);
    next_millisecond().await;
    assert_eq!(store.sweep_blobs().await.unwrap(), Swept::default());
    let wanted = registration(&Owner::Shared, 2, files);
    assert!(patient.register(&wanted, None).await.unwrap().is_new);
}

async fn unfinished_uploads_are_deleted_when_they_are_old(place: Place) {
    let store = place.open().await;
    let incoming = place.blobs_folder().join("incoming");
    // As a killed process leaves them: the second one is a name that `object_store` hides.
    let names = ["0123", "4567#1"].map(|name| incoming.join(name));
    for name in &names {
        std::fs::write(name, "half").unwrap();
    }
    next_millisecond().await;
    assert_eq!(store.sweep_blobs().await.unwrap().uploads, 0);
    // The next start finds them old.
    let store = place.open_keeping(Duration::ZERO).await;
    assert!(names.iter().all(|name| !name.exists()));
    drop(store);

    let objects = Arc::new(InMemory::new());
    objects.put(&"incoming/0123".into(), "half".into()).await.unwrap();
    let blobs = Blobs::in_objects(Arc::clone(&objects) as _, "memory");
    let store = Store::open(&place.database, blobs.clone()).await.unwrap();
    assert_eq!(store.sweep_blobs().await.unwrap().uploads, 0);
    next_millisecond().await;
    let options = StoreOptions { blob_keep: Duration::ZERO };
    Store::open_with(&place.database, blobs, options).await.unwrap();
    assert!(objects.head(&"incoming/0123".into()).await.is_err());
}

/// A crash between row and blob.
async fn a_row_without_its_blob_is_forgotten(place: Place) {
    let store = place.open().await;
    let insert =
        "INSERT INTO blobs (sha256, bytes, created_ms, keep_until_ms) VALUES ($1, 5, 1, 1)";
    let rows = 250;
    let raw = place.raw().await;
    for n in 0..rows {
        sqlx::query(insert).bind(format!("{n:064x}")).execute(&raw).await.unwrap();
    }
    let swept = store.sweep_blobs().await.unwrap();
    assert_eq!(swept, Swept { blobs: rows, bytes: 5 * rows, uploads: 0 });
}

/// Uploads whose time is over at once, against sweeps that never stop.
async fn registrations_and_sweeps_never_lose_a_blob(place: Place) {
    const CLIENTS: u64 = 3;
    const ROUNDS: u64 = 15;
    // It is the one that puts who says how long a blob is kept, and the one that sweeps who says it of uploads.
    let sweeping = place.open().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sweeper = {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            let mut swept = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                swept += sweeping.sweep_blobs().await.unwrap().blobs;
            }
            swept
        })
    };
    let store = place.open_keeping(Duration::ZERO).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                let (mut registered, mut expired) = (Vec::new(), 0);
                for round in 0..ROUNDS {
                    // All clients put the same blob in a round, and each registers its own generation.
                    let blob = store.put_blob(format!("round {round}")).await.unwrap();
                    let files = vec![("a".to_owned(), blob)];
                    let wanted = registration(&Owner::Shared, round * CLIENTS + client, files);
                    match store.register(&wanted, None).await {
                        Ok(_) => registered.push((wanted.digest, round)),
                        Err(StoreError::BlobExpired { .. }) => expired += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (registered, expired)
            })
        })
        .collect();
    let mut n_registered = 0;
    for client in clients {
        let (registered, expired) = client.await.unwrap();
        assert_eq!(registered.len() as u64 + expired, ROUNDS);
        n_registered += registered.len();
        for (generation, round) in registered {
            let files = store.generation_files(&Owner::Shared, &generation).await.unwrap();
            let bytes = store.read_blob(&files[0].blob, 99).await.unwrap();
            assert_eq!(bytes, format!("round {round}").as_bytes());
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let swept = sweeper.await.unwrap();
    assert!(n_registered > 0, "nothing was registered, {swept} blobs were swept");
}
