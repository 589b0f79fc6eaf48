//! What is wanted of the learning loop, for each name of an adapter. What a policy says is the server's business.

use serde_json::Value;
use sqlx::any::AnyRow;

use crate::{
    checks::{check_name, document},
    clock::now_ms,
    error::StoreError,
    owner::Owner,
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

const KIND: &str = "policy";
/// Most policies of an owner: all of them are gone through every few seconds.
pub const POLICIES_MAX: u32 = 1000;

/// A policy.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPolicy {
    /// Whose.
    pub owner: Owner,
    /// The adapter's name, whether or not there is one by now.
    pub name: String,
    /// What it says.
    pub body: Value,
    /// Number of its last change, from 1. Goes on when a policy that was deleted comes back.
    pub revision: i64,
    /// When it was last changed, Unix ms.
    pub updated_ms: i64,
}

const PUT: &str = "INSERT INTO policies (owner, name, body, revision, updated_ms) \
     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (owner, name) \
     DO UPDATE SET body = $3, revision = $4, updated_ms = $5";
const ANY: &str = "SELECT * FROM policies WHERE owner = $1 AND name = $2";
const ONE: &str = "SELECT * FROM policies WHERE owner = $1 AND name = $2 AND body IS NOT NULL";
const COUNT: &str = "SELECT CAST(COUNT(*) AS BIGINT) FROM policies \
     WHERE owner = $1 AND body IS NOT NULL";
const ALL: &str = "SELECT * FROM policies WHERE (owner, name) > ($1, $2) AND body IS NOT NULL \
     ORDER BY owner, name LIMIT $3";
const OF: &str =
    "SELECT * FROM policies WHERE owner = $1 AND body IS NOT NULL ORDER BY name LIMIT $2";
const DELETE: &str = "UPDATE policies SET body = NULL, updated_ms = $3 \
     WHERE owner = $1 AND name = $2 AND body IS NOT NULL";

impl Store {
    /// Sets a policy. `expected` is the revision that it has to have for that; 0 is none, `None` is any.
    ///
    /// # Errors
    /// [`StoreError::PolicyChanged`] when it has another; [`StoreError::QuotaExceeded`] beyond [`POLICIES_MAX`]; when the
    /// owner does not exist, the name cannot be one, or the policy is too long.
    pub async fn put_policy(
        &self,
        owner: &Owner,
        name: &str,
        body: &Value,
        expected: Option<i64>,
    ) -> Result<StoredPolicy, StoreError> {
        check_name("name of an adapter", name)?;
        let text = document(body)?;
        let action = format!("set the policy of {name:?} of {owner}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let row = sqlx::query(ANY)
            .bind(owner.as_str())
            .bind(name)
            .fetch_optional(&mut *change)
            .await
            .map_err(failed)?;
        let (last, is_there) = match &row {
            None => (0, false),
            Some(row) => {
                let fields = Fields { row, table: "policies" };
                (fields.int("revision")?, fields.maybe_text("body")?.is_some())
            }
        };
        let found = if is_there { last } else { 0 };
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(StoreError::PolicyChanged { name: name.to_owned(), expected, found });
        }
        if !is_there {
            let count = sqlx::query_scalar::<_, i64>(COUNT)
                .bind(owner.as_str())
                .fetch_one(&mut *change)
                .await
                .map_err(failed)?;
            let (limit, wanted) = (u64::from(POLICIES_MAX), count.unsigned_abs() + 1);
            if wanted > limit {
                let (owner, quota) = (owner.clone(), "policies");
                return Err(StoreError::QuotaExceeded { owner, quota, limit, wanted });
            }
        }
        let (revision, updated_ms) = (last + 1, now_ms());
        sqlx::query(PUT)
            .bind(owner.as_str())
            .bind(name)
            .bind(text)
            .bind(revision)
            .bind(updated_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        let (owner, name, body) = (owner.clone(), name.to_owned(), body.clone());
        Ok(StoredPolicy { owner, name, body, revision, updated_ms })
    }

    /// The policy of a name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn policy(&self, owner: &Owner, name: &str) -> Result<StoredPolicy, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(name)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("read the policy of {name:?}"), source)
            })?;
        row.as_ref().map_or_else(|| Err(unknown(name)), policy_in)
    }

    /// All policies of an owner, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn policies_of(&self, owner: &Owner) -> Result<Vec<StoredPolicy>, StoreError> {
        let rows = sqlx::query(OF)
            .bind(owner.as_str())
            .bind(i64::from(POLICIES_MAX))
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("list policies", source))?;
        rows.iter().map(policy_in).collect()
    }

    /// Deletes a policy. A round that is open goes on or not, as whoever runs it decides.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_policy(&self, owner: &Owner, name: &str) -> Result<(), StoreError> {
        let deleted = sqlx::query(DELETE)
            .bind(owner.as_str())
            .bind(name)
            .bind(now_ms())
            .execute(self.database.writers())
            .await
            .map_err(|source| {
                StoreError::database(format!("delete the policy of {name:?}"), source)
            })?;
        if deleted.rows_affected() == 0 { Err(unknown(name)) } else { Ok(()) }
    }

    /// Policies of all owners, ordered by owner and name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn policies(&self, page: &Page<'_>) -> Result<Listing<StoredPolicy>, StoreError> {
        // No owner has a slash; a name may have.
        let (owner, name) = page.after().split_once('/').unwrap_or_default();
        let rows = sqlx::query(ALL)
            .bind(owner)
            .bind(name)
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("list policies", source))?;
        let policies = rows.iter().map(policy_in).collect::<Result<_, _>>()?;
        let key = |policy: &StoredPolicy| format!("{}/{}", policy.owner, policy.name);
        Ok(Listing::new(policies, page, key))
    }
}

fn policy_in(row: &AnyRow) -> Result<StoredPolicy, StoreError> {
    let fields = Fields { row, table: "policies" };
    Ok(StoredPolicy {
        owner: fields.owner("owner")?,
        name: fields.text("name")?,
        body: fields.json("body")?,
        revision: fields.int("revision")?,
        updated_ms: fields.int("updated_ms")?,
    })
}

fn unknown(name: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: name.to_owned() }
}
