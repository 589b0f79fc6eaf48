//! Keys: made, checked, listed, revoked. A key is shown once and stored as a digest.

use sqlx::{Row as _, any::AnyRow};

use crate::{
    checks::check_name,
    clock::now_ms,
    digest::{from_hex, to_hex},
    error::StoreError,
    key_text::ApiKeyText,
    owner::{Owner, TenantId},
    page::{Listing, Page},
    row::Fields,
    scopes::Scopes,
    store::Store,
};

/// What a key is made of.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Whose key.
    pub tenant: TenantId,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// From when on it is refused, Unix ms; `None` is never.
    pub expires_ms: Option<i64>,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id: 16 hex digits, the middle part of its text.
    pub id: String,
    /// Whose key.
    pub tenant: TenantId,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// When it was made, Unix ms.
    pub created_ms: i64,
    /// From when on it is refused, Unix ms.
    pub expires_ms: Option<i64>,
    /// Since when it is refused, Unix ms.
    pub revoked_ms: Option<i64>,
    /// When it was last used, Unix ms; behind by as long as [`Store::flush_key_uses`] was not called.
    pub last_used_ms: Option<i64>,
}

/// What a text in place of a key turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCheck {
    /// A good key.
    Accepted(ApiKey),
    /// Something else. Tell the client no more than that: the reason is for the log.
    Refused(KeyRefused),
}

/// Why a key is not accepted.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyRefused {
    /// It has not the form of a key.
    #[error("malformed key")]
    Malformed,
    /// There is no key of that id, or its secret is another.
    #[error("unknown key")]
    Unknown,
    /// It was revoked.
    #[error("revoked key")]
    Revoked,
    /// Its time is over.
    #[error("expired key")]
    Expired,
    /// Its tenant is disabled.
    #[error("key of a disabled tenant")]
    TenantDisabled,
}

const NEW_KEY: &str = "INSERT INTO api_keys (id, tenant, name, secret_sha256, scopes, created_ms, \
     expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)";
const KEY: &str = "SELECT api_keys.*, tenants.disabled_ms FROM api_keys \
     JOIN tenants ON tenants.id = api_keys.tenant WHERE api_keys.id = $1";
const KEYS: &str = "SELECT * FROM api_keys WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";

impl Store {
    /// Makes a key. Its text cannot be had again.
    ///
    /// # Errors
    /// When there is no such tenant, or the name cannot be one.
    pub async fn create_key(&self, key: NewApiKey) -> Result<(ApiKey, ApiKeyText), StoreError> {
        check_name("name of a key", &key.name)?;
        let action = format!("make a key of tenant {}", key.tenant);
        let failed = |source| StoreError::database(&action, source);
        let text = ApiKeyText::random()?;
        let created_ms = now_ms();
        let mut change =
            self.database.begin_for(&Owner::Tenant(key.tenant.clone()), &action).await?;
        sqlx::query(NEW_KEY)
            .bind(text.id())
            .bind(key.tenant.as_str())
            .bind(&key.name)
            .bind(to_hex(&text.secret_sha256()))
            .bind(key.scopes.to_string())
            .bind(created_ms)
            .bind(key.expires_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        let NewApiKey { tenant, name, scopes, expires_ms } = key;
        let id = text.id().to_owned();
        let (revoked_ms, last_used_ms) = (None, None);
        let key =
            ApiKey { id, tenant, name, scopes, created_ms, expires_ms, revoked_ms, last_used_ms };
        Ok((key, text))
    }

    /// Whose key a text is. The comparison takes as long for a wrong secret as for a right one, and there is one, too,
    /// when no key has that id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn check_key(&self, text: &str) -> Result<KeyCheck, StoreError> {
        let refused = |reason| Ok(KeyCheck::Refused(reason));
        let Some(text) = ApiKeyText::parse(text) else { return refused(KeyRefused::Malformed) };
        let failed = |source| StoreError::database(format!("look up key {}", text.id()), source);
        let row = sqlx::query(KEY)
            .bind(text.id())
            .fetch_optional(self.database.readers())
            .await
            .map_err(failed)?;
        let stored = row.as_ref().map(secret_sha256_in).transpose()?;
        let is_secret = text.is_secret_of(&stored.unwrap_or_default());
        let Some(row) = row.filter(|_| is_secret) else { return refused(KeyRefused::Unknown) };

        let key = key_in(&row)?;
        let now_ms = now_ms();
        if key.revoked_ms.is_some() {
            return refused(KeyRefused::Revoked);
        }
        if key.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return refused(KeyRefused::Expired);
        }
        let disabled_ms: Option<i64> = row.try_get("disabled_ms").map_err(failed)?;
        if disabled_ms.is_some() {
            return refused(KeyRefused::TenantDisabled);
        }
        self.key_uses.note(&key.id, now_ms);
        Ok(KeyCheck::Accepted(key))
    }

    /// Revokes a key for good. To revoke it twice is no error.
    ///
    /// # Errors
    /// When the tenant has no such key.
    pub async fn revoke_key(&self, tenant: &TenantId, id: &str) -> Result<(), StoreError> {
        let changed = sqlx::query(
            "UPDATE api_keys SET revoked_ms = COALESCE(revoked_ms, $3) WHERE tenant = $1 AND id = $2",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(now_ms())
        .execute(self.database.writers())
        .await
        .map_err(|source| StoreError::database(format!("revoke key {id:?}"), source))?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::UnknownKey { tenant: tenant.clone(), id: id.to_owned() });
        }
        Ok(())
    }

    /// The keys of a tenant, ordered by id; revoked and expired ones too.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn keys(
        &self,
        tenant: &TenantId,
        page: &Page<'_>,
    ) -> Result<Listing<ApiKey>, StoreError> {
        let rows = sqlx::query(KEYS)
            .bind(tenant.as_str())
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("list keys of {tenant}"), source))?;
        let keys = rows.iter().map(key_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(keys, page, |key: &ApiKey| key.id.clone()))
    }

    /// Whether there is any key, of anybody: without one, a server that is open to others would be open to all.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_keys(&self) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT id FROM api_keys LIMIT 1")
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database("look for keys", source))?;
        Ok(row.is_some())
    }
}

fn key_in(row: &AnyRow) -> Result<ApiKey, StoreError> {
    let fields = Fields { row, table: "api_keys" };
    let tenant = fields.text("tenant")?;
    let scopes = Scopes::parse(&fields.text("scopes")?)
        .map_err(|word| fields.corrupt("scopes", format!("{word:?} is no scope")))?;
    Ok(ApiKey {
        id: fields.text("id")?,
        tenant: TenantId::parse(&tenant)
            .ok_or_else(|| fields.corrupt("tenant", "it is no id of a tenant"))?,
        name: fields.text("name")?,
        scopes,
        created_ms: fields.int("created_ms")?,
        expires_ms: fields.maybe_int("expires_ms")?,
        revoked_ms: fields.maybe_int("revoked_ms")?,
        last_used_ms: fields.maybe_int("last_used_ms")?,
    })
}

fn secret_sha256_in(row: &AnyRow) -> Result<[u8; 32], StoreError> {
    let fields = Fields { row, table: "api_keys" };
    from_hex(&fields.text("secret_sha256")?)
        .ok_or_else(|| fields.corrupt("secret_sha256", "it is no digest"))
}
