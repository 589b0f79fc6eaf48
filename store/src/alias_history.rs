//! Where an alias can be pointed back to. Unlike [`crate::alias_moves`] this is no log: it has each earlier generation
//! once, only the last few, and goes with its alias. What is in it is kept from being retired.

use sqlx::{Any, Transaction};

use crate::{digest::GenerationDigest, error::StoreError, owner::Owner, row::Fields, store::Store};

/// Most earlier generations that an alias keeps.
pub const HISTORY_MAX: usize = 7;

const HISTORY: &str =
    "SELECT generation FROM alias_history WHERE owner = $1 AND name = $2 ORDER BY position";
const CLEAR: &str = "DELETE FROM alias_history WHERE owner = $1 AND name = $2";
const ADD: &str =
    "INSERT INTO alias_history (owner, name, position, generation) VALUES ($1, $2, $3, $4)";

/// Earlier generations of one alias, the last first, each once; never the present one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History(pub(crate) Vec<GenerationDigest>);

impl History {
    /// The alias moves on from `left` to `to`.
    pub(crate) fn move_on(&mut self, left: GenerationDigest, to: &GenerationDigest) {
        self.0.retain(|earlier| earlier != to);
        self.0.insert(0, left);
        self.0.truncate(HISTORY_MAX);
    }

    /// The alias goes back from `left` to `to`. The list turns like a wheel: everything that came after `to`, `left`
    /// first, is now what comes last.
    pub(crate) fn turn(&mut self, left: GenerationDigest, to: &GenerationDigest) {
        self.0.insert(0, left);
        if let Some(place) = self.0.iter().position(|earlier| earlier == to) {
            self.0.rotate_left(place);
            self.0.remove(0);
        }
    }
}

impl Store {
    /// Where an alias can be pointed back to, the last first; empty for an unknown one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn alias_history(
        &self,
        owner: &Owner,
        alias: &str,
    ) -> Result<Vec<GenerationDigest>, StoreError> {
        let rows = sqlx::query(HISTORY)
            .bind(owner.as_str())
            .bind(alias)
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| failed(alias, source))?;
        let generation = |row| Fields { row, table: "alias_history" }.parsed("generation");
        rows.iter().map(generation).collect()
    }
}

/// [`Store::alias_history`] within a transaction.
pub(crate) async fn read(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
    alias: &str,
) -> Result<History, StoreError> {
    let rows = sqlx::query(HISTORY)
        .bind(owner.as_str())
        .bind(alias)
        .fetch_all(&mut **transaction)
        .await
        .map_err(|source| failed(alias, source))?;
    let generation = |row| Fields { row, table: "alias_history" }.parsed("generation");
    Ok(History(rows.iter().map(generation).collect::<Result<_, _>>()?))
}

/// Replaces the history of an alias.
pub(crate) async fn write(
    transaction: &mut Transaction<'static, Any>,
    owner: &Owner,
    alias: &str,
    history: &History,
) -> Result<(), StoreError> {
    let failed = |source| failed(alias, source);
    let clear = sqlx::query(CLEAR).bind(owner.as_str()).bind(alias);
    clear.execute(&mut **transaction).await.map_err(failed)?;
    for (position, generation) in (1_i64..).zip(&history.0) {
        sqlx::query(ADD)
            .bind(owner.as_str())
            .bind(alias)
            .bind(position)
            .bind(generation.to_string())
            .execute(&mut **transaction)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

fn failed(alias: &str, source: sqlx::Error) -> StoreError {
    StoreError::database(format!("read or write the history of adapter {alias:?}"), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_moves_on_and_turns() {
        let digest = |n: u8| GenerationDigest([n; 32]);
        let mut history = History::default();
        let seen = |history: &History| history.0.iter().map(|found| found.0[0]).collect::<Vec<_>>();
        for n in 1..=3 {
            history.move_on(digest(n), &digest(n + 1));
        }
        assert_eq!(seen(&history), [3, 2, 1]);
        history.turn(digest(4), &digest(3));
        assert_eq!(seen(&history), [2, 1, 4]);
        history.turn(digest(3), &digest(4));
        assert_eq!(seen(&history), [3, 2, 1]);
        history.move_on(digest(4), &digest(2));
        assert_eq!(seen(&history), [4, 3, 1], "one that comes again is not its own past");
        for n in 10..30 {
            history.move_on(digest(n), &digest(n + 1));
        }
        assert_eq!(seen(&history), [29, 28, 27, 26, 25, 24, 23]);
    }
}
