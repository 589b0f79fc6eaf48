//! Pairs that clients attach to completions and jobs, and look them up by.

use std::collections::BTreeMap;

use sqlx::{Any, Transaction};

use crate::{error::StoreError, owner::Owner};

/// Pairs by name.
pub type Metadata = BTreeMap<String, String>;

/// `{"name":"value"}`.
pub(crate) fn json(metadata: &Metadata) -> String {
    serde_json::to_string(metadata).expect("texts by text have a JSON form")
}

/// Replaces the pairs by which an object is found.
pub(crate) async fn replace(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    object: &str,
    metadata: &Metadata,
    action: &str,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::database(action, source);
    sqlx::query("DELETE FROM metadata WHERE owner = $1 AND object = $2")
        .bind(owner.as_str())
        .bind(object)
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    add(change, owner, object, metadata, action).await
}

/// Adds the pairs by which a new object is found.
pub(crate) async fn add(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    object: &str,
    metadata: &Metadata,
    action: &str,
) -> Result<(), StoreError> {
    for (name, value) in metadata {
        sqlx::query("INSERT INTO metadata (owner, object, name, value) VALUES ($1, $2, $3, $4)")
            .bind(owner.as_str())
            .bind(object)
            .bind(name)
            .bind(value)
            .execute(&mut **change)
            .await
            .map_err(|source| StoreError::database(action, source))?;
    }
    Ok(())
}

/// A condition on rows of `table` that they have `n_pairs` pairs, whose names and values are bound from `$first` on, one
/// after the other.
pub(crate) fn condition(table: &str, n_pairs: usize, first: usize) -> String {
    let pair = |index: usize| {
        let (name, value) = (first + 2 * index, first + 2 * index + 1);
        format!(
            " AND EXISTS (SELECT 1 FROM metadata WHERE metadata.owner = {table}.owner \
             AND metadata.object = {table}.id AND metadata.name = ${name} \
             AND metadata.value = ${value})"
        )
    };
    (0..n_pairs).map(pair).collect()
}
