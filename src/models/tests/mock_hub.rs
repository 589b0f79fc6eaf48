//! A hub on the loopback interface that breaks, stalls, lies and refuses on demand.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::Response,
    routing::get,
};
use futures_util::{StreamExt as _, stream};

use super::digest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Fine,
    /// The first answer ends after so many bytes.
    BreaksAt(usize),
    /// Every answer ends after so many bytes.
    AlwaysBreaks(usize),
    /// The first answer stalls after so many bytes.
    StallsAt(usize),
    /// Ranges are not understood, and the first answer breaks.
    NoRanges(usize),
    /// Right size, wrong bytes, no digest announced.
    WrongBytes,
    /// Another digest announced.
    WrongDigest,
    NotFound,
    /// Accepts and says nothing.
    Mute,
}

#[derive(Clone)]
pub(super) struct MockHub {
    mood: Mood,
    content: Arc<Vec<u8>>,
    pub(super) answers: Arc<AtomicUsize>,
    ranges: Arc<Mutex<Vec<Option<String>>>>,
    pub(super) tokens_at_cdn: Arc<AtomicUsize>,
}

impl MockHub {
    pub(super) async fn start(mood: Mood, content: &[u8]) -> (Self, String) {
        let hub = Self {
            mood,
            content: Arc::new(content.to_vec()),
            answers: Arc::default(),
            ranges: Arc::default(),
            tokens_at_cdn: Arc::default(),
        };
        let listing = r#"{"siblings":[{"rfilename":"README.md"},{"rfilename":"../evil.gguf"},{"rfilename":"m.gguf"}]}"#;
        let router = Router::new()
            .route("/api/models/o/r", get(move || async move { listing }))
            .route("/o/r/resolve/{revision}/m.gguf", get(redirect))
            .route("/cdn/m.gguf", get(cdn))
            .with_state(hub.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (hub, url)
    }

    pub(super) fn ranges(&self) -> Vec<Option<String>> {
        self.ranges.lock().unwrap().clone()
    }
}

async fn redirect(State(hub): State<MockHub>) -> Response {
    let mut response =
        Response::builder().status(StatusCode::FOUND).header(header::LOCATION, "/cdn/m.gguf");
    match hub.mood {
        Mood::NotFound => response = Response::builder().status(StatusCode::NOT_FOUND),
        Mood::Mute => tokio::time::sleep(Duration::from_mins(1)).await,
        Mood::WrongBytes => {}
        Mood::WrongDigest => {
            response = response.header("x-linked-etag", format!("\"{}\"", "0".repeat(64)));
        }
        Mood::Fine
        | Mood::BreaksAt(_)
        | Mood::AlwaysBreaks(_)
        | Mood::StallsAt(_)
        | Mood::NoRanges(_) => {
            response = response.header("x-linked-etag", format!("\"{}\"", digest(&hub.content)));
        }
    }
    response.body(Body::empty()).unwrap()
}

async fn cdn(State(hub): State<MockHub>, headers: HeaderMap) -> Response {
    let is_first = hub.answers.fetch_add(1, Ordering::SeqCst) == 0;
    let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    hub.ranges.lock().unwrap().push(range.clone());
    if headers.contains_key(header::AUTHORIZATION) {
        hub.tokens_at_cdn.fetch_add(1, Ordering::SeqCst);
    }
    let mut content = hub.content.as_ref().clone();
    if hub.mood == Mood::WrongBytes {
        content[7] ^= 1;
    }
    let total = content.len();
    let start = match (&range, hub.mood) {
        (None, _) | (_, Mood::NoRanges(_)) => 0,
        (Some(range), _) => {
            range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse::<usize>().unwrap()
        }
    };
    let mut response = Response::builder().header(header::CONTENT_LENGTH, total - start);
    if start > 0 {
        let value = format!("bytes {start}-{}/{total}", total - 1);
        response =
            response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, value);
    }
    let end = match hub.mood {
        Mood::BreaksAt(end) | Mood::StallsAt(end) | Mood::NoRanges(end) => {
            if is_first {
                end
            } else {
                total
            }
        }
        Mood::AlwaysBreaks(end) => end.max(start),
        Mood::Fine | Mood::WrongBytes | Mood::WrongDigest | Mood::NotFound | Mood::Mute => total,
    };
    let first =
        stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(&content[start..end]))]);
    let is_stalling = matches!(hub.mood, Mood::StallsAt(_)) && is_first;
    let last = stream::once(async move {
        if is_stalling {
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        Err(std::io::Error::other("broken on purpose"))
    });
    let body = if end < total {
        // Give the client time to read what was sent before the connection goes.
        let pause = stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Bytes::new())
        });
        Body::from_stream(first.chain(pause).chain(last))
    } else {
        Body::from_stream(first)
    };
    response.body(body).unwrap()
}
