//! Keys that were accepted a moment ago, so that not every request asks the database.
//!
//! Only good keys are kept, so nobody can fill it with others. What this process changes about keys and tenants ends all
//! of it at once; what another process changes is noticed when an entry is [`TTL`] old.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pleach_store::Scopes;
use sha2::{Digest as _, Sha256};

use super::LiveTenant;

/// How long a check is good.
pub(super) const TTL: Duration = Duration::from_secs(1);
/// Keys used within one [`TTL`]; further ones are checked for each request.
const ENTRIES_MAX: usize = 16_384;

/// A key that was accepted.
#[derive(Clone, Debug)]
pub(super) struct KnownKey {
    pub(super) id: Arc<str>,
    pub(super) tenant: Arc<LiveTenant>,
    pub(super) scopes: Scopes,
    /// From when on it is refused, Unix ms.
    pub(super) expires_ms: Option<i64>,
}

/// The SHA-256 of a key's text: the text itself is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeyDigest([u8; 32]);

impl KeyDigest {
    pub(super) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(hidden)")
    }
}

/// Which changes a check may know of: see [`KeyCache::epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KeyCache(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    epoch: u64,
    /// With the time of the check.
    keys: HashMap<KeyDigest, (Instant, KnownKey)>,
}

impl KeyCache {
    /// A key that was accepted within [`TTL`] and has not expired since.
    pub(super) fn get(&self, key: KeyDigest, now: Instant, now_ms: i64) -> Option<KnownKey> {
        let kept = self.lock();
        let (checked, known) = kept.keys.get(&key)?;
        let is_good = now.saturating_duration_since(*checked) < TTL
            && known.expires_ms.is_none_or(|expires_ms| expires_ms > now_ms);
        is_good.then(|| known.clone())
    }

    /// To be taken before the store is asked, and given to [`Self::put`] with the answer.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.lock().epoch)
    }

    /// Keeps the answer of a check that began at `now`, unless something was changed since `epoch`: the answer may be the
    /// one from before.
    pub(super) fn put(&self, epoch: Epoch, key: KeyDigest, known: KnownKey, now: Instant) {
        let mut kept = self.lock();
        if Epoch(kept.epoch) != epoch {
            return;
        }
        if kept.keys.len() >= ENTRIES_MAX {
            kept.keys.retain(|_, (checked, _)| now.saturating_duration_since(*checked) < TTL);
        }
        if kept.keys.len() < ENTRIES_MAX {
            kept.keys.insert(key, (now, known));
        }
    }

    /// Something about keys or tenants has changed: every key is to be checked again.
    pub(super) fn clear(&self) {
        let mut kept = self.lock();
        kept.epoch += 1;
        kept.keys.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pleach_store::{Tenant, TenantId, TenantSettings};

    use super::*;
    use crate::telemetry::{ServerFacts, Telemetry};

    fn known(expires_ms: Option<i64>) -> KnownKey {
        let facts = ServerFacts {
            model_name: "m".to_owned(),
            context: 8,
            kv_blocks: 1,
            prefix_cache: false,
        };
        let tenant = Tenant {
            id: TenantId::parse("ten_0000000000000001").unwrap(),
            settings: TenantSettings::named("t"),
            created_ms: 0,
            disabled_ms: None,
        };
        let series = Telemetry::new(&facts).unwrap().tenant(Some("t"));
        let tenant = Arc::new(LiveTenant::new(tenant, series, 1));
        KnownKey { id: "key".into(), tenant, scopes: Scopes::default(), expires_ms }
    }

    #[test]
    fn an_answer_is_good_for_its_time_and_until_the_key_expires() {
        let (cache, now) = (KeyCache::default(), Instant::now());
        let [one, two] = ["one", "two"].map(KeyDigest::of);
        assert!(cache.get(one, now, 0).is_none());
        cache.put(cache.epoch(), one, known(None), now);
        cache.put(cache.epoch(), two, known(Some(100)), now);
        assert!(cache.get(one, now + TTL.mul_f32(0.9), 0).is_some());
        assert!(cache.get(one, now + TTL, 0).is_none());
        assert!(cache.get(two, now, 99).is_some() && cache.get(two, now, 100).is_none());
    }

    #[test]
    fn a_change_ends_all_answers_also_those_under_way() {
        let (cache, now) = (KeyCache::default(), Instant::now());
        let key = KeyDigest::of("one");
        cache.put(cache.epoch(), key, known(None), now);
        let under_way = cache.epoch();
        cache.clear();
        assert!(cache.get(key, now, 0).is_none());
        cache.put(under_way, key, known(None), now);
        assert!(cache.get(key, now, 0).is_none());
        cache.put(cache.epoch(), key, known(None), now);
        assert!(cache.get(key, now, 0).is_some());
    }

    #[test]
    fn it_is_bounded() {
        let (cache, now) = (KeyCache::default(), Instant::now());
        let known = known(None);
        for number in 0..ENTRIES_MAX + 10 {
            cache.put(cache.epoch(), KeyDigest::of(&number.to_string()), known.clone(), now);
        }
        assert_eq!(cache.lock().keys.len(), ENTRIES_MAX);
        cache.put(cache.epoch(), KeyDigest::of("late"), known, now + TTL);
        assert_eq!(cache.lock().keys.len(), 1);
    }
}
