//! Moving aliases: by compare-and-swap, each move with an entry in the history, both in one transaction.

use std::fmt;

use sqlx::{Any, Row as _, Transaction};

use crate::{
    alias_history::{self, History},
    aliases::{ALIAS, StoredAlias, alias_in, unknown},
    checks::{NAME_BYTES_MAX, NOTE_BYTES_MAX, check_name, check_text},
    clock::now_ms,
    digest::GenerationDigest,
    error::StoreError,
    generations,
    owner::Owner,
    registration::quota_of,
    store::Store,
};

/// Where the caller of a move thinks that the alias points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Wherever it points, or nowhere.
    Any,
    /// There is no such alias.
    Absent,
    /// At this generation.
    Generation(GenerationDigest),
}

impl Expected {
    fn is(self, found: Option<GenerationDigest>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Generation(expected) => found == Some(expected),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::Absent => f.write_str("absent"),
            Self::Generation(digest) => write!(f, "generation {digest}"),
        }
    }
}

/// A change of an alias.
#[derive(Clone, Copy, Debug)]
pub struct AliasChange<'a> {
    /// The alias.
    pub alias: &'a str,
    /// Where it has to point for the change to happen.
    pub expected: Expected,
    /// Who does it, for the history: at most 256 bytes.
    pub who: &'a str,
    /// Why, for the history: may be empty, at most 4096 bytes.
    pub reason: &'a str,
}

impl AliasChange<'_> {
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        check_name("name of an adapter", self.alias)?;
        check_text("author of a move", self.who, NAME_BYTES_MAX)?;
        check_text("reason of a move", self.reason, NOTE_BYTES_MAX)
    }
}

/// How far back to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollBack {
    /// To the last generation of the alias's history.
    Previous,
    /// To this generation of its history.
    Generation(GenerationDigest),
}

/// What a move does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// On to a generation; makes the alias if there is none.
    To(GenerationDigest),
    /// Back to a generation of its history.
    BackTo(GenerationDigest),
    /// The alias goes, with its history.
    Away,
}

impl Step {
    fn target(self) -> Option<GenerationDigest> {
        match self {
            Self::To(target) | Self::BackTo(target) => Some(target),
            Self::Away => None,
        }
    }
}

/// Moves of one name that the log keeps.
const MOVES_MAX: i64 = 1000;

const NEW_ALIAS: &str = "INSERT INTO aliases (owner, name, generation, revision, pinned, \
     created_ms, updated_ms) VALUES ($1, $2, $3, $4, 0, $5, $5)";
const NEW_MOVE: &str = "INSERT INTO alias_moves (owner, name, revision, from_generation, \
     to_generation, moved_ms, who, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const FORGET_OLD_MOVES: &str =
    "DELETE FROM alias_moves WHERE owner = $1 AND name = $2 AND revision <= $3";
const LAST_REVISION: &str = "SELECT CAST(COALESCE(MAX(revision), 0) AS BIGINT) AS revision \
     FROM alias_moves WHERE owner = $1 AND name = $2";

/// Aliases that begin so are made by the server for itself, and count for no quota.
const UNCOUNTED: &str = "candidate:";
const N_ALIASES: &str =
    "SELECT COUNT(*) AS n FROM aliases WHERE owner = $1 AND name NOT LIKE 'candidate:%'";

impl Store {
    /// Points an alias at a generation of its owner; makes the alias if it does not exist. An alias that points there
    /// already is left as it is.
    ///
    /// # Errors
    /// [`StoreError::AliasMoved`] if it is not where `change.expected` says; when owner or generation do not exist, or
    /// a new alias would exceed the quota.
    pub async fn move_alias(
        &self,
        owner: &Owner,
        change: &AliasChange<'_>,
        to: &GenerationDigest,
    ) -> Result<StoredAlias, StoreError> {
        let moved = self.change_alias(owner, change, Step::To(*to)).await?;
        moved.ok_or_else(|| unknown(owner, change.alias))
    }

    /// Removes an alias and its history. The log of its moves and its generations stay.
    ///
    /// # Errors
    /// [`StoreError::AliasMoved`] if it is not where `change.expected` says, or [`StoreError::UnknownAlias`].
    pub async fn delete_alias(
        &self,
        owner: &Owner,
        change: &AliasChange<'_>,
    ) -> Result<(), StoreError> {
        self.change_alias(owner, change, Step::Away).await.map(drop)
    }

    /// Points an existing alias back at a generation of its history. That turns like a wheel: rolling back again goes
    /// further back, and what was left is the last to come.
    ///
    /// # Errors
    /// [`StoreError::AliasMoved`], [`StoreError::UnknownAlias`], [`StoreError::NoEarlierGeneration`] or
    /// [`StoreError::NotInHistory`].
    pub async fn roll_back(
        &self,
        owner: &Owner,
        change: &AliasChange<'_>,
        to: RollBack,
    ) -> Result<StoredAlias, StoreError> {
        change.check()?;
        let action = format!("roll back adapter {:?} of {owner}", change.alias);
        let failed = |source| StoreError::database(&action, source);
        let mut transaction = self.database.begin_for(owner, &action).await?;
        let alias = alias_for(&mut transaction, owner, change.alias).await?;
        let alias = alias.ok_or_else(|| unknown(owner, change.alias))?;
        let History(history) = alias_history::read(&mut transaction, owner, change.alias).await?;
        let name = || change.alias.to_owned();
        let target = match to {
            RollBack::Previous => {
                *history.first().ok_or_else(|| StoreError::NoEarlierGeneration { alias: name() })?
            }
            RollBack::Generation(to) if to == alias.generation || history.contains(&to) => to,
            RollBack::Generation(digest) => {
                return Err(StoreError::NotInHistory { alias: name(), digest });
            }
        };
        let moved = apply_move(&mut transaction, owner, change, Step::BackTo(target)).await?;
        transaction.commit().await.map_err(failed)?;
        moved.ok_or_else(|| unknown(owner, change.alias))
    }

    async fn change_alias(
        &self,
        owner: &Owner,
        change: &AliasChange<'_>,
        step: Step,
    ) -> Result<Option<StoredAlias>, StoreError> {
        change.check()?;
        let action = format!("move adapter {:?} of {owner}", change.alias);
        let mut transaction = self.database.begin_for(owner, &action).await?;
        let moved = apply_move(&mut transaction, owner, change, step).await?;
        transaction.commit().await.map_err(|source| StoreError::database(&action, source))?;
        Ok(moved)
    }
}

/// Moves, makes or removes an alias within a transaction that holds the owner's row; the alias as it is then.
pub(crate) async fn apply_move(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
    change: &AliasChange<'_>,
    step: Step,
) -> Result<Option<StoredAlias>, StoreError> {
    let to = step.target();
    let AliasChange { alias, expected, who, reason } = *change;
    let action = format!("move adapter {alias:?} of {owner}");
    let failed = |source| StoreError::database(&action, source);
    let current = alias_for(transaction, owner, alias).await?;
    let found = current.as_ref().map(|current| current.generation);
    if !expected.is(found) {
        return Err(StoreError::AliasMoved { alias: alias.to_owned(), expected, found });
    }
    if found == to {
        // Nothing to remove is an error, nothing to move is not.
        return current.map(Some).ok_or_else(|| unknown(owner, alias));
    }
    let revision = 1 + last_revision(transaction, owner, alias).await?;
    let moved_ms = now_ms();
    // Before the alias: it has rows that point at it.
    let mut history = alias_history::read(transaction, owner, alias).await?;
    alias_history::write(transaction, owner, alias, &History::default()).await?;
    match (&current, to) {
        (Some(_), None) => sqlx::query("DELETE FROM aliases WHERE owner = $1 AND name = $2")
            .bind(owner.as_str())
            .bind(alias),
        (Some(_), Some(to)) => {
            check_generation(transaction, owner, &to).await?;
            sqlx::query(
                "UPDATE aliases SET generation = $3, revision = $4, updated_ms = $5 \
                 WHERE owner = $1 AND name = $2",
            )
            .bind(owner.as_str())
            .bind(alias)
            .bind(to.to_string())
            .bind(revision)
            .bind(moved_ms)
        }
        (None, to) => {
            let to = to.expect("an alias that is absent and stays so was returned above");
            check_generation(transaction, owner, &to).await?;
            if !alias.starts_with(UNCOUNTED) {
                check_alias_quota(transaction, owner).await?;
            }
            sqlx::query(NEW_ALIAS)
                .bind(owner.as_str())
                .bind(alias)
                .bind(to.to_string())
                .bind(revision)
                .bind(moved_ms)
        }
    }
    .execute(&mut **transaction)
    .await
    .map_err(failed)?;
    sqlx::query(NEW_MOVE)
        .bind(owner.as_str())
        .bind(alias)
        .bind(revision)
        .bind(found.map(|digest| digest.to_string()))
        .bind(to.map(|digest| digest.to_string()))
        .bind(moved_ms)
        .bind(who)
        .bind(reason)
        .execute(&mut **transaction)
        .await
        .map_err(failed)?;
    sqlx::query(FORGET_OLD_MOVES)
        .bind(owner.as_str())
        .bind(alias)
        .bind(revision.saturating_sub(MOVES_MAX))
        .execute(&mut **transaction)
        .await
        .map_err(failed)?;
    if let (Some(left), Some(to)) = (found, to) {
        match step {
            Step::BackTo(_) => history.turn(left, &to),
            Step::To(_) | Step::Away => history.move_on(left, &to),
        }
        alias_history::write(transaction, owner, alias, &history).await?;
    }
    alias_for(transaction, owner, alias).await
}

async fn alias_for(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
    alias: &str,
) -> Result<Option<StoredAlias>, StoreError> {
    let row = sqlx::query(ALIAS)
        .bind(owner.as_str())
        .bind(alias)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(|source| StoreError::database(format!("read adapter {alias:?}"), source))?;
    row.as_ref().map(alias_in).transpose()
}

async fn last_revision(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
    alias: &str,
) -> Result<i64, StoreError> {
    let failed =
        |source| StoreError::database(format!("read the history of adapter {alias:?}"), source);
    let row = sqlx::query(LAST_REVISION)
        .bind(owner.as_str())
        .bind(alias)
        .fetch_one(&mut **transaction)
        .await
        .map_err(failed)?;
    row.try_get("revision").map_err(failed)
}

async fn check_generation(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
    digest: &GenerationDigest,
) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT 1 AS there FROM generations WHERE owner = $1 AND digest = $2")
        .bind(owner.as_str())
        .bind(digest.to_string())
        .fetch_optional(&mut **transaction)
        .await
        .map_err(|source| StoreError::database(format!("read generation {digest}"), source))?;
    row.map(drop).ok_or_else(|| generations::unknown(owner, digest))
}

/// Whether one more alias is allowed.
async fn check_alias_quota(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::database(format!("count adapters of {owner}"), source);
    let Some(limit) = quota_of(transaction, owner, "adapters").await? else { return Ok(()) };
    let row = sqlx::query(N_ALIASES)
        .bind(owner.as_str())
        .fetch_one(&mut **transaction)
        .await
        .map_err(failed)?;
    let n: i64 = row.try_get("n").map_err(failed)?;
    let wanted = u64::try_from(n).unwrap_or_default().saturating_add(1);
    if wanted > limit {
        let (owner, quota) = (owner.clone(), "adapters");
        return Err(StoreError::QuotaExceeded { owner, quota, limit, wanted });
    }
    Ok(())
}
