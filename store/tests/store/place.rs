//! A new database and a new folder for each test, and what most tests begin with.

use std::{path::PathBuf, time::Duration};

use pleach_store::{
    Blobs, GenerationDigest, GenerationMetadata, Origin, Owner, Registration, StagedBlob, Store,
    StoreOptions, TenantId, TenantSettings,
};
use sqlx::{AnyPool, any::AnyPoolOptions};
use tempfile::TempDir;

/// Where a store is.
pub(crate) struct Place {
    /// What [`Store::open`] is given.
    pub(crate) database: String,
    /// For `sqlx`.
    url: String,
    folder: TempDir,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("new/store.sqlite").to_str().unwrap().to_owned();
        let url = format!("sqlite://{database}");
        Self { database, url, folder }
    }

    pub(crate) fn postgres() -> Option<Self> {
        let url = pleach_test_setup::postgres()?.new_database();
        Some(Self { database: url.clone(), url, folder: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn blobs_folder(&self) -> PathBuf {
        self.folder.path().join("blobs")
    }

    pub(crate) async fn open(&self) -> Store {
        self.open_keeping(Duration::from_hours(1)).await
    }

    pub(crate) async fn open_keeping(&self, blob_keep: Duration) -> Store {
        let blobs = Blobs::in_folder(self.blobs_folder()).unwrap();
        Store::open_with(&self.database, blobs, StoreOptions { blob_keep }).await.unwrap()
    }

    /// The database without the store.
    pub(crate) async fn raw(&self) -> AnyPool {
        sqlx::any::install_default_drivers();
        let url = match self.url.strip_prefix("sqlite://") {
            Some(path) => {
                let path = PathBuf::from(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                format!("{}?mode=rwc", self.url)
            }
            None => self.url.clone(),
        };
        AnyPoolOptions::new().max_connections(1).connect(&url).await.unwrap()
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite:")
    }
}

/// A tenant named `name`.
pub(crate) async fn tenant(store: &Store, name: &str) -> TenantId {
    store.create_tenant(TenantSettings::named(name)).await.unwrap().id
}

/// A digest that is told from others by `n`.
pub(crate) fn digest(n: u64) -> GenerationDigest {
    let mut bytes = [0xa5; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    GenerationDigest(bytes)
}

pub(crate) fn metadata() -> GenerationMetadata {
    GenerationMetadata {
        kind: "lora".to_owned(),
        format: "peft".to_owned(),
        rank_max: 16,
        target_modules: vec!["q_proj".to_owned(), "down_proj".to_owned()],
        n_parameters: 1 << 40,
        tensor_bytes: 77,
        base_digest: None,
        base_name: Some("a base \"with\" quotes, ü and \u{0}".to_owned()),
    }
}

pub(crate) fn registration(
    owner: &Owner,
    n: u64,
    files: Vec<(String, StagedBlob)>,
) -> Registration {
    let (digest, origin) = (digest(n), Origin::Upload);
    Registration { owner: owner.clone(), digest, metadata: metadata(), origin, files }
}

/// Registers generation `n` of `owner` with one file, whose bytes are those of `n`.
pub(crate) async fn register(store: &Store, owner: &Owner, n: u64) -> GenerationDigest {
    let blob = store.put_blob(n.to_string()).await.unwrap();
    let registration = registration(owner, n, vec![("weights".to_owned(), blob)]);
    assert!(store.register(&registration, None).await.unwrap().is_new);
    registration.digest
}
