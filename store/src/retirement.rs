//! Taking generations away. First the rows, in one transaction; then blobs that nobody else has. A crash between the
//! two leaves rows of `blobs` that the next sweep finds.

use sqlx::{Any, Row as _, Transaction};

use crate::{
    digest::GenerationDigest,
    error::StoreError,
    generations::{GenerationFile, file_in, unknown},
    owner::Owner,
    store::Store,
};

const ALIAS_OF: &str = "SELECT name FROM aliases WHERE owner = $1 AND generation = $2 LIMIT 1";
const HISTORY_OF: &str =
    "SELECT name FROM alias_history WHERE owner = $1 AND generation = $2 LIMIT 1";
const FILES: &str = "SELECT name, sha256, bytes FROM generation_files \
     WHERE owner = $1 AND digest = $2 ORDER BY name";

impl Store {
    /// Takes a generation away that no alias points at or could be rolled back to. Its blobs are deleted, except those
    /// that other generations have or that were put only now; when that fails, a later sweep does it.
    ///
    /// # Errors
    /// [`StoreError::GenerationInUse`], [`StoreError::GenerationInHistory`] or [`StoreError::UnknownGeneration`].
    pub async fn retire_generation(
        &self,
        owner: &Owner,
        digest: &GenerationDigest,
    ) -> Result<(), StoreError> {
        self.remove_generation(owner, digest, false).await
    }

    /// [`Self::retire_generation`] also if an alias could be rolled back to it; from now on it cannot.
    ///
    /// # Errors
    /// [`StoreError::GenerationInUse`] or [`StoreError::UnknownGeneration`].
    pub async fn purge_generation(
        &self,
        owner: &Owner,
        digest: &GenerationDigest,
    ) -> Result<(), StoreError> {
        self.remove_generation(owner, digest, true).await
    }

    async fn remove_generation(
        &self,
        owner: &Owner,
        digest: &GenerationDigest,
        also_from_history: bool,
    ) -> Result<(), StoreError> {
        let action = format!("remove generation {digest} of {owner}");
        let mut change = self.database.begin_for(owner, &action).await?;
        if let Some(alias) = name_found(&mut change, ALIAS_OF, owner, digest).await? {
            return Err(StoreError::GenerationInUse { digest: *digest, alias });
        }
        if !also_from_history
            && let Some(alias) = name_found(&mut change, HISTORY_OF, owner, digest).await?
        {
            return Err(StoreError::GenerationInHistory { digest: *digest, alias });
        }
        let files = delete_rows(&mut change, owner, digest, &action).await?;
        change.commit().await.map_err(|source| StoreError::database(&action, source))?;
        self.let_go(&files.iter().map(|file| file.blob).collect::<Vec<_>>()).await;
        Ok(())
    }
}

async fn name_found(
    change: &mut Transaction<'static, Any>,
    query: &'static str,
    owner: &Owner,
    digest: &GenerationDigest,
) -> Result<Option<String>, StoreError> {
    let failed =
        |source| StoreError::database(format!("look for uses of generation {digest}"), source);
    let row = sqlx::query(query)
        .bind(owner.as_str())
        .bind(digest.to_string())
        .fetch_optional(&mut **change)
        .await
        .map_err(failed)?;
    row.map(|row| row.try_get("name").map_err(failed)).transpose()
}

/// Deletes the rows of a generation; the files that it had.
async fn delete_rows(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    digest: &GenerationDigest,
    action: &str,
) -> Result<Vec<GenerationFile>, StoreError> {
    let failed = |source| StoreError::database(action, source);
    let bound = |query| sqlx::query(query).bind(owner.as_str()).bind(digest.to_string());
    let rows = bound(FILES).fetch_all(&mut **change).await.map_err(failed)?;
    let files = rows.iter().map(file_in).collect::<Result<_, _>>()?;
    bound("DELETE FROM alias_history WHERE owner = $1 AND generation = $2")
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    bound("DELETE FROM generation_files WHERE owner = $1 AND digest = $2")
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    let deleted = bound("DELETE FROM generations WHERE owner = $1 AND digest = $2")
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    if deleted.rows_affected() == 0 {
        return Err(unknown(owner, digest));
    }
    Ok(files)
}
