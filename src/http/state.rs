//! What every handler shares.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pleach_adapters::{
    Expect, GenerationDigest, Namespace, RegistryError, base_kv_key, registry::is_hidden,
};
use pleach_engine::engine::EngineHandle;
use pleach_store::{Owner, Store, StoreError};
use pleach_text::{ChatTemplate, Tokenizer};

use super::{cpu_work::CpuWork, error::ApiError, wire::sampling::Sampling};
use crate::{
    adapter_service::{AdapterService, PinnedAdapter, PinnedPart, ResolvedParts, ServiceError},
    feedback::Capture,
    learning::{Learning, rollouts::Ticket},
    telemetry::Telemetry,
    tenants::{Caller, Tenants},
    training::{FileChecks, Training},
};

/// Limits on what clients send.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Largest body.
    pub body_bytes_max: usize,
    /// How long a body may take to arrive.
    pub body_time_max: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        // 2 MiB of JSON are about 500 000 tokens of text, and become at most about 100 MB while they are parsed.
        Self { body_bytes_max: 2 << 20, body_time_max: Duration::from_secs(30) }
    }
}

/// The base, from the side of text.
#[derive(Debug)]
pub struct Base {
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, or why it has none.
    pub chat_template: Result<Arc<ChatTemplate>, String>,
    /// Short digest of its file, in every response.
    pub fingerprint: String,
    /// When it was loaded, seconds since 1970.
    pub loaded_unix: u64,
}

/// What every handler shares.
#[derive(Debug)]
pub struct AppState {
    /// Runs sequences.
    pub engine: EngineHandle,
    /// The base, from the side of text.
    pub base: Base,
    /// Base names and adapters.
    pub adapters: AdapterService,
    /// What survives this process.
    pub store: Store,
    /// What is measured.
    pub telemetry: Arc<Telemetry>,
    /// Limits on what clients send; see [`Self::limits`].
    pub live_limits: RwLock<HttpLimits>,
    /// Who may ask for what, and how much.
    pub tenants: Arc<Tenants>,
    /// Tokenizing and templating.
    pub cpu: CpuWork,
    /// What is kept of completions.
    pub capture: Arc<Capture>,
    /// Whether this process trains.
    pub training: Training,
    /// Rounds of the learning loop, and who gets what is on trial.
    pub learning: Learning,
    /// Reading the rows of files that come.
    pub file_checks: FileChecks,
    /// Set once, when the server begins to stop.
    pub stopping: AtomicBool,
}

impl AppState {
    /// Limits on what clients send, as they are now.
    pub fn limits(&self) -> HttpLimits {
        *self.live_limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes them for requests that come from now on.
    pub fn set_limits(&self, limits: HttpLimits) {
        *self.live_limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Whether the server takes requests: not while it stops, and not after the engine's thread has died.
    pub fn is_serving(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && !self.engine.is_stopping()
    }

    /// What a caller's request runs on, pinned for the whole request: its `model`, in the generation that it insists on, or
    /// the base with the sum of its `adapters`.
    ///
    /// # Errors
    /// [`ApiError::UnknownModel`], or [`ApiError::Adapter`] when an adapter has no such generation, is for another base, or is
    /// not to be had with the others; a store that fails, for a name that is not known otherwise.
    pub async fn resolve(
        &self,
        caller: &Caller,
        name: &str,
        sampling: &Sampling,
        unit: &Unit<'_>,
    ) -> Result<Model, ApiError> {
        let generation = sampling.adapter_generation;
        if generation.is_some() && self.adapters.registry().is_base(name) {
            return Err(ApiError::invalid("adapter_generation", "'model' names no adapter"));
        }
        let namespace = caller.namespace();
        let model =
            |adapter| Model { name: name.to_owned(), adapter, parts: Vec::new(), ticket: None };
        let is_plain = generation.is_none() && sampling.adapters.is_empty();
        let adapter = match self.adapters.resolve(&namespace, name, generation) {
            Err(ServiceError::Registry(error @ RegistryError::UnknownName { .. })) if is_plain => {
                let space = self.of_base(caller, name).await?;
                let space = space.ok_or_else(|| ApiError::from_registry(&error))?;
                return Ok(self.on_trial(caller, &space, model(None), unit));
            }
            resolved => resolved.map_err(ApiError::from_service)?,
        };
        let model = model(adapter);
        if sampling.adapters.is_empty() {
            // Who insists on a generation gets it.
            return Ok(match &model.adapter {
                Some(PinnedAdapter::One(alias)) if generation.is_none() => {
                    let space = alias.namespace.clone();
                    self.on_trial(caller, &space, model, unit)
                }
                _ => model,
            });
        }
        if model.adapter.is_some() {
            let reason = "with 'adapters' it must name the base; name this adapter among them";
            return Err(ApiError::invalid("model", reason));
        }
        let resolved = self.adapters.resolve_parts(&namespace, &sampling.adapters);
        let ResolvedParts { parts, adapter } = resolved.map_err(ApiError::from_service)?;
        Ok(Model { adapter, parts, ..model })
    }

    /// Whose a name is that has no adapter and whose policy says that the base answers under it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn of_base(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Option<Namespace>, ApiError> {
        let shared = (caller.owner != Owner::Shared).then_some(&Owner::Shared);
        for owner in [&caller.owner].into_iter().chain(shared) {
            if self.begins_at_base(owner, name).await? {
                return Ok(Some(Namespace::new(owner.as_str())));
            }
        }
        Ok(None)
    }

    /// Whether an owner's name has no adapter, and a policy that says that the base answers under it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begins_at_base(&self, owner: &Owner, name: &str) -> Result<bool, ApiError> {
        let space = Namespace::new(owner.as_str());
        let may_be = self.adapters.registry().check(&space, name, Expect::Absent).is_ok();
        if !may_be || is_hidden(name) {
            return Ok(false);
        }
        match self.store.policy(owner, name).await {
            // Written by the field's own name, whatever else a later version says there.
            Ok(stored) => Ok(stored.body["begins_at_base"] == true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(ApiError::from_stored(error)),
        }
    }

    /// The same model, or the candidate of a name that is on trial.
    fn on_trial(&self, caller: &Caller, space: &Namespace, model: Model, unit: &Unit<'_>) -> Model {
        let (name, alias) = match model.adapter {
            Some(PinnedAdapter::One(alias)) => (alias.name.to_string(), Some(alias)),
            _ => (model.name.clone(), None),
        };
        let unit = || format!("{} {unit}", caller.owner);
        let (alias, ticket) = self.learning.rollouts.route(space, &name, alias, unit);
        Model { adapter: alias.map(PinnedAdapter::One), ticket, ..model }
    }
}

/// Who keeps to one side of a trial.
#[derive(Clone, Copy, Debug)]
pub enum Unit<'u> {
    /// Completions that belong together.
    Episode(&'u str),
    /// An end user.
    User(&'u str),
    /// Of a client that names neither: what begins the same.
    Opening(&'u str),
}

impl fmt::Display for Unit<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Episode(episode) => write!(formatter, "episode {episode}"),
            Self::User(user) => write!(formatter, "user {user}"),
            Self::Opening(text) => write!(formatter, "opening {text}"),
        }
    }
}

/// What a request runs on.
#[derive(Debug)]
pub struct Model {
    /// The name that was asked for.
    pub name: String,
    /// `None` is the plain base.
    pub adapter: Option<PinnedAdapter>,
    /// The adapters of which `adapter` is the sum, if the request named several.
    pub parts: Vec<PinnedPart>,
    /// What becomes of the request is told by this, if its name is on trial.
    pub ticket: Option<Ticket>,
}

impl Model {
    /// The label of what is measured.
    pub fn label(&self) -> Option<&str> {
        self.adapter.as_ref().map(PinnedAdapter::label)
    }

    /// The name of the adapter alone, however it was asked for (`BASE:NAME` is the same); else what was asked for.
    pub fn plain_name(&self) -> &str {
        match &self.adapter {
            Some(PinnedAdapter::One(alias)) => &alias.name,
            _ => &self.name,
        }
    }

    /// The digest that responses carry.
    pub fn generation_hex(&self) -> Option<String> {
        let adapter = self.adapter.as_ref()?;
        Some(adapter.digest().to_string())
    }

    /// What separates cached prefixes: adapter, whose request it is, and the request's own salt.
    pub fn kv_key(&self, owner: &Owner, cache_salt: &str) -> [u8; 32] {
        kv_key_of(self.adapter.as_ref().map(PinnedAdapter::digest).as_ref(), owner, cache_salt)
    }
}

/// What separates cached prefixes of an adapter, or of the base: see [`Model::kv_key`].
pub fn kv_key_of(adapter: Option<&GenerationDigest>, owner: &Owner, cache_salt: &str) -> [u8; 32] {
    let salt = owned_salt(owner, cache_salt);
    match adapter {
        None => base_kv_key(&salt),
        Some(digest) => digest.kv_key(&salt),
    }
}

/// Begins the salt of a tenant. In no UTF-8 text, so that no `cache_salt` of the operator's is one of a tenant's.
const TENANT_SALT: u8 = 0xff;

/// The operator's requests share what equal salts let them share; a tenant's share nothing with others'. The id's length
/// comes before it, so that where it ends and the request's own salt begins is not a matter of their texts.
fn owned_salt(owner: &Owner, cache_salt: &str) -> Vec<u8> {
    let Owner::Tenant(id) = owner else { return cache_salt.as_bytes().to_vec() };
    let id = id.as_str().as_bytes();
    let mut salt = vec![TENANT_SALT];
    salt.extend((id.len() as u64).to_le_bytes());
    salt.extend(id);
    salt.extend(cache_salt.as_bytes());
    salt
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use pleach_store::TenantId;

    use super::*;

    #[test]
    fn no_salt_of_one_is_a_salt_of_another() {
        let tenant = |id: &str| Owner::Tenant(TenantId::parse(id).unwrap());
        let owners =
            [Owner::Shared, tenant("ten_0000000000000001"), tenant("ten_0000000000000002")];
        let prefix = |id: &str| format!("{}{id}", "\u{14}\0\0\0\0\0\0\0");
        let salts = [
            String::new(),
            "a".to_owned(),
            "ten_0000000000000001".to_owned(),
            prefix("ten_0000000000000001"),
            prefix("ten_0000000000000002a"),
        ];
        let all: HashSet<_> = owners
            .iter()
            .flat_map(|owner| salts.iter().map(move |salt| owned_salt(owner, salt)))
            .collect();
        assert_eq!(all.len(), owners.len() * salts.len());
        assert_eq!(owned_salt(&Owner::Shared, "a"), b"a", "what the operator cached stays valid");
    }
}
