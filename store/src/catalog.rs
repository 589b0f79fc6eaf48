//! Everything that a server which starts has to know of all adapters, in as many queries as there are tables: rows only,
//! no file is opened.

use std::collections::HashMap;

use crate::{
    aliases::{StoredAlias, alias_in},
    digest::GenerationDigest,
    error::StoreError,
    generations::{GenerationFile, StoredGeneration, file_in, generation_in},
    owner::Owner,
    row::Fields,
    store::Store,
};

const ALIASES: &str = "SELECT * FROM aliases";
const HISTORIES: &str = "SELECT owner, name, generation FROM alias_history ORDER BY position";
const GENERATIONS: &str = "SELECT * FROM generations";
const FILES: &str = "SELECT owner, digest, name, sha256, bytes FROM generation_files ORDER BY name";

/// Aliases and generations of all owners, in no order.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Every alias, with its history.
    pub aliases: Vec<(StoredAlias, Vec<GenerationDigest>)>,
    /// Every generation, with its files.
    pub generations: Vec<(StoredGeneration, Vec<GenerationFile>)>,
}

impl Store {
    /// Reads the catalogue. When another process changes it meanwhile, an alias may be there without its generation.
    ///
    /// # Errors
    /// When the database cannot be read, or a row is not what this program writes.
    pub async fn catalog(&self) -> Result<Catalog, StoreError> {
        let mut histories: HashMap<(Owner, String), Vec<GenerationDigest>> = HashMap::new();
        for row in &self.rows(HISTORIES).await? {
            let fields = Fields { row, table: "alias_history" };
            let key = (fields.owner("owner")?, fields.text("name")?);
            histories.entry(key).or_default().push(fields.parsed("generation")?);
        }
        let mut files: HashMap<(Owner, GenerationDigest), Vec<GenerationFile>> = HashMap::new();
        for row in &self.rows(FILES).await? {
            let fields = Fields { row, table: "generation_files" };
            let key = (fields.owner("owner")?, fields.parsed("digest")?);
            files.entry(key).or_default().push(file_in(row)?);
        }
        let mut catalog = Catalog::default();
        for row in &self.rows(ALIASES).await? {
            let alias = alias_in(row)?;
            let history = histories.remove(&(alias.owner.clone(), alias.name.clone()));
            catalog.aliases.push((alias, history.unwrap_or_default()));
        }
        for row in &self.rows(GENERATIONS).await? {
            let generation = generation_in(row)?;
            let files = files.remove(&(generation.owner.clone(), generation.digest));
            catalog.generations.push((generation, files.unwrap_or_default()));
        }
        Ok(catalog)
    }

    async fn rows(&self, query: &'static str) -> Result<Vec<sqlx::any::AnyRow>, StoreError> {
        let rows = sqlx::query(query).fetch_all(self.database.readers()).await;
        rows.map_err(|source| StoreError::database("read all adapters", source))
    }
}
