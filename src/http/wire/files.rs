//! Files and uploads.

use std::ops::RangeInclusive;

use pleach_store::{StoredFile, StoredUpload, UploadPart};
use serde::Serialize;

use super::fields::{Fields, as_integer, as_list, as_string};
use crate::http::error::ApiError;

/// Largest file that comes in one request: `OpenAI`'s limit.
pub const FILE_BYTES_MAX: u64 = 512 << 20;
/// Largest part of an upload: `OpenAI`'s limit.
pub const PART_BYTES_MAX: u64 = 64 << 20;
/// Largest file that comes in parts: `OpenAI`'s limit.
pub const UPLOAD_BYTES_MAX: u64 = 8 << 30;
/// How long a file may be asked to be kept, seconds: `OpenAI`'s limits.
const KEEP_SECONDS: RangeInclusive<i64> = 3600..=2_592_000;

/// Rows to train on.
pub const FINE_TUNE: &str = "fine-tune";
/// What training measured.
pub const RESULTS: &str = "fine-tune-results";

/// A file.
#[derive(Clone, Debug, Serialize)]
pub struct FileCard {
    /// `file-…`.
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// How many it has.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created_at: i64,
    /// When it ceases to be, seconds since 1970.
    pub expires_at: Option<i64>,
    /// For people.
    pub filename: String,
    /// What it is for.
    pub purpose: String,
    /// Always `processed`: what cannot be used is refused when it comes.
    pub status: &'static str,
    /// Always null.
    pub status_details: Option<String>,
}

impl From<StoredFile> for FileCard {
    fn from(file: StoredFile) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_ms / 1000,
            expires_at: file.expires_ms.map(|ms| ms / 1000),
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
            status_details: None,
        }
    }
}

/// An upload.
#[derive(Clone, Debug, Serialize)]
pub struct UploadCard {
    /// `upload_…`.
    pub id: String,
    /// Always `upload`.
    pub object: &'static str,
    /// Bytes that were announced.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Until when it must be completed, seconds since 1970.
    pub expires_at: i64,
    /// The file's name.
    pub filename: String,
    /// What the file is for.
    pub purpose: String,
    /// `pending`, `completed`, `cancelled` or `expired`.
    pub status: &'static str,
    /// What it became.
    pub file: Option<FileCard>,
}

impl UploadCard {
    /// The card of an upload and its file.
    pub fn new(upload: StoredUpload, file: Option<StoredFile>) -> Self {
        Self {
            id: upload.id,
            object: "upload",
            bytes: upload.bytes,
            created_at: upload.created_ms / 1000,
            expires_at: upload.expires_ms / 1000,
            filename: upload.filename,
            purpose: upload.purpose,
            status: upload.status.name(),
            file: file.map(FileCard::from),
        }
    }
}

/// A part of an upload.
#[derive(Clone, Debug, Serialize)]
pub struct PartCard {
    /// `part_…`.
    pub id: String,
    /// Always `upload.part`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Its upload.
    pub upload_id: String,
}

impl PartCard {
    /// The card of a part of an upload.
    pub fn new(part: UploadPart, upload_id: String) -> Self {
        Self { id: part.id, object: "upload.part", created_at: part.created_ms / 1000, upload_id }
    }
}

/// The body of `POST /v1/uploads`.
#[derive(Clone, Debug)]
pub struct UploadRequest {
    /// The file's name.
    pub filename: String,
    /// What the file is for.
    pub purpose: String,
    /// Bytes that are to come.
    pub bytes: u64,
    /// How long the file is kept, ms.
    pub keep_ms: Option<i64>,
}

impl UploadRequest {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// The first field that is missing, of wrong type or out of range.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        const BYTES: &str = "bytes";
        let text = |name| as_string(fields.require(name)?, name).map(str::to_owned);
        let bytes_max = UPLOAD_BYTES_MAX.cast_signed();
        let bytes = as_integer(fields.require(BYTES)?, BYTES, 1..=bytes_max)?;
        text("mime_type")?;
        let keep = match fields.object("expires_after")? {
            None => None,
            Some(keep) => {
                let anchor = keep.get("anchor").and_then(|anchor| anchor.as_str());
                let seconds = keep.get("seconds").ok_or_else(|| ApiError::Missing {
                    param: "expires_after.seconds".to_owned(),
                })?;
                let seconds = as_integer(seconds, "expires_after.seconds", KEEP_SECONDS)?;
                Some(keep_ms(anchor, seconds)?)
            }
        };
        let purpose = text("purpose")?;
        check_purpose(&purpose)?;
        Ok(Self {
            filename: text("filename")?,
            purpose,
            bytes: bytes.unsigned_abs(),
            keep_ms: keep,
        })
    }
}

/// The body of `POST /v1/uploads/{id}/complete`: ids of parts in order, and the MD5 that all their bytes must have.
///
/// # Errors
/// The first field that is missing or of wrong type.
pub fn read_complete(fields: &Fields) -> Result<(Vec<String>, Option<String>), ApiError> {
    const PARTS: &str = "part_ids";
    let ids = as_list(fields.require(PARTS)?, PARTS)?.iter();
    let ids = ids.map(|id| as_string(id, PARTS).map(str::to_owned)).collect::<Result<_, _>>()?;
    Ok((ids, fields.string("md5")?.map(str::to_ascii_lowercase)))
}

/// What may be sent: rows to train on.
///
/// # Errors
/// Any other purpose.
pub fn check_purpose(purpose: &str) -> Result<(), ApiError> {
    if purpose == FINE_TUNE {
        return Ok(());
    }
    Err(ApiError::invalid(
        "purpose",
        format!("{purpose:?} is not supported, only {FINE_TUNE:?} is"),
    ))
}

/// `expires_after`, in milliseconds.
///
/// # Errors
/// Another anchor than the creation, or a time that is out of range.
pub fn keep_ms(anchor: Option<&str>, seconds: i64) -> Result<i64, ApiError> {
    if anchor != Some("created_at") {
        return Err(ApiError::invalid("expires_after.anchor", "it must be created_at"));
    }
    if !KEEP_SECONDS.contains(&seconds) {
        return Err(ApiError::OutOfRange {
            param: "expires_after.seconds".to_owned(),
            bounds: format!("from {} to {}", KEEP_SECONDS.start(), KEEP_SECONDS.end()),
            found: seconds.to_string(),
        });
    }
    Ok(seconds * 1000)
}
