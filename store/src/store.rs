//! Opening and closing.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use crate::{
    beats::Beats,
    blobs::Blobs,
    clock::whole_ms,
    database::Database,
    error::StoreError,
    key_uses::KeyUses,
    migrations::{MIGRATIONS, migrate},
};

/// Long enough for the largest upload to be followed by its registration.
const BLOB_KEEP: Duration = Duration::from_hours(1);

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// How long a blob that no generation has is kept after it was put, for the registration that is to follow, and
    /// unfinished uploads after their last byte. An hour, unless changed.
    pub blob_keep: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { blob_keep: BLOB_KEEP }
    }
}

/// Everything durable. Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) database: Database,
    pub(crate) blobs: Blobs,
    pub(crate) blob_keep_ms: i64,
    pub(crate) key_uses: Arc<KeyUses>,
    /// Of who runs jobs.
    pub(crate) job_beats: Arc<Beats>,
    /// Of who runs rounds.
    pub(crate) round_beats: Arc<Beats>,
}

impl Store {
    /// Opens or makes a store.
    ///
    /// `database` is the path of an SQLite file (also `sqlite:PATH`) or a URL `postgres://…`. Its schema is brought up
    /// to date, and garbage of interrupted uploads is deleted (when that fails, it is logged and left for next time).
    ///
    /// # Errors
    /// When the database cannot be reached or made, or was made by a later version of this program.
    pub async fn open(database: &str, blobs: Blobs) -> Result<Self, StoreError> {
        Self::open_with(database, blobs, StoreOptions::default()).await
    }

    /// [`Self::open`] with other options than usual.
    ///
    /// # Errors
    /// As there.
    pub async fn open_with(
        database: &str,
        blobs: Blobs,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let database = Database::open(database).await?;
        migrate(&database, MIGRATIONS).await?;
        let blob_keep_ms = whole_ms(options.blob_keep);
        let store = Self {
            database,
            blobs,
            blob_keep_ms,
            key_uses: Arc::default(),
            job_beats: Arc::default(),
            round_beats: Arc::default(),
        };
        if let Err(error) = store.sweep_blobs().await {
            warn!(%error, "garbage among the blobs is left for the next start");
        }
        Ok(store)
    }

    /// The database, for messages; without passwords.
    pub fn place(&self) -> &str {
        &self.database.place
    }

    /// Whether [`Self::close`] was called on a clone.
    pub fn is_closed(&self) -> bool {
        self.database.writers().is_closed()
    }

    /// Where blobs are.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Writes what is written lazily and closes all connections; every clone is closed then. A store that is only
    /// dropped loses the last times at which keys were used, and nothing else.
    ///
    /// # Errors
    /// When those times cannot be written.
    pub async fn close(self) -> Result<(), StoreError> {
        let flushed = self.flush_key_uses().await;
        self.database.close().await;
        flushed
    }
}
