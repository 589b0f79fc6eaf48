//! When keys were last used: kept in memory and written now and then, because a request should not wait for a disk.
//! What is not yet written is lost with the process; nobody was told that it was kept.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{error::StoreError, store::Store};

/// Keys whose last use waits to be written. Beyond that, uses of further keys are not noted until the next flush.
const WAITING_MAX: usize = 16_384;

/// Unix ms of the last use, by the key's id.
#[derive(Debug, Default)]
pub(crate) struct KeyUses(Mutex<HashMap<String, i64>>);

impl KeyUses {
    pub(crate) fn note(&self, id: &str, used_ms: i64) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = waiting.get_mut(id) {
            *last = used_ms.max(*last);
        } else if waiting.len() < WAITING_MAX {
            waiting.insert(id.to_owned(), used_ms);
        }
    }

    fn take(&self) -> HashMap<String, i64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Notes that a key was accepted without asking [`Store::check_key`], for example from a cache.
    pub fn note_key_use(&self, id: &str) {
        self.key_uses.note(id, crate::clock::now_ms());
    }

    /// Writes when keys were last used. Call it once a minute or so; [`Store::close`] does, too.
    ///
    /// # Errors
    /// When the database cannot be written; the times wait for the next call then.
    pub async fn flush_key_uses(&self) -> Result<(), StoreError> {
        let uses = self.key_uses.take();
        if uses.is_empty() {
            return Ok(());
        }
        let written = self.write_key_uses(&uses).await;
        if written.is_err() {
            for (id, used_ms) in &uses {
                self.key_uses.note(id, *used_ms);
            }
        }
        written
    }

    async fn write_key_uses(&self, uses: &HashMap<String, i64>) -> Result<(), StoreError> {
        const ACTION: &str = "note the last uses of keys";
        let failed = |source| StoreError::database(ACTION, source);
        // Two replicas lock the rows of their keys in one order.
        let mut uses: Vec<_> = uses.iter().collect();
        uses.sort_unstable();
        let mut change = self.database.begin(ACTION).await?;
        for (id, used_ms) in uses {
            sqlx::query(
                "UPDATE api_keys SET last_used_ms = $2 \
                 WHERE id = $1 AND (last_used_ms IS NULL OR last_used_ms < $2)",
            )
            .bind(id)
            .bind(*used_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        }
        change.commit().await.map_err(failed)
    }
}
