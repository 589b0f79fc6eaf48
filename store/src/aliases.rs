//! Aliases: names that users send, and the generation that each points at now. [`crate::alias_change`] moves them.

use sqlx::any::AnyRow;

use crate::{
    clock::now_ms,
    digest::GenerationDigest,
    error::StoreError,
    owner::Owner,
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

/// A name, and where it points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAlias {
    /// Whose.
    pub owner: Owner,
    /// The name.
    pub name: String,
    /// Where it points: a generation of the same owner.
    pub generation: GenerationDigest,
    /// Number of its last move. Grows with each, and goes on when a name comes back.
    pub revision: i64,
    /// Whether its generation is to stay in memory.
    pub is_pinned: bool,
    /// When the name was made, Unix ms.
    pub created_ms: i64,
    /// When it was last moved or pinned, Unix ms.
    pub updated_ms: i64,
}

pub(crate) const ALIAS: &str = "SELECT * FROM aliases WHERE owner = $1 AND name = $2";
const ALIASES: &str = "SELECT * FROM aliases WHERE owner = $1 AND name > $2 ORDER BY name LIMIT $3";
const ALL_ALIASES: &str =
    "SELECT * FROM aliases WHERE (owner, name) > ($1, $2) ORDER BY owner, name LIMIT $3";
impl Store {
    /// Says whether an alias's generation is to stay in memory.
    ///
    /// # Errors
    /// [`StoreError::UnknownAlias`].
    pub async fn pin_alias(
        &self,
        owner: &Owner,
        alias: &str,
        is_pinned: bool,
    ) -> Result<(), StoreError> {
        let changed = sqlx::query(
            "UPDATE aliases SET pinned = $3, updated_ms = $4 WHERE owner = $1 AND name = $2",
        )
        .bind(owner.as_str())
        .bind(alias)
        .bind(i64::from(is_pinned))
        .bind(now_ms())
        .execute(self.database.writers())
        .await
        .map_err(|source| StoreError::database(format!("pin adapter {alias:?}"), source))?;
        if changed.rows_affected() == 0 { Err(unknown(owner, alias)) } else { Ok(()) }
    }

    /// One alias of an owner.
    ///
    /// # Errors
    /// [`StoreError::UnknownAlias`], also if another owner has it.
    pub async fn alias(&self, owner: &Owner, name: &str) -> Result<StoredAlias, StoreError> {
        let row = sqlx::query(ALIAS)
            .bind(owner.as_str())
            .bind(name)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read adapter {name:?}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(owner, name)), alias_in)
    }

    /// Aliases of an owner, ordered by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn aliases(
        &self,
        owner: &Owner,
        page: &Page<'_>,
    ) -> Result<Listing<StoredAlias>, StoreError> {
        let rows = sqlx::query(ALIASES)
            .bind(owner.as_str())
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("list adapters of {owner}"), source))?;
        let aliases = rows.iter().map(alias_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(aliases, page, |alias: &StoredAlias| alias.name.clone()))
    }

    /// Aliases of all owners, ordered by owner and name; for a server that starts.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn all_aliases(&self, page: &Page<'_>) -> Result<Listing<StoredAlias>, StoreError> {
        // No owner has a slash; a name may have.
        let (owner, name) = page.after().split_once('/').unwrap_or_default();
        let rows = sqlx::query(ALL_ALIASES)
            .bind(owner)
            .bind(name)
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("list adapters", source))?;
        let aliases = rows.iter().map(alias_in).collect::<Result<_, _>>()?;
        let key = |alias: &StoredAlias| format!("{}/{}", alias.owner, alias.name);
        Ok(Listing::new(aliases, page, key))
    }
}

pub(crate) fn alias_in(row: &AnyRow) -> Result<StoredAlias, StoreError> {
    let fields = Fields { row, table: "aliases" };
    Ok(StoredAlias {
        owner: fields.owner("owner")?,
        name: fields.text("name")?,
        generation: fields.parsed("generation")?,
        revision: fields.int("revision")?,
        is_pinned: fields.int("pinned")? != 0,
        created_ms: fields.int("created_ms")?,
        updated_ms: fields.int("updated_ms")?,
    })
}

pub(crate) fn unknown(owner: &Owner, alias: &str) -> StoreError {
    StoreError::UnknownAlias { owner: owner.clone(), alias: alias.to_owned() }
}
