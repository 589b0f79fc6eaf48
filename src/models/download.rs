//! One file over HTTP, resumed where an earlier try ended.
//!
//! Bytes go to `FILE.part`; `FILE.part.json` names the address and version that they are of, so that pieces of two
//! versions never come together. Nothing here takes the name `FILE`: that is done by the store, after the check.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{StatusCode, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt as _,
};

use crate::hex::hex;

use super::{
    digest::{hash_file, with_suffix},
    error::ModelError,
    hub::{Answer, Hub, check_status},
    progress::{Meter, Progress},
};

/// Tries in a row that brought no new byte.
const FRUITLESS_TRIES_MAX: u32 = 4;
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// What to fetch, and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) url: &'a str,
    /// Where the bytes go until they are complete.
    pub(super) part: &'a Path,
    pub(super) bytes: Option<u64>,
    pub(super) sha256: Option<&'a str>,
    /// How long the first answer may take.
    pub(super) patience: Duration,
    /// Whether to give up at once when not even the first byte comes, because another source is at hand.
    pub(super) has_alternative: bool,
}

/// What `FILE.part` holds the beginning of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PartNote {
    url: String,
    validator: Option<String>,
}

/// A complete and checked part file.
#[derive(Debug)]
pub(super) struct Downloaded {
    pub(super) sha256: String,
}

enum Outcome {
    Complete {
        expected: Option<u64>,
        sha256: Option<String>,
    },
    /// What was here is of another version.
    StartOver,
}

/// Fetches `wanted` into its part file and checks size and digest.
pub(super) async fn download(
    hub: &Hub,
    wanted: &Wanted<'_>,
    progress: &Progress,
) -> Result<Downloaded, ModelError> {
    let mut fruitless = 0;
    let mut has_started_over = false;
    loop {
        let before = part_bytes(wanted);
        let error = match attempt(hub, wanted, progress).await {
            Ok(Outcome::Complete { expected, sha256 }) => {
                let expected_sha256 = wanted.sha256.map(str::to_owned).or(sha256);
                match check(wanted, expected, expected_sha256).await {
                    // A resumed file may have begun as something else: once more from the start.
                    Err(ModelError::Digest { .. } | ModelError::Size { .. })
                        if before > 0 && !has_started_over =>
                    {
                        has_started_over = true;
                        discard(wanted.part);
                        continue;
                    }
                    Err(error) => {
                        discard(wanted.part);
                        return Err(error);
                    }
                    Ok(done) => return Ok(done),
                }
            }
            Ok(Outcome::StartOver) if !has_started_over => {
                has_started_over = true;
                discard(wanted.part);
                continue;
            }
            Ok(Outcome::StartOver) => {
                let reason = "the file changes while it is fetched".to_owned();
                return Err(ModelError::BadAnswer { url: wanted.url.to_owned(), reason });
            }
            Err(error @ ModelError::Size { .. }) => {
                discard(wanted.part);
                return Err(error);
            }
            Err(error) => error,
        };
        let has_more = part_bytes(wanted) > before;
        fruitless = if has_more { 0 } else { fruitless + 1 };
        let is_hopeless = wanted.has_alternative && !has_more && before == 0;
        if !error.is_passing() || is_hopeless || fruitless >= FRUITLESS_TRIES_MAX {
            return Err(error);
        }
        progress.say(format!("{error}: trying again"));
        tokio::time::sleep(RETRY_DELAY * (1 << fruitless)).await;
    }
}

/// Removes what is left of an unfinished file.
pub(super) fn discard(part: &Path) {
    // What isn't there needs no removing; what cannot be removed fails when it is written.
    let _ = fs::remove_file(part);
    let _ = fs::remove_file(note_path(part));
}

fn note_path(part: &Path) -> PathBuf {
    with_suffix(part, ".json")
}

fn read_note(part: &Path) -> Option<PartNote> {
    serde_json::from_slice(&fs::read(note_path(part)).ok()?).ok()
}

/// Usable bytes of an earlier try.
fn part_bytes(wanted: &Wanted<'_>) -> u64 {
    let is_same = read_note(wanted.part).is_some_and(|note| note.url == wanted.url);
    if is_same { fs::metadata(wanted.part).map_or(0, |meta| meta.len()) } else { 0 }
}

async fn attempt(
    hub: &Hub,
    wanted: &Wanted<'_>,
    progress: &Progress,
) -> Result<Outcome, ModelError> {
    let have = part_bytes(wanted);
    let answer = hub.get(wanted.url, have, wanted.patience).await?;
    let status = answer.response.status();
    let is_other_version =
        have > 0 && read_note(wanted.part).and_then(|note| note.validator) != answer.validator;
    if status == StatusCode::RANGE_NOT_SATISFIABLE && have > 0 {
        // The part may be the whole already; the check decides.
        let total = total_of_range(&answer).unwrap_or(have);
        if is_other_version || total != have {
            return Ok(Outcome::StartOver);
        }
        return Ok(Outcome::Complete { expected: Some(total), sha256: answer.sha256 });
    }
    check_status(&answer.response, wanted.url)?;
    if is_other_version {
        return Ok(Outcome::StartOver);
    }
    let (start, total) = if status == StatusCode::PARTIAL_CONTENT {
        match range_start(&answer) {
            Some(start) if start == have => (have, total_of_range(&answer)),
            _ => return Ok(Outcome::StartOver),
        }
    } else {
        (0, answer.response.content_length())
    };
    check_promises(wanted, total, answer.sha256.as_deref())?;
    write_note(wanted, &answer)?;
    let file = open_part(wanted.part, start).await?;
    let label = wanted.url.rsplit('/').next().unwrap_or(wanted.url).to_owned();
    let mut meter = progress.bytes(label, total.or(wanted.bytes));
    meter.resume_at(start);
    let sha256 = answer.sha256.clone();
    let received = receive(wanted, answer, file, start, total.or(wanted.bytes), &mut meter).await;
    meter.finish();
    let received = received?;
    match total.filter(|&total| received < total) {
        Some(expected) => {
            Err(ModelError::Truncated { url: wanted.url.to_owned(), received, expected })
        }
        None => Ok(Outcome::Complete { expected: total, sha256 }),
    }
}

/// Refuses a wrong file before its bytes come.
fn check_promises(
    wanted: &Wanted<'_>,
    total: Option<u64>,
    sha256: Option<&str>,
) -> Result<(), ModelError> {
    let origin = || wanted.url.to_owned();
    if let (Some(expected), Some(found)) = (wanted.bytes, total)
        && expected != found
    {
        return Err(ModelError::Size { origin: origin(), expected, found });
    }
    match (wanted.sha256, sha256) {
        (Some(expected), Some(found)) if expected != found => Err(ModelError::Digest {
            origin: origin(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn write_note(wanted: &Wanted<'_>, answer: &Answer) -> Result<(), ModelError> {
    let note = PartNote { url: wanted.url.to_owned(), validator: answer.validator.clone() };
    let path = note_path(wanted.part);
    fs::write(&path, serde_json::json!(note).to_string()).map_err(ModelError::io("write", path))
}

async fn open_part(part: &Path, start: u64) -> Result<File, ModelError> {
    let mut options = OpenOptions::new();
    if start == 0 {
        options.write(true).create(true).truncate(true);
    } else {
        options.append(true);
    }
    options.open(part).await.map_err(ModelError::io("create", part))
}

/// Writes the body; the number of bytes that the part file then has. Never more than `bytes_max`.
async fn receive(
    wanted: &Wanted<'_>,
    mut answer: Answer,
    mut file: File,
    start: u64,
    bytes_max: Option<u64>,
    meter: &mut Meter,
) -> Result<u64, ModelError> {
    let write_error = ModelError::io("write", wanted.part);
    let mut received = start;
    let written = async {
        loop {
            let chunk = match answer.response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(ModelError::http(wanted.url)(error))),
            };
            received += chunk.len() as u64;
            if let Some(expected) = bytes_max
                && received > expected
            {
                let origin = wanted.url.to_owned();
                return Ok::<_, io::Error>(Err(ModelError::Size {
                    origin,
                    expected,
                    found: received,
                }));
            }
            file.write_all(&chunk).await?;
            meter.add(chunk.len() as u64);
        }
    };
    // What did come is kept on disk even when the transfer breaks.
    let ended = match written.await {
        Ok(ended) => match file.flush().await {
            Ok(()) => file.sync_all().await.map(|()| ended),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    ended.map_err(write_error)??;
    Ok(received)
}

/// Size and digest of the finished part file, read back from the disk.
async fn check(
    wanted: &Wanted<'_>,
    bytes: Option<u64>,
    sha256: Option<String>,
) -> Result<Downloaded, ModelError> {
    let part = wanted.part.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        hash_file(&part, &mut hash).map(|bytes| (bytes, hex(&hash.finalize())))
    });
    let (bytes_found, found) =
        hashed.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let origin = || wanted.url.to_owned();
    if let Some(expected) = wanted.bytes.or(bytes)
        && expected != bytes_found
    {
        return Err(ModelError::Size { origin: origin(), expected, found: bytes_found });
    }
    match sha256 {
        Some(expected) if expected != found => {
            Err(ModelError::Digest { origin: origin(), expected, found })
        }
        _ => Ok(Downloaded { sha256: found }),
    }
}

fn content_range(answer: &Answer) -> Option<&str> {
    answer.response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")
}

fn range_start(answer: &Answer) -> Option<u64> {
    content_range(answer)?.split_once('-')?.0.parse().ok()
}

fn total_of_range(answer: &Answer) -> Option<u64> {
    content_range(answer)?.split_once('/')?.1.parse().ok()
}
