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

pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), StoreError> {
    getrandom::fill(bytes).map_err(|reason| StoreError::Random { reason })
}
