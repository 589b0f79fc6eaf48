//! Changes of names, in the store and in the registry: first durable, then visible. One at a time, so that both see them
//! in the same order; and each in a task of its own, so that a client that leaves cannot end one in the middle.

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use pleach_adapters::{
    Alias, Expect, Generation, GenerationDigest, LoadedAdapter, Moved, Registry, RegistryError,
    peft::{CONFIG_FILE, TENSOR_FILE},
};
use pleach_engine::{packed_adapter::PackedAdapter, spec::ModelSpec};
use pleach_store::{
    AliasChange, Expected, GenerationFile, GenerationMetadata, Origin, Registration, RollBack,
    StagedBlob, StoreError,
};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    Tiers,
    compose::Compositions,
    error::ServiceError,
    spool::SpoolFolder,
    stored_files::{Shelf, time_of, to_store},
    target::Target,
};

/// How often files are put again when another registration of equal ones was given up at the same time.
const STAGE_ATTEMPTS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) registry: Arc<Registry>,
    pub(super) residency: Tiers,
    pub(super) compositions: Arc<Compositions>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) spec: ModelSpec,
    /// Shared names as the configuration gave them: the store does not have them.
    pub(super) configured: std::sync::Mutex<HashSet<String>>,
    turn: Mutex<()>,
}

/// An adapter that may be registered: its files were read and are right.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) digest: GenerationDigest,
    pub(super) metadata: GenerationMetadata,
    pub(super) origin: Origin,
    /// The files.
    pub(super) folder: SpoolFolder,
}

/// A generation in the store, with the alias that points at it there.
pub(super) struct Stored {
    pub(super) generation: Arc<Generation>,
    /// When the alias was made.
    pub(super) made: SystemTime,
}

impl Checked {
    pub(super) fn new(
        adapter: &LoadedAdapter,
        shelf: &Shelf,
        origin: Origin,
        folder: SpoolFolder,
    ) -> Self {
        Self { digest: adapter.digest, metadata: shelf.metadata_of(adapter), origin, folder }
    }

    /// What the store is told, once the files are there.
    pub(super) fn registration(
        &self,
        target: &Target,
        files: Vec<(String, StagedBlob)>,
    ) -> Registration {
        Registration {
            owner: target.owner.clone(),
            digest: to_store(self.digest),
            metadata: self.metadata.clone(),
            origin: self.origin.clone(),
            files,
        }
    }
}

impl Changes {
    pub(super) fn new(
        registry: Arc<Registry>,
        residency: Tiers,
        compositions: Arc<Compositions>,
        shelf: Arc<Shelf>,
        spec: ModelSpec,
    ) -> Self {
        let (configured, turn) = Default::default();
        Self { registry, residency, compositions, shelf, spec, configured, turn }
    }

    /// Only who holds this changes anything.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Stores a generation and points an alias at it.
    pub(super) async fn register(
        &self,
        target: &Target,
        checked: &Checked,
        packed: PackedAdapter,
        expect: Expect,
    ) -> Result<Moved, ServiceError> {
        let packed = Arc::new(packed);
        let mut attempt = 1;
        loop {
            let staged = self.stage(&checked.folder).await?;
            let moved = self.register_staged(target, checked, &staged, &packed, expect).await;
            if moved.is_err() {
                self.give_up(&staged).await;
            }
            match moved {
                Err(ServiceError::Store(StoreError::BlobExpired { .. }))
                    if attempt < STAGE_ATTEMPTS =>
                {
                    attempt += 1;
                }
                moved => return moved,
            }
        }
    }

    async fn register_staged(
        &self,
        target: &Target,
        checked: &Checked,
        staged: &[(String, StagedBlob)],
        packed: &Arc<PackedAdapter>,
        expect: Expect,
    ) -> Result<Moved, ServiceError> {
        let _turn = self.turn().await;
        let (space, name) = (target.space(), &target.name);
        self.registry.check(&space, name, expect)?;
        let kept = self.keep_configured(target).await;
        // The store may have known better.
        self.registry.check(&space, name, expect)?;
        let registration = checked.registration(target, staged.to_vec());
        let Stored { generation, made } =
            self.store_generation(target, &registration, "loaded").await?;
        let left = self.registry.get(&space, name);
        let moved = self.registry.point(&space, name, generation, Expect::Anything)?;
        self.registry.set_created(&space, name, made);
        if let (Err(error), Some(left)) = (kept, left) {
            tracing::warn!(adapter = name, %error, "what --adapter gave cannot be gone back to");
            self.registry.forget_earlier(&space, name, left.generation.digest);
        }
        // Before the next change, which may remove the name: nothing would take this out of memory then. Host memory first,
        // so that the next request does not read it again; then the device, if there is room.
        let digest = moved.alias.generation.digest;
        self.residency.offer(digest, Arc::clone(packed));
        self.residency.prefetch(digest);
        self.settle(&moved);
        Ok(moved)
    }

    /// Stores a generation with its alias; both as they are stored then.
    pub(super) async fn store_generation(
        &self,
        target: &Target,
        registration: &Registration,
        reason: &str,
    ) -> Result<Stored, ServiceError> {
        let (store, owner) = (&self.shelf.store, &target.owner);
        let change = self.change(target, reason);
        let registered = store.register(registration, Some(&change)).await;
        let registered = match registered {
            Ok(registered) => registered,
            Err(error) => return Err(self.failed(target, error).await),
        };
        self.set_configured(&target.space(), &target.name, false);
        let made = registered.alias.map(|alias| time_of(alias.created_ms));
        let made = made.unwrap_or_else(SystemTime::now);
        if registered.is_new {
            let created = time_of(registered.created_ms);
            let Registration { owner, digest, metadata, files, .. } = registration;
            let files = files.iter().map(|(name, blob)| GenerationFile {
                name: name.clone(),
                blob: blob.digest,
                bytes: blob.bytes,
            });
            let known = self.shelf.known(*digest, metadata, created, &target.name);
            let files = self.shelf.files(owner.clone(), *digest, files.collect());
            return Ok(Stored { generation: Generation::known(known, files), made });
        }
        // The files that were there count; these may be others of equal weights.
        self.give_up(&registration.files).await;
        match self.generation(owner, &registration.digest, &target.name).await {
            Ok(generation) => Ok(Stored { generation, made }),
            Err(error) => Err(self.failed(target, error).await),
        }
    }

    /// Points an alias at a generation that its owner has; makes the alias if there is none.
    pub(super) async fn point_at(
        &self,
        target: &Target,
        generation: Arc<Generation>,
        expect: Expect,
        reason: &str,
    ) -> Result<Moved, ServiceError> {
        let _turn = self.turn().await;
        let (space, Target { owner, name, .. }) = (target.space(), target);
        self.registry.check(&space, name, expect)?;
        // What it leaves is to be gone back to.
        self.keep_configured(target).await?;
        let change = self.change(target, reason);
        let to = to_store(generation.digest);
        if let Err(error) = self.shelf.store.move_alias(owner, &change, &to).await {
            return Err(self.failed(target, error).await);
        }
        let moved = self.registry.point(&space, name, generation, Expect::Anything)?;
        self.set_configured(&space, name, false);
        self.residency.prefetch(moved.alias.generation.digest);
        self.settle(&moved);
        Ok(moved)
    }

    /// Points an alias back.
    pub(super) async fn roll_back(
        &self,
        target: &Target,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Moved, ServiceError> {
        let _turn = self.turn().await;
        let (space, Target { owner, name, .. }) = (target.space(), target);
        let goal = self.registry.roll_back_target(&space, name, to, expect)?;
        let is_there = self
            .registry
            .get(&space, name)
            .is_some_and(|alias| alias.generation.digest == goal.digest);
        if !is_there {
            let change = self.change(target, "rolled back");
            let goal = RollBack::Generation(to_store(goal.digest));
            if let Err(error) = self.shelf.store.roll_back(owner, &change, goal).await {
                return Err(self.failed(target, error).await);
            }
        }
        let moved = self.registry.roll_back(&space, name, Some(goal.digest), Expect::Anything)?;
        if moved.alias.generation.other_base().is_none() {
            self.residency.prefetch(moved.alias.generation.digest);
        }
        self.settle(&moved);
        Ok(moved)
    }

    /// Removes an alias.
    pub(super) async fn remove(
        &self,
        target: &Target,
        expect: Expect,
    ) -> Result<Moved, ServiceError> {
        let _turn = self.turn().await;
        let (space, Target { owner, name, .. }) = (target.space(), target);
        self.registry.check(&space, name, expect)?;
        if self.registry.get(&space, name).is_some_and(|alias| self.is_stored(&alias)) {
            let change = self.change(target, "removed");
            if let Err(error) = self.shelf.store.delete_alias(owner, &change).await {
                return Err(self.failed(target, error).await);
            }
        }
        let moved = self.registry.remove(&space, name, Expect::Anything)?;
        self.set_configured(&space, name, false);
        self.settle(&moved);
        Ok(moved)
    }

    /// Says whether an alias's generation is to stay on the device.
    pub(super) async fn pin(
        &self,
        target: &Target,
        is_pinned: bool,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        let _turn = self.turn().await;
        let (space, Target { owner, name, .. }) = (target.space(), target);
        self.registry.check(&space, name, expect)?;
        if self.registry.get(&space, name).is_none() {
            return Err(RegistryError::UnknownAlias { alias: name.clone() }.into());
        }
        self.keep_configured(target).await?;
        if let Err(error) = self.shelf.store.pin_alias(owner, name, is_pinned).await {
            return Err(self.failed(target, error).await);
        }
        let alias = self.registry.pin(&space, name, is_pinned)?;
        self.settle_pin(&alias, &alias.generation);
        Ok(alias)
    }

    /// The change as the store wants it: from where the registry has the alias.
    pub(super) fn change<'a>(&self, target: &'a Target, reason: &'a str) -> AliasChange<'a> {
        let alias = self.registry.get(&target.space(), &target.name);
        let expected = match alias.filter(|alias| self.is_stored(alias)) {
            Some(alias) => Expected::Generation(to_store(alias.generation.digest)),
            None => Expected::Absent,
        };
        AliasChange { alias: &target.name, expected, who: &target.who, reason }
    }

    /// Puts the files into the store.
    pub(super) async fn stage(
        &self,
        folder: &SpoolFolder,
    ) -> Result<Vec<(String, StagedBlob)>, ServiceError> {
        let mut staged = Vec::new();
        for name in [CONFIG_FILE, TENSOR_FILE] {
            let file = tokio::fs::File::open(folder.path().join(name)).await?;
            let put = self.shelf.store.put_blob_from(name, file, u64::MAX).await;
            match put {
                Ok(blob) => staged.push((name.to_owned(), blob)),
                Err(error) => {
                    self.give_up(&staged).await;
                    return Err(error.into());
                }
            }
        }
        Ok(staged)
    }

    /// Takes files that were put and not registered out of the store again.
    pub(super) async fn give_up(&self, staged: &[(String, StagedBlob)]) {
        let blobs: Vec<_> = staged.iter().map(|(_, blob)| *blob).collect();
        if let Err(error) = self.shelf.store.discard_blobs(&blobs).await {
            tracing::warn!(%error, "blobs of an adapter that was not registered are left for a sweep");
        }
    }
}
