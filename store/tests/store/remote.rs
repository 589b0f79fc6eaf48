//! Folders in object stores that others write.

use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory};
use pleach_store::RemoteFolder;

#[test]
fn only_what_lies_below_a_folder_is_found() {
    let folder = RemoteFolder::in_objects(Arc::new(InMemory::new()), "s3://bucket/team/");
    assert_eq!(folder.place(), "s3://bucket/team");
    for inside in
        ["s3://bucket/team", "s3://bucket/team/", "s3://bucket/team/a", "s3://bucket/team/a/b/"]
    {
        assert!(folder.below(inside).is_some(), "{inside}");
    }
    for outside in [
        "s3://bucket",
        "s3://bucket/teams/a",
        "s3://bucket/other",
        "s3://other/team/a",
        "s3://bucket/team/../other",
        "s3://bucket/team/./a",
        "s3://bucket/team//a",
        "/bucket/team/a",
        "",
    ] {
        assert!(folder.below(outside).is_none(), "{outside}");
    }
}

#[test]
fn what_is_no_place_of_objects_is_refused_by_name() {
    for url in ["gs://bucket", "bucket", "s4://x"] {
        assert!(!RemoteFolder::is_url(url));
        let error = RemoteFolder::open(url).unwrap_err().to_string();
        assert!(error.contains(url), "{error}");
    }
    assert!(RemoteFolder::is_url("s3://bucket") && RemoteFolder::is_url("s3a://bucket/x"));
    if !cfg!(feature = "s3") {
        let error = RemoteFolder::open("s3://bucket/x?secret=1").unwrap_err().to_string();
        assert!(error.contains("without the feature `s3`") && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn objects_are_read_to_their_end() {
    let objects = Arc::new(InMemory::new());
    objects.put(&"a b/c/one".into(), "content".into()).await.unwrap();
    let objects: Arc<dyn ObjectStore> = objects;
    let folder = RemoteFolder::in_objects(objects, "s3://bucket");
    let path = folder.below("s3://bucket/a b/c").unwrap();
    let mut file = folder.read(&path, "one").await.unwrap().unwrap();
    let mut content = Vec::new();
    while let Some(bytes) = file.next().await.unwrap() {
        content.extend_from_slice(&bytes);
    }
    assert_eq!(content, b"content");
    assert!(folder.read(&path, "two").await.unwrap().is_none());
}
