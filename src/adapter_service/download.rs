//! The files of a generation, byte for byte as they were registered.

use std::sync::Arc;

use pleach_adapters::{
    Expect, FolderInPlace, Generation, GenerationDigest, Namespace, RegistryError, load_peft,
    peft::{CONFIG_FILE, TENSOR_FILE},
    registry::is_hidden,
};
use pleach_store::BlobReader;
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{
    AdapterService, ServiceError,
    stored_files::{StoredFileError, StoredFiles},
};

/// Bytes read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// A generation's files, opened.
#[derive(Debug)]
pub struct AdapterDownload {
    /// Held, so that its files stay.
    pub generation: Arc<Generation>,
    /// Whether it is a shared one, not the caller's.
    pub is_shared: bool,
    /// In the order in which they are sent.
    pub files: Vec<DownloadFile>,
}

/// One file that is being read.
#[derive(Debug)]
pub struct DownloadFile {
    /// Its name in an adapter's folder.
    pub name: &'static str,
    /// How many bytes it has; [`Self::next`] gives as many or fails.
    pub bytes: u64,
    unread: u64,
    from: From,
}

#[derive(Debug)]
enum From {
    Blob(Box<BlobReader>),
    File(File),
    /// What is still to be sent.
    Text(String),
}

impl AdapterService {
    /// Opens the files of what `caller` means by a name, or of what that is in `space`, its own or the shared one; of one
    /// of its earlier generations if `generation` says so.
    ///
    /// # Errors
    /// Unknown names and generations; files that cannot be read or are not what was registered.
    pub async fn download(
        &self,
        caller: &Namespace,
        space: Option<&Namespace>,
        name: &str,
        generation: Option<GenerationDigest>,
    ) -> Result<AdapterDownload, ServiceError> {
        let unknown = || RegistryError::UnknownAlias { alias: name.to_owned() };
        let alias = match space {
            Some(space) => self.registry.get(space, name).filter(|_| !is_hidden(name)),
            None => self.registry.visible(caller, name),
        };
        let alias = alias.ok_or_else(unknown)?;
        let found = self.registry.roll_back_target(
            &alias.namespace,
            name,
            Some(generation.unwrap_or(alias.generation.digest)),
            Expect::Anything,
        )?;
        // Equal files that the namespace has stored since stay what they are; a folder of somebody else's may not.
        let generation = self.registry.find(&alias.namespace, &found.digest).unwrap_or(found);
        let files = match StoredFiles::of(&generation) {
            Some(stored) => self.open_stored(stored).await?,
            None => self.open_in_place(&generation).await?,
        };
        Ok(AdapterDownload { generation, is_shared: alias.namespace.is_shared(), files })
    }

    async fn open_stored(&self, stored: &StoredFiles) -> Result<Vec<DownloadFile>, ServiceError> {
        let mut files = Vec::new();
        for name in [CONFIG_FILE, TENSOR_FILE] {
            let file = stored.find(name)?;
            let reader = self.changes.shelf.store.blob_reader(&file.blob).await;
            let reader = reader.map_err(|error| StoredFileError::new(name, &error))?;
            // The length is told before the content is checked.
            if reader.bytes() != file.bytes {
                return Err(StoredFileError::Damaged { file: name }.into());
            }
            files.push(DownloadFile::new(name, file.bytes, From::Blob(Box::new(reader))));
        }
        Ok(files)
    }

    /// Files of somebody else's: opened, and then checked, so that what is written beside them later does not count.
    async fn open_in_place(
        &self,
        generation: &Generation,
    ) -> Result<Vec<DownloadFile>, ServiceError> {
        let files: &dyn std::any::Any = &*generation.files;
        let folder = files.downcast_ref::<FolderInPlace>().ok_or(ServiceError::NotKept)?;
        let folder = folder.folder().to_owned();
        let lost = |error: &dyn std::fmt::Display| {
            let adapter = &generation.loaded_as;
            tracing::warn!(adapter, %error, "configured files cannot be read");
            ServiceError::NotKept
        };
        let mut files = Vec::new();
        for name in [CONFIG_FILE, TENSOR_FILE] {
            let file = File::open(folder.join(name)).await.map_err(|error| lost(&error))?;
            let bytes = file.metadata().await?.len();
            files.push(DownloadFile::new(name, bytes, From::File(file)));
        }
        let spec = self.engine.spec().clone();
        let load = move || load_peft(&folder, &spec).map(|adapter| adapter.digest);
        let found = tokio::task::spawn_blocking(load).await.map_err(|_| ServiceError::Panicked)?;
        let found = found.map_err(|error| lost(&error))?;
        if found != generation.digest {
            return Err(ServiceError::ConfiguredChanged { found });
        }
        Ok(files)
    }
}

impl DownloadFile {
    /// A file of this text.
    pub fn text(name: &'static str, text: String) -> Self {
        Self::new(name, text.len() as u64, From::Text(text))
    }

    fn new(name: &'static str, bytes: u64, from: From) -> Self {
        Self { name, bytes, unread: bytes, from }
    }

    /// The next bytes; `None` after the last ones. The last ones are given only if all were the right ones.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or has another length than at first.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ServiceError> {
        let damaged = || StoredFileError::Damaged { file: self.name };
        if self.unread == 0 {
            return Ok(None);
        }
        let piece = self.from.next(self.name, self.unread).await?.ok_or_else(damaged)?;
        self.unread = self.unread.checked_sub(piece.len() as u64).ok_or_else(damaged)?;
        if self.unread == 0 && self.from.next(self.name, self.unread).await?.is_some() {
            return Err(damaged().into());
        }
        Ok(Some(piece))
    }
}

impl From {
    /// Of a blob, the end tells whether it is good.
    async fn next(
        &mut self,
        name: &'static str,
        unread: u64,
    ) -> Result<Option<Vec<u8>>, ServiceError> {
        match self {
            Self::Blob(reader) => {
                let piece = reader.next().await;
                Ok(piece.map_err(|error| StoredFileError::new(name, &error))?.map(Vec::from))
            }
            Self::File(file) => {
                let mut piece = Vec::new();
                let n = file.take(unread.min(PIECE_BYTES)).read_to_end(&mut piece).await?;
                Ok((n > 0).then_some(piece))
            }
            Self::Text(text) => {
                let piece = std::mem::take(text).into_bytes();
                Ok((!piece.is_empty()).then_some(piece))
            }
        }
    }
}
