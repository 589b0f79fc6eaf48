//! Blobs.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use object_store::memory::InMemory;
use pleach_store::{BlobDigest, BlobError, Blobs, Store, StoreError};

use crate::{on_both, place::Place};

on_both!(
    blobs_of_all_sizes_come_back,
    limits_hold_while_bytes_arrive,
    a_damaged_blob_is_never_taken_for_good,
    an_object_store_is_as_good_as_a_folder,
);

/// SHA-256 of `abc` (FIPS 180-2).
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn path_of(place: &Place, digest: &BlobDigest) -> PathBuf {
    let digits = digest.to_string();
    place.blobs_folder().join("sha256").join(&digits[..2]).join(digits)
}

fn bytes_of(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

async fn check_sizes(store: &Store) {
    // Around the size of a piece, and of a part of an upload.
    for length in [0, 1, (256 << 10) - 1, 256 << 10, (8 << 20) - 1, 8 << 20, (17 << 20) + 3] {
        let bytes = bytes_of(length);
        let blob = store.put_blob(bytes.clone()).await.unwrap();
        assert_eq!(blob.bytes, length as u64);
        assert!(store.read_blob(&blob.digest, length as u64).await.unwrap() == bytes, "{length}");
        if length > 0 {
            let error = store.read_blob(&blob.digest, length as u64 - 1).await.unwrap_err();
            assert!(matches!(error, StoreError::Blob(BlobError::TooLarge { .. })), "{error}");
        }
        // In small bits, it is the same blob.
        let copy = store.put_blob_from("bits", bytes.as_ref(), u64::MAX).await.unwrap();
        assert_eq!(copy, blob);
    }
    let abc = store.put_blob("abc").await.unwrap();
    assert_eq!(abc.digest.to_string(), ABC);
}

async fn blobs_of_all_sizes_come_back(place: Place) {
    let store = place.open().await;
    check_sizes(&store).await;
    let abc = ABC.parse().unwrap();
    let copy = place.blobs_folder().with_file_name("copy");
    store.copy_blob(&abc, &copy).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), b"abc");
    let mut reader = store.blob_reader(&abc).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "abc");
    assert_eq!(reader.next().await.unwrap(), None);
    assert_eq!(reader.next().await.unwrap(), None);
}

async fn limits_hold_while_bytes_arrive(place: Place) {
    let store = place.open().await;
    for n in [3, 20 << 20] {
        let mut writer = store.blob_writer(n).unwrap();
        let half = bytes_of(usize::try_from(n / 2 + 1).unwrap());
        writer.write(half.clone()).await.unwrap();
        let error = writer.write(half).await.unwrap_err();
        let too_large =
            matches!(error, StoreError::Blob(BlobError::TooLarge { bytes_max }) if bytes_max == n);
        assert!(too_large, "{error}");
    }
    // An input without an end.
    let endless = tokio::io::repeat(7);
    let error = store.put_blob_from("endless", endless, 9 << 20).await.unwrap_err();
    assert!(matches!(error, StoreError::Blob(BlobError::TooLarge { .. })), "{error}");
    // An upload that its client gave up.
    let mut writer = store.blob_writer(u64::MAX).unwrap();
    writer.write(bytes_of(20 << 20)).await.unwrap();
    drop(writer);
    assert!(!place.blobs_folder().join("sha256").exists());
    // The files go on other threads.
    for _ in 0..500 {
        if std::fs::read_dir(place.blobs_folder().join("incoming")).unwrap().next().is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("files of unfinished uploads stayed");
}

async fn a_damaged_blob_is_never_taken_for_good(place: Place) {
    let store = place.open().await;
    let bytes = bytes_of(100_000);
    let blob = store.put_blob(bytes.clone()).await.unwrap();
    let path = path_of(&place, &blob.digest);
    let good = std::fs::read(&path).unwrap();
    let copy = place.blobs_folder().with_file_name("copy");

    let mut flipped = good.clone();
    flipped[77_777] ^= 1;
    for damaged in [&flipped[..], &good[..50_000], &[&good[..], &[0]].concat(), &[]] {
        std::fs::write(&path, damaged).unwrap();
        for error in [
            store.read_blob(&blob.digest, u64::MAX).await.map(drop).unwrap_err(),
            store.copy_blob(&blob.digest, &copy).await.unwrap_err(),
        ] {
            let StoreError::Blob(BlobError::Damaged { digest, found, .. }) = error else {
                panic!("{error}")
            };
            assert!(digest == blob.digest && found != digest);
        }
        let left = std::fs::read_dir(copy.parent().unwrap()).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("copy")), "{names:?}");
    }
    // To put it again heals it.
    assert_eq!(store.put_blob(bytes).await.unwrap(), blob);
    assert_eq!(store.read_blob(&blob.digest, u64::MAX).await.unwrap(), good);
    std::fs::remove_file(&path).unwrap();
    let error = store.read_blob(&blob.digest, u64::MAX).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("blob {} is missing in ", blob.digest)), "{error}");
}

async fn an_object_store_is_as_good_as_a_folder(place: Place) {
    let blobs = Blobs::in_objects(Arc::new(InMemory::new()), "memory");
    let store = Store::open(&place.database, blobs).await.unwrap();
    check_sizes(&store).await;
    let error = store.read_blob(&BlobDigest([1; 32]), 1).await.unwrap_err().to_string();
    assert!(error.ends_with("is missing in memory"), "{error}");
}

/// On the bucket that `PLEACH_TEST_S3` names (`s3://BUCKET/PREFIX`), reached as the variables `AWS_…` say.
#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_as_good_as_a_folder() {
    use std::{io::Write as _, time::Duration};

    let Ok(url) = std::env::var("PLEACH_TEST_S3") else {
        std::io::stderr()
            .write_all(b"skipped: blobs in S3, because PLEACH_TEST_S3 is not set\n")
            .unwrap();
        return;
    };
    let place = Place::sqlite();
    let options = pleach_store::StoreOptions { blob_keep: Duration::ZERO };
    let blobs = Blobs::open(&url).unwrap();
    let store = Store::open_with(&place.database, blobs, options).await.unwrap();
    check_sizes(&store).await;
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(store.sweep_blobs().await.unwrap().blobs, 8);
    let error = store.read_blob(&ABC.parse().unwrap(), 3).await.unwrap_err().to_string();
    assert!(error.ends_with(&format!("is missing in {url}")), "{error}");
}

#[test]
fn other_places_are_refused_by_name() {
    let error = Blobs::open("gs://bucket?key=secret").unwrap_err().to_string();
    assert!(error.contains("gs://bucket") && !error.contains("secret"), "{error}");
    #[cfg(not(feature = "s3"))]
    {
        let error = Blobs::open("s3://bucket/prefix").unwrap_err().to_string();
        assert!(error.contains("without the feature `s3`"), "{error}");
    }
}
