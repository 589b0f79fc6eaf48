//! Tenants and their keys, for administrators.

use std::num::NonZeroU32;

use pleach_store::{ApiKey, Scope, Scopes, Tenant};
use serde::Serialize;
use serde_json::{Map, Value};

use super::fields::{Fields, as_integer, as_list, as_string};
use crate::{
    http::error::ApiError,
    tenants::{KEEP_DAYS_MAX, PRIORITY_MAX, Quota, TenantChange},
};

/// One page of a list.
#[derive(Clone, Debug, Serialize)]
pub struct CardList<T> {
    /// Always `list`.
    pub object: &'static str,
    /// By id.
    pub data: Vec<T>,
    /// Whether there is another page.
    pub has_more: bool,
    /// What `after` asks for it.
    pub next: Option<String>,
}

/// A tenant.
#[derive(Clone, Debug, Serialize)]
pub struct TenantCard {
    /// Its id.
    pub id: String,
    /// Always `tenant`.
    pub object: &'static str,
    /// For people.
    pub name: String,
    /// Share among the tenants of the same priority that wait.
    pub weight: u32,
    /// Higher is served first.
    pub priority: i32,
    /// Limits by name; `null` is none.
    pub quotas: Map<String, Value>,
    /// Whether completions are kept that did not ask for it.
    pub capture: bool,
    /// Days that completions are kept.
    pub keep_days: u32,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Since when none of its keys is accepted.
    pub disabled: Option<i64>,
}

/// A key, without its secret.
#[derive(Clone, Debug, Serialize)]
pub struct ApiKeyCard {
    /// Its id, the middle part of its text.
    pub id: String,
    /// Always `api_key`.
    pub object: &'static str,
    /// Whose key.
    pub tenant: String,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<&'static str>,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// From when on it is refused.
    pub expires: Option<i64>,
    /// Since when it is refused.
    pub revoked: Option<i64>,
    /// When it was last used, about half a minute behind.
    pub last_used: Option<i64>,
}

/// A key that was just made.
#[derive(Clone, Debug, Serialize)]
pub struct NewApiKeyCard {
    /// The key.
    #[serde(flatten)]
    pub card: ApiKeyCard,
    /// What clients send. Shown this once.
    pub key: String,
}

/// The answer to a revocation.
#[derive(Clone, Debug, Serialize)]
pub struct ApiKeyRevoked {
    /// The key's id.
    pub id: String,
    /// Always `api_key`.
    pub object: &'static str,
    /// Always true.
    pub revoked: bool,
}

/// What a key is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyRequest {
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// From when on it is refused, Unix ms.
    pub expires_ms: Option<i64>,
}

impl From<Tenant> for TenantCard {
    fn from(tenant: Tenant) -> Self {
        let settings = tenant.settings;
        let limit =
            |quota: Quota| (quota.name().to_owned(), quota.limit_in(&settings.quotas).into());
        Self {
            id: tenant.id.to_string(),
            object: "tenant",
            weight: settings.weight.get(),
            priority: settings.priority,
            quotas: Quota::ALL.into_iter().map(limit).collect(),
            name: settings.name,
            capture: settings.capture,
            keep_days: settings.keep_days,
            created: seconds(tenant.created_ms),
            disabled: tenant.disabled_ms.map(seconds),
        }
    }
}

impl From<ApiKey> for ApiKeyCard {
    fn from(key: ApiKey) -> Self {
        let scopes = Scope::ALL.into_iter().filter(|&scope| key.scopes.contains(scope));
        Self {
            id: key.id,
            object: "api_key",
            tenant: key.tenant.to_string(),
            name: key.name,
            scopes: scopes.map(Scope::name).collect(),
            created: seconds(key.created_ms),
            expires: key.expires_ms.map(seconds),
            revoked: key.revoked_ms.map(seconds),
            last_used: key.last_used_ms.map(seconds),
        }
    }
}

/// Reads what is to be changed about a tenant. A field that is not there, or `null`, stays as it is; a quota of `null` is
/// no limit. A field that there is not is refused: a limit with a slip in its name would be none.
///
/// # Errors
/// The first field of wrong name, type or range.
pub fn read_change(fields: &Fields) -> Result<TenantChange, ApiError> {
    fields.only(&["name", "weight", "priority", "quotas", "capture", "keep_days"])?;
    let mut change = TenantChange {
        name: fields.string("name")?.map(str::to_owned),
        weight: fields.count("weight", 1..=u32::MAX)?.and_then(NonZeroU32::new),
        // The bounds are those of a u8, so the conversion cannot fail.
        priority: fields
            .count("priority", 0..=u32::from(PRIORITY_MAX))?
            .and_then(|priority| u8::try_from(priority).ok()),
        quotas: Vec::new(),
        capture: fields.boolean("capture")?,
        keep_days: fields.count("keep_days", 1..=KEEP_DAYS_MAX)?,
    };
    for (name, limit) in fields.object("quotas")?.into_iter().flatten() {
        let param = format!("quotas.{name}");
        let Some(quota) = Quota::named(name) else {
            return Err(ApiError::invalid(param, "there is no such quota"));
        };
        let limit = if limit.is_null() {
            None
        } else {
            Some(as_integer(limit, &param, 0..=i64::MAX)?.unsigned_abs())
        };
        change.quotas.push((quota, limit));
    }
    Ok(change)
}

/// Reads what a new key is to be; `now_ms` is the time, Unix ms.
///
/// # Errors
/// The first field of wrong name, type or range.
pub fn read_key(fields: &Fields, now_ms: i64) -> Result<ApiKeyRequest, ApiError> {
    const SCOPES: &str = "scopes";
    const EXPIRES: &str = "expires";
    fields.only(&["name", SCOPES, EXPIRES])?;
    let scopes = match fields.get(SCOPES) {
        None => Scopes::from_iter([Scope::Infer]),
        Some(list) => as_list(list, SCOPES)?
            .iter()
            .map(|name| as_string(name, SCOPES).and_then(scope_named))
            .collect::<Result<_, _>>()?,
    };
    if scopes.is_empty() {
        return Err(ApiError::invalid(SCOPES, "a key without scopes may do nothing"));
    }
    let now = now_ms / 1000;
    let expires = fields.integer(EXPIRES, now + 1..=i64::MAX / 1000)?;
    Ok(ApiKeyRequest {
        name: as_string(fields.require("name")?, "name")?.to_owned(),
        scopes,
        expires_ms: expires.map(|seconds| seconds * 1000),
    })
}

fn scope_named(name: &str) -> Result<Scope, ApiError> {
    let found = Scope::ALL.into_iter().find(|scope| scope.name() == name);
    found.ok_or_else(|| {
        ApiError::invalid("scopes", format!("{name:?} is none of infer, feedback, train, admin"))
    })
}

fn seconds(ms: i64) -> i64 {
    ms / 1000
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(body: &Value) -> Fields {
        Fields::parse(body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_change_has_what_is_named_and_nothing_else() {
        let change = |body: Value| read_change(&fields(&body));
        assert_eq!(change(json!({"name": null, "quotas": null})).unwrap(), TenantChange::default());
        let all = change(json!({
            "name": "n", "weight": 3, "priority": 255,
            "quotas": {"requests_per_minute": 0, "adapters": null},
            "capture": true, "keep_days": 7,
        }));
        let quotas = vec![(Quota::RequestsPerMinute, Some(0)), (Quota::Adapters, None)];
        let expected = TenantChange {
            name: Some("n".to_owned()),
            weight: NonZeroU32::new(3),
            priority: Some(255),
            quotas,
            capture: Some(true),
            keep_days: Some(7),
        };
        assert_eq!(all.unwrap(), expected);
        for (body, named) in [
            (json!({"wieght": 3}), "wieght"),
            (json!({"weight": 0}), "weight"),
            (json!({"priority": 256}), "priority"),
            (json!({"priority": -1}), "priority"),
            (json!({"quotas": {"request_per_minute": 3}}), "quotas.request_per_minute"),
            (json!({"quotas": {"adapters": -1}}), "quotas.adapters"),
            (json!({"quotas": {"adapters": "many"}}), "quotas.adapters"),
            (json!({"quotas": []}), "quotas"),
            (json!({"keep_days": 0}), "keep_days"),
            (json!({"capture": "yes"}), "capture"),
        ] {
            let error = change(body).unwrap_err().to_string();
            assert!(error.contains(&format!("'{named}'")), "{error}");
        }
    }

    #[test]
    fn a_key_has_a_name_scopes_and_a_time_to_come() {
        let key = |body: Value| read_key(&fields(&body), 5_000_000);
        let made =
            key(json!({"name": "n", "scopes": ["train", "infer"], "expires": 5001})).unwrap();
        assert_eq!(
            (made.scopes.to_string().as_str(), made.expires_ms),
            ("infer,train", Some(5_001_000))
        );
        let made = key(json!({"name": "n"})).unwrap();
        assert_eq!((made.scopes.to_string().as_str(), made.expires_ms), ("infer", None));
        for (body, named) in [
            (json!({}), "name"),
            (json!({"name": "n", "scopes": []}), "scopes"),
            (json!({"name": "n", "scopes": ["root"]}), "scopes"),
            (json!({"name": "n", "scopes": "infer"}), "scopes"),
            (json!({"name": "n", "expires": 5000}), "expires"),
            (json!({"name": "n", "expires_ms": 1}), "expires_ms"),
        ] {
            let error = key(body).unwrap_err().to_string();
            assert!(error.contains(&format!("'{named}'")), "{error}");
        }
    }
}
