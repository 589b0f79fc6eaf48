//! To whom adapters belong.

use std::fmt;

use crate::{digest::to_hex, error::StoreError};

/// The row of `tenants` that owns what belongs to nobody.
const SHARED: &str = "shared";
const TENANT_PREFIX: &str = "ten_";
/// Random bytes of an id: unique by chance, secret to nobody.
const ID_BYTES: usize = 8;

/// Names one tenant: `ten_` and 16 hex digits. Made by the store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(String);

impl TenantId {
    /// A new one.
    pub(crate) fn random() -> Result<Self, StoreError> {
        Ok(Self(format!("{TENANT_PREFIX}{}", random_id()?)))
    }

    /// The id in a text that somebody typed or sent; `None` if it is none, whether or not such a tenant exists.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(TENANT_PREFIX)?;
        crate::digest::from_hex::<ID_BYTES>(hex).map(|_| Self(text.to_owned()))
    }

    /// As it is shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

/// To whom a generation or an alias belongs. The same content or name under two owners is two rows, so that nobody
/// learns what another has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Every tenant may use it.
    Shared,
    /// Only this one may.
    Tenant(TenantId),
}

impl Owner {
    /// As rows have it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Shared => SHARED,
            Self::Tenant(id) => id.as_str(),
        }
    }

    /// The owner in a row.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == SHARED { Some(Self::Shared) } else { TenantId::parse(text).map(Self::Tenant) }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<TenantId> for Owner {
    fn from(id: TenantId) -> Self {
        Self::Tenant(id)
    }
}

/// 16 hex digits of the system's generator.
pub(crate) fn random_id() -> Result<String, StoreError> {
    let mut bytes = [0; ID_BYTES];
    fill_random(&mut bytes)?;
    Ok(to_hex(&bytes))
}

/// Digits of the time in [`time_id`]: milliseconds up to the year 10889.
const TIME_DIGITS: usize = 12;
const TIME_ID_RANDOM_BYTES: usize = 10;

/// `prefix` and 32 hex digits: the time, then random ones. Of two ids the later one is the larger text, so lists in the
/// order of ids are in the order of time, and a page can be asked for that begins after an id which is there no more.
///
/// # Errors
/// When the system gives no random bytes.
pub fn time_id(prefix: &str) -> Result<String, StoreError> {
    let mut bytes = [0; TIME_ID_RANDOM_BYTES];
    fill_random(&mut bytes)?;
    Ok(format!("{prefix}{:0TIME_DIGITS$x}{}", crate::clock::now_ms().max(0), to_hex(&bytes)))
}

pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), StoreError> {
    getrandom::fill(bytes).map_err(|reason| StoreError::Random { reason })
}
