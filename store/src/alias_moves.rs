//! The log of an alias: its moves, by whom and why, the last thousand of each name. It outlives the alias and the
//! generations that it names. Where an alias can be pointed back to is [`crate::alias_history`].

use sqlx::any::AnyRow;

use crate::{
    aliases::unknown, digest::GenerationDigest, error::StoreError, owner::Owner,
    page::PAGE_ROWS_MAX, row::Fields, store::Store,
};

/// One move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasMove {
    /// Its number, from 1 for each name.
    pub revision: i64,
    /// Where the alias pointed before; `None` if it was made.
    pub from: Option<GenerationDigest>,
    /// Where it pointed then; `None` if it was removed.
    pub to: Option<GenerationDigest>,
    /// When, Unix ms.
    pub moved_ms: i64,
    /// Who did it.
    pub who: String,
    /// Why.
    pub reason: String,
}

const MOVES: &str = "SELECT * FROM alias_moves WHERE owner = $1 AND name = $2 AND revision < $3 \
     ORDER BY revision DESC LIMIT $4";
/// The last one stays, for the next one's number.
const CUT: &str = "DELETE FROM alias_moves WHERE owner = $1 AND name = $2 AND revision < $3 \
     AND revision < (SELECT MAX(revision) FROM alias_moves WHERE owner = $1 AND name = $2)";

impl Store {
    /// Moves of an alias, the last one first; also of one that was removed. At most `rows_max` and
    /// [`PAGE_ROWS_MAX`] of those with a smaller number than `before`; an empty list is the end.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn alias_moves(
        &self,
        owner: &Owner,
        alias: &str,
        before: Option<i64>,
        rows_max: u32,
    ) -> Result<Vec<AliasMove>, StoreError> {
        let rows = sqlx::query(MOVES)
            .bind(owner.as_str())
            .bind(alias)
            .bind(before.unwrap_or(i64::MAX))
            .bind(i64::from(rows_max.min(PAGE_ROWS_MAX)))
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("read the log of adapter {alias:?}"), source)
            })?;
        rows.iter().map(move_in).collect()
    }

    /// Forgets moves with a number below `before`, except the last one; how many.
    ///
    /// # Errors
    /// [`StoreError::UnknownAlias`] if there is no move of that name.
    pub async fn cut_moves(
        &self,
        owner: &Owner,
        alias: &str,
        before: i64,
    ) -> Result<u64, StoreError> {
        if self.alias_moves(owner, alias, None, 1).await?.is_empty() {
            return Err(unknown(owner, alias));
        }
        let action = format!("cut the log of adapter {alias:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let cut = sqlx::query(CUT)
            .bind(owner.as_str())
            .bind(alias)
            .bind(before)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        Ok(cut.rows_affected())
    }
}

fn move_in(row: &AnyRow) -> Result<AliasMove, StoreError> {
    let fields = Fields { row, table: "alias_moves" };
    Ok(AliasMove {
        revision: fields.int("revision")?,
        from: fields.maybe_parsed("from_generation")?,
        to: fields.maybe_parsed("to_generation")?,
        moved_ms: fields.int("moved_ms")?,
        who: fields.text("who")?,
        reason: fields.text("reason")?,
    })
}
