//! Files and uploads: what is kept, for how long, and that their blobs go with them.

use std::time::Duration;

use pleach_store::{
    Expired, NewFile, NewUpload, Order, Owner, Page, Quotas, StagedBlob, Store, StoreError, Swept,
    TenantSettings, UPLOAD_PARTS_MAX, UploadStatus,
};

use crate::{
    on_both,
    place::{Place, register, tenant},
};

on_both!(
    a_file_is_its_owners_until_it_is_deleted,
    files_go_with_their_time_and_their_blobs_with_them,
    pages_go_in_either_order,
    parts_are_one_file_or_none,
    bytes_of_files_and_parts_are_limited,
);

fn file(owner: &Owner, name: &str, blob: StagedBlob) -> NewFile {
    let (filename, purpose) = (name.to_owned(), "fine-tune".to_owned());
    NewFile { owner: owner.clone(), filename, purpose, blob, keep_ms: None }
}

fn upload(owner: &Owner, bytes: u64) -> NewUpload {
    let (filename, purpose) = ("big".to_owned(), "fine-tune".to_owned());
    NewUpload { owner: owner.clone(), filename, purpose, bytes, file_keep_ms: None }
}

async fn n_blobs(place: &Place) -> i64 {
    use sqlx::Row as _;
    let row = sqlx::query("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM blobs");
    row.fetch_one(&place.raw().await).await.unwrap().get("n")
}

async fn a_file_is_its_owners_until_it_is_deleted(place: Place) {
    let store = place.open().await;
    let (one, two) =
        (Owner::Tenant(tenant(&store, "one").await), Owner::Tenant(tenant(&store, "two").await));
    let blob = store.put_blob("rows").await.unwrap();
    let made = store.create_file(&file(&one, "Ünal's rows", blob)).await.unwrap();
    let same = store.create_file(&file(&two, "other", blob)).await.unwrap();
    drop(store);
    let store = place.open_keeping(Duration::ZERO).await;
    assert_eq!(store.file(&one, &made.id).await.unwrap(), made);
    for error in [
        store.file(&two, &made.id).await.unwrap_err(),
        store.file(&one, "file-none").await.unwrap_err(),
        store.delete_file(&two, &made.id).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NotFound { kind: "file", .. }), "{error}");
    }
    store.delete_file(&one, &made.id).await.unwrap();
    assert!(store.file(&one, &made.id).await.is_err());
    assert_eq!(store.read_blob(&same.blob, 9).await.unwrap(), b"rows", "another has it");
    store.delete_file(&two, &same.id).await.unwrap();
    assert_eq!(n_blobs(&place).await, 0);
    let bad = store.create_file(&file(&one, "a\nb", blob)).await.unwrap_err();
    assert!(matches!(bad, StoreError::InvalidText { .. }), "{bad}");
    let gone = store.create_file(&file(&one, "a", blob)).await.unwrap_err();
    assert!(matches!(gone, StoreError::BlobExpired { .. }), "{gone}");
}

async fn files_go_with_their_time_and_their_blobs_with_them(place: Place) {
    let store = place.open_keeping(Duration::ZERO).await;
    let owner = Owner::Shared;
    let blob = store.put_blob("short").await.unwrap();
    let short = NewFile { keep_ms: Some(1), ..file(&owner, "short", blob) };
    let short = store.create_file(&short).await.unwrap();
    let blob = store.put_blob("long").await.unwrap();
    let long = store.create_file(&file(&owner, "long", blob)).await.unwrap();
    register(&store, &owner, 1).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Nobody sees it, even before it is swept.
    assert!(store.file(&owner, &short.id).await.is_err());
    let listed = store.files(&owner, None, &Page::FIRST, Order::Ascending).await.unwrap();
    assert_eq!(listed.items, std::slice::from_ref(&long));
    assert_eq!(store.sweep_blobs().await.unwrap(), Swept::default(), "files hold their blobs");
    let expired = store.sweep_expired().await.unwrap();
    assert_eq!(expired, Expired { files: 1, ..Expired::default() });
    assert_eq!(n_blobs(&place).await, 2);
    assert_eq!(store.read_blob(&long.blob, 9).await.unwrap(), b"long");
}

async fn pages_go_in_either_order(place: Place) {
    let store = place.open().await;
    let mut made = Vec::new();
    for n in 0..5 {
        let blob = store.put_blob(n.to_string()).await.unwrap();
        let purpose = if n == 3 { "fine-tune-results" } else { "fine-tune" }.to_owned();
        let new = NewFile { purpose, ..file(&Owner::Shared, &n.to_string(), blob) };
        made.push(store.create_file(&new).await.unwrap());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for order in [Order::Ascending, Order::Descending] {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let page = Page { after: next.as_deref(), rows_max: 2 };
            let listing = store.files(&Owner::Shared, None, &page, order).await.unwrap();
            found.extend(listing.items);
            next = listing.next;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(found, made, "{order:?}");
        made.reverse();
    }
    let results = Some("fine-tune-results");
    let found = store.files(&Owner::Shared, results, &Page::FIRST, Order::Descending).await;
    assert_eq!(found.unwrap().items, [made[3].clone()]);
}

async fn part(store: &Store, owner: &Owner, upload: &str, bytes: &'static str) -> String {
    let blob = store.put_blob(bytes).await.unwrap();
    store.add_part(owner, upload, &blob).await.unwrap().id
}

async fn parts_are_one_file_or_none(place: Place) {
    let store = place.open_keeping(Duration::ZERO).await;
    let owner = Owner::Shared;
    let other = Owner::Tenant(tenant(&store, "other").await);
    let begun = store.create_upload(&upload(&owner, 6)).await.unwrap();
    let (one, two) = (
        part(&store, &owner, &begun.id, "one").await,
        part(&store, &owner, &begun.id, "two").await,
    );
    let in_order = store.parts(&owner, &begun.id, &[two.clone(), one.clone()]).await.unwrap();
    assert_eq!(in_order.iter().map(|part| &part.id).collect::<Vec<_>>(), [&two, &one]);
    let twice = store.parts(&owner, &begun.id, &[one.clone(), one]).await.unwrap_err();
    assert!(matches!(twice, StoreError::NotFound { kind: "part", .. }), "{twice}");
    let error = store.parts(&other, &begun.id, &[two]).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { kind: "upload", .. }), "{error}");
    let blob = store.put_blob("more").await.unwrap();
    let more = store.add_part(&owner, &begun.id, &blob).await.unwrap_err();
    assert!(matches!(more, StoreError::WrongState { .. }), "{more}");
    store.discard_blobs(&[blob]).await.unwrap();

    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(store.sweep_blobs().await.unwrap(), Swept::default(), "parts hold their blobs");
    let whole = store.put_blob("onetwo").await.unwrap();
    let (done, file) = store.complete_upload(&owner, &begun.id, &whole).await.unwrap();
    assert_eq!((done.status, file.bytes), (UploadStatus::Completed, 6));
    assert_eq!(store.upload(&owner, &begun.id).await.unwrap(), (done, Some(file.clone())));
    for again in [
        store.complete_upload(&owner, &begun.id, &whole).await.map(drop),
        store.cancel_upload(&owner, &begun.id).await.map(drop),
        store.add_part(&owner, &begun.id, &whole).await.map(drop),
    ] {
        assert!(matches!(again, Err(StoreError::WrongState { .. })), "{again:?}");
    }
    store.delete_file(&owner, &file.id).await.unwrap();
    assert_eq!(n_blobs(&place).await, 0);

    // What is not completed in time takes no more parts, and is swept.
    let late = store.create_upload(&upload(&owner, 3)).await.unwrap();
    part(&store, &owner, &late.id, "one").await;
    let raw = place.raw().await;
    sqlx::query("UPDATE uploads SET expires_ms = expires_ms - 4000000")
        .execute(&raw)
        .await
        .unwrap();
    let (found, _) = store.upload(&owner, &late.id).await.unwrap();
    assert_eq!(found.status, UploadStatus::Expired);
    assert_eq!(store.sweep_expired().await.unwrap().uploads, 1);
    assert_eq!(n_blobs(&place).await, 0);
    assert_eq!(store.upload(&owner, &late.id).await.unwrap().0.status, UploadStatus::Expired);
    sqlx::query("UPDATE uploads SET expires_ms = 1").execute(&raw).await.unwrap();
    assert_eq!(store.sweep_expired().await.unwrap().uploads, 2);
    assert!(store.upload(&owner, &late.id).await.is_err());

    // A full one takes no more.
    let full = store.create_upload(&upload(&owner, 3)).await.unwrap();
    let id = part(&store, &owner, &full.id, "one").await;
    let more = format!(
        "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {UPLOAD_PARTS_MAX}) \
         INSERT INTO upload_parts (owner, upload, id, sha256, bytes, created_ms) \
         SELECT owner, upload, id || i, sha256, 0, created_ms FROM upload_parts, n \
         WHERE upload_parts.id = '{id}'"
    );
    sqlx::query(sqlx::AssertSqlSafe(more)).execute(&raw).await.unwrap();
    let blob = store.put_blob("").await.unwrap();
    let refused = store.add_part(&owner, &full.id, &blob).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooMany { n_max: UPLOAD_PARTS_MAX, .. }), "{refused}");
}

async fn bytes_of_files_and_parts_are_limited(place: Place) {
    let store = place.open().await;
    let quotas = Quotas { file_bytes: Some(10), ..Quotas::default() };
    let settings = TenantSettings { quotas, ..TenantSettings::named("few") };
    let owner = Owner::Tenant(store.create_tenant(settings).await.unwrap().id);
    let four = store.put_blob("four").await.unwrap();
    store.create_file(&file(&owner, "a", four)).await.unwrap();
    let begun = store.create_upload(&upload(&owner, 6)).await.unwrap();
    part(&store, &owner, &begun.id, "five!").await;
    let two = store.put_blob("22").await.unwrap();
    for refused in [
        store.create_file(&file(&owner, "b", two)).await.map(drop),
        store.add_part(&owner, &begun.id, &two).await.map(drop),
        store.create_upload(&upload(&owner, 2)).await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(
            matches!(
                refused,
                StoreError::QuotaExceeded { quota: "file bytes", limit: 10, wanted: 11, .. }
            ),
            "{refused}"
        );
    }
    store.cancel_upload(&owner, &begun.id).await.unwrap();
    store.create_file(&file(&owner, "b", two)).await.unwrap();
}
