//! The connection to SQLite or PostgreSQL. Above this file the two differ in nothing.
//!
//! | | SQLite | PostgreSQL |
//! |---|---|---|
//! | readers | a few connections | one pool for both |
//! | writers | one connection: changes of this process wait for each other here, in order, not by polling a lock | – |
//! | a change | `BEGIN IMMEDIATE`: nobody else writes until it ends | `READ COMMITTED`, and the owner's row is locked |
//! | durable | WAL with `synchronous = FULL`: a commit returns after fsync | the server's business |

use std::{path::Path, sync::Arc, time::Duration};

use sqlx::{
    Any, AnyPool, Executor as _, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
};

use crate::{error::StoreError, owner::Owner};

const SQLITE_READERS_MAX: u32 = 4;
const POSTGRES_CONNECTIONS_MAX: u32 = 8;
/// How long a call waits for a free connection.
const ACQUIRE_WAIT: Duration = Duration::from_secs(15);
/// Another process (a command beside the server) may hold SQLite's write lock; ten seconds, then an error.
const SQLITE_SETTINGS: &str = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; \
                               PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// Both pools. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) kind: Kind,
    /// What to call it in messages: without passwords.
    pub(crate) place: Arc<str>,
    readers: AnyPool,
    writers: AnyPool,
}

impl Database {
    /// Connects; makes the file and its folder if need be. Does not look at the schema.
    pub(crate) async fn open(at: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        match at.split_once(':') {
            Some(("postgres" | "postgresql", _)) => Self::open_postgres(at).await,
            Some(("sqlite", path)) => {
                Self::open_sqlite(path.strip_prefix("//").unwrap_or(path)).await
            }
            Some((scheme, rest)) if rest.starts_with("//") => {
                Err(StoreError::UnknownDatabase { scheme: scheme.to_owned() })
            }
            _ => Self::open_sqlite(at).await,
        }
    }

    async fn open_postgres(url: &str) -> Result<Self, StoreError> {
        let failed = |source| StoreError::database("read the database's URL", source);
        let options: AnyConnectOptions = url.parse().map_err(failed)?;
        let shown = &options.database_url;
        let place = format!("postgres://{}{}", shown.host_str().unwrap_or_default(), shown.path());
        let pool = AnyPoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_WAIT)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::database(format!("connect to {place}"), source))?;
        Ok(Self { kind: Kind::Postgres, place: place.into(), readers: pool.clone(), writers: pool })
    }

    async fn open_sqlite(path: &str) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(StoreError::io("find", path))?;
        make_file(&path)?;
        let place = path.display().to_string();
        let options: AnyConnectOptions = sqlite_url(&path)
            .parse()
            .map_err(|source| StoreError::database(format!("open {place}"), source))?;
        let pool = |connections_max| {
            AnyPoolOptions::new()
                .max_connections(connections_max)
                .acquire_timeout(ACQUIRE_WAIT)
                .after_connect(|connection, _| {
                    Box::pin(async move { connection.execute(SQLITE_SETTINGS).await.map(drop) })
                })
                .connect_with(options.clone())
        };
        let failed = |source| StoreError::database(format!("open {place}"), source);
        // The writer first: it turns the journal to WAL, for which it must be alone.
        let writers = pool(1).await.map_err(failed)?;
        let readers = pool(SQLITE_READERS_MAX).await.map_err(failed)?;
        Ok(Self { kind: Kind::Sqlite, place: place.into(), readers, writers })
    }

    /// For single statements that only read.
    pub(crate) fn readers(&self) -> &AnyPool {
        &self.readers
    }

    /// For single statements that write.
    pub(crate) fn writers(&self) -> &AnyPool {
        &self.writers
    }

    /// Begins a change of several statements. Dropped without commit, it is undone.
    pub(crate) async fn begin(
        &self,
        action: &str,
    ) -> Result<Transaction<'static, Any>, StoreError> {
        let statement = match self.kind {
            // A plain BEGIN would fail when it turns from reading to writing after somebody else wrote.
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        let failed = |source| StoreError::database(action, source);
        self.writers.begin_with(statement).await.map_err(failed)
    }

    /// Begins a change of what belongs to `owner`; changes of one owner follow each other.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`] if the owner does not exist.
    pub(crate) async fn begin_for(
        &self,
        owner: &Owner,
        action: &str,
    ) -> Result<Transaction<'static, Any>, StoreError> {
        let mut change = self.begin(action).await?;
        // Changes nothing, and locks the row until the end of the transaction, in both databases.
        let locked = sqlx::query("UPDATE tenants SET weight = weight WHERE id = $1")
            .bind(owner.as_str())
            .execute(&mut *change)
            .await
            .map_err(|source| StoreError::database(action, source))?;
        if locked.rows_affected() == 0 {
            return Err(StoreError::UnknownTenant { owner: owner.clone() });
        }
        Ok(change)
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

/// Makes an empty file that only this user can read, as it will hold digests of keys; and makes its name durable.
fn make_file(path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(StoreError::io("create", path))?;
    #[cfg(unix)]
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io("sync", folder))?;
    Ok(())
}

/// The path as `sqlx` reads it: whatever could be taken for the end of the path is escaped.
fn sqlite_url(path: &Path) -> String {
    let mut url = String::from("sqlite://");
    for byte in path.to_string_lossy().bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-\\:".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push('%');
            url.push_str(&crate::digest::to_hex(&[byte]));
        }
    }
    url.push_str("?mode=rw");
    url
}
