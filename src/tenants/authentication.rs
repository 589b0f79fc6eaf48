//! From a request's header to its caller.
//!
//! | keys | who a request without a key is | with a key |
//! |---|---|---|
//! | none at all | the operator | the operator: clients send something even where nothing is asked for |
//! | `--api-key` | nobody | the operator, if it is that one; else as below |
//! | in the store | nobody | the key's tenant, with its scopes |
//!
//! Whether the store has keys is asked about once a second until it has: from then on it always does, as keys are revoked
//! and not deleted.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::HeaderValue;
use pleach_store::{KeyCheck, Store, StoreError};

use super::{
    Caller, Tenants,
    key_cache::{KeyDigest, KnownKey},
};
use crate::http::error::ApiError;

/// How long "there are no keys" is believed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether the store has any key.
#[derive(Debug, Default)]
pub(super) struct KeysExist {
    found: AtomicBool,
    looked: Mutex<Option<Instant>>,
}

impl KeysExist {
    /// There is one now.
    pub(super) fn found(&self) {
        self.found.store(true, Ordering::Relaxed);
    }

    async fn look(&self, store: &Store) -> Result<bool, StoreError> {
        let is_fresh = || {
            let looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY)
        };
        if !self.found.load(Ordering::Relaxed) && !is_fresh() {
            if store.has_keys().await? {
                self.found();
            }
            *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(self.found.load(Ordering::Relaxed))
    }
}

impl Tenants {
    /// Who sent a request with this `authorization` header.
    ///
    /// # Errors
    /// No key or a wrong one; [`ApiError::StoreUnavailable`] when it cannot be looked up.
    pub async fn caller(&self, authorization: Option<&HeaderValue>) -> Result<Caller, ApiError> {
        let unavailable = |error: StoreError| ApiError::from_tenants(&error);
        let operator_key = self.operator_key();
        if operator_key.is_none()
            && !self.keys_exist.look(&self.store).await.map_err(unavailable)?
        {
            return Ok(Caller::operator());
        }
        let text = bearer(authorization.ok_or(ApiError::MissingKey)?).ok_or(ApiError::WrongKey)?;
        if operator_key.as_ref().is_some_and(|key| key.matches(text)) {
            return Ok(Caller::operator());
        }
        let key = self.known_key(text).await.map_err(unavailable)?.ok_or(ApiError::WrongKey)?;
        Ok(Caller::tenant_key(key.tenant, key.id, key.scopes))
    }

    async fn known_key(&self, text: &str) -> Result<Option<KnownKey>, StoreError> {
        let (digest, now) = (KeyDigest::of(text), Instant::now());
        if let Some(known) = self.keys.get(digest, now, unix_ms()) {
            self.store.note_key_use(&known.id);
            return Ok(Some(known));
        }
        let epoch = self.keys.epoch();
        let key = match self.store.check_key(text).await? {
            KeyCheck::Accepted(key) => key,
            KeyCheck::Refused(reason) => {
                tracing::debug!(%reason, "a key was refused");
                return Ok(None);
            }
        };
        let tenant = self.take_over(self.store.tenant(&key.tenant).await?);
        let id = Arc::from(key.id);
        let known = KnownKey { id, tenant, scopes: key.scopes, expires_ms: key.expires_ms };
        self.keys.put(epoch, digest, known.clone(), now);
        Ok(Some(known))
    }
}

/// What follows `Bearer` in a header.
fn bearer(authorization: &HeaderValue) -> Option<&str> {
    let (scheme, key) = authorization.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bearer_tokens() {
        let read = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(str::to_owned);
        assert_eq!(read("Bearer key").as_deref(), Some("key"));
        assert_eq!(read("bearer   key ").as_deref(), Some("key"));
        for other in ["key", "Basic key", "Bearerkey", ""] {
            assert_eq!(read(other), None, "{other:?}");
        }
        assert_eq!(bearer(&HeaderValue::from_bytes(b"Bearer \xff").unwrap()), None);
    }
}
