//! `GET /v1/adapters/{name}/download`: the two files of an adapter as an uncompressed tar, which unpacks to a PEFT folder;
//! beside them the model card of what was trained here.

use std::{io, sync::Arc, time::UNIX_EPOCH};

use axum::{
    body::Body,
    extract::{Path, Query, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use pleach_adapters::Generation;
use pleach_store::{GenerationDigest, Owner, Scope, StoreError};
use tar::{EntryType, Header};

use super::{
    adapters::{QueryFields, read_name, read_space},
    error::ApiError,
    lineage::base_name,
    state::AppState,
    wire::fields::as_generation,
};
use crate::{
    adapter_service::{AdapterDownload, DownloadFile, ServiceError},
    learning::{Provenance, model_card},
    tenants::Caller,
};

const TAR: &str = "application/x-tar";
/// As model hubs call a card.
const README: &str = "README.md";
/// Everything in a tar is a multiple of this, and two blocks of zeros end it.
const BLOCK_BYTES: u64 = 512;
const FILE_MODE: u32 = 0o644;

/// Sends what the caller means by a name (`?owner=own` or `?owner=shared`: that one), or one of its earlier generations
/// (`?generation=`), byte for byte as it was registered. The length is told at first: a body that is cut short was not all.
///
/// # Errors
/// When there is no such adapter or generation, or its files cannot be read.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
) -> Result<Response, ApiError> {
    caller.require(Scope::Train)?;
    let name = read_name(name)?;
    let generation = query.get("generation").map(|text| as_generation(text, "generation"));
    let (namespace, space) = (caller.namespace(), read_space(&caller, &query)?);
    let generation = generation.transpose()?;
    let download = state.adapters.download(&namespace, space.as_ref(), &name, generation).await;
    let mut download = download.map_err(ApiError::from_service)?;
    let owner = if download.is_shared { &Owner::Shared } else { &caller.owner };
    let digest = GenerationDigest(download.generation.digest.0);
    match Provenance::of(&state.store, owner, &digest).await {
        Ok(provenance) => {
            let card = model_card(&name, base_name(&state), &provenance);
            download.files.push(DownloadFile::text(README, card));
        }
        // It was not trained here.
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(ApiError::from_stored(error)),
    }
    let archive = Archive::new(download)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(TAR)),
        (header::CONTENT_LENGTH, archive.bytes.into()),
    ];
    let pieces = stream::try_unfold(archive, async |mut archive| {
        let piece = archive.next().await.inspect_err(|error| {
            tracing::warn!(%error, "a download is broken off");
        })?;
        Ok::<_, ServiceError>(piece.map(|piece| (piece, archive)))
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// A tar that is being written.
struct Archive {
    /// Of all that is to come.
    bytes: u64,
    /// Held, so that its files stay.
    _generation: Arc<Generation>,
    files: std::vec::IntoIter<(Vec<u8>, DownloadFile)>,
    open: Option<DownloadFile>,
    is_ended: bool,
}

impl Archive {
    fn new(AdapterDownload { generation, files, .. }: AdapterDownload) -> Result<Self, ApiError> {
        let time = generation.created.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let with_header = |file: DownloadFile| {
            let header = header(&file, time);
            header.map(|header| (header, file))
        };
        let files: Vec<_> = files.into_iter().map(with_header).collect::<Result<_, _>>().map_err(
            |error: io::Error| ApiError::Internal {
                detail: format!("no header of a tar: {error}"),
            },
        )?;
        let bytes = files.iter().map(|(_, file)| BLOCK_BYTES + file.bytes + padding(file.bytes));
        Ok(Self {
            bytes: bytes.sum::<u64>() + 2 * BLOCK_BYTES,
            _generation: generation,
            files: files.into_iter(),
            open: None,
            is_ended: false,
        })
    }

    /// The next bytes: of each file its header, its content and zeros up to a whole block; then two blocks of zeros.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, ServiceError> {
        if let Some(file) = &mut self.open {
            if let Some(piece) = file.next().await? {
                return Ok(Some(piece));
            }
            let zeros = padding(file.bytes);
            self.open = None;
            if zeros > 0 {
                return Ok(Some(zeroed(zeros)));
            }
        }
        if let Some((header, file)) = self.files.next() {
            self.open = Some(file);
            return Ok(Some(header));
        }
        let is_ended = std::mem::replace(&mut self.is_ended, true);
        Ok((!is_ended).then(|| zeroed(2 * BLOCK_BYTES)))
    }
}

fn header(file: &DownloadFile, unix_seconds: u64) -> io::Result<Vec<u8>> {
    let mut header = Header::new_ustar();
    header.set_path(file.name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(FILE_MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(file.bytes);
    header.set_mtime(unix_seconds);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// Zeros after so many bytes.
fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES) - bytes
}

/// At most two blocks.
fn zeroed(bytes: u64) -> Vec<u8> {
    std::iter::repeat_n(0, usize::try_from(bytes).unwrap_or_default()).collect()
}
