//! What trained generations came from, and which of them learned from something.
//!
//! A lineage outlives its generation: others may have been trained from that, and know what is in them only through it.
//! It has ids and digests, no text.

use serde_json::Value;
use sqlx::{Any, AssertSqlSafe, Transaction, any::AnyRow};

use crate::{
    checks::document, clock::now_ms, digest::GenerationDigest, error::StoreError, owner::Owner,
    row::Fields, store::Store,
};

const KIND: &str = "lineage";

/// What a generation came from.
#[derive(Clone, Debug, PartialEq)]
pub struct NewLineage {
    /// The generation.
    pub generation: GenerationDigest,
    /// SHA-256 of the base's file, 64 hex digits.
    pub base_sha256: String,
    /// The generation that training began from; `None` is none.
    pub parent: Option<GenerationDigest>,
    /// The round of the learning loop that it belongs to, whose examples it has seen.
    pub round: Option<String>,
    /// The job that trained it.
    pub job: Option<String>,
    /// SHA-256 of all rows that were learned from, 64 hex digits.
    pub data_sha256: Option<String>,
    /// JSON, whose shape is the server's business: method and settings.
    pub recipe: Value,
    /// Of all that was random.
    pub seed: u64,
}

/// What a generation came from, and what is known of it now.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLineage {
    /// What it came from.
    pub from: NewLineage,
    /// JSON, of the gate.
    pub verdict: Option<Value>,
    /// When it was registered, Unix ms.
    pub created_ms: i64,
    /// Whether its owner still has it.
    pub is_kept: bool,
}

/// What a generation may have learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// A completion, by its id.
    Completion(&'a str),
    /// Feedback, by its id.
    Feedback(&'a str),
    /// All that an end user asked, was answered or said, by SHA-256.
    User(&'a str),
}

/// A generation that learned from something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SawGeneration {
    /// Which.
    pub generation: GenerationDigest,
    /// Whether it was trained on that; `false`: it went on from one that was.
    pub is_direct: bool,
    /// Whether its owner still has it.
    pub is_kept: bool,
}

/// What was put first stays: of one round, equal weights have one origin. An empty round is none.
const NEW: &str = "INSERT INTO lineage (owner, generation, base_sha256, parent, round, job, \
     data_sha256, recipe, seed, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
     ON CONFLICT (owner, generation, round) DO NOTHING";
/// If several rounds came to it, one that was judged, the first.
const ONE: &str = "SELECT lineage.*, CAST((SELECT COUNT(*) FROM generations \
     WHERE generations.owner = lineage.owner AND generations.digest = lineage.generation) \
     AS BIGINT) AS kept FROM lineage WHERE owner = $1 AND generation = $2 \
     ORDER BY CASE WHEN verdict IS NULL THEN 1 ELSE 0 END, created_ms, round LIMIT 1";
/// The name points at it or did, or a round of that name trained it; if several rounds came to it, the last of that name, else
/// as above.
const ONE_UNDER: &str = "SELECT lineage.*, CAST((SELECT COUNT(*) FROM generations \
     WHERE generations.owner = lineage.owner AND generations.digest = lineage.generation) \
     AS BIGINT) AS kept FROM lineage WHERE owner = $1 AND generation = $2 \
     AND (EXISTS (SELECT 1 FROM alias_moves moves WHERE moves.owner = lineage.owner \
     AND moves.name = $3 AND moves.to_generation = lineage.generation) \
     OR EXISTS (SELECT 1 FROM rounds WHERE rounds.owner = lineage.owner \
     AND rounds.id = lineage.round AND rounds.name = $3)) \
     ORDER BY (SELECT MAX(rounds.id) FROM rounds WHERE rounds.owner = lineage.owner \
     AND rounds.id = lineage.round AND rounds.name = $3) DESC NULLS LAST, \
     CASE WHEN verdict IS NULL THEN 1 ELSE 0 END, created_ms, round LIMIT 1";

impl Seen<'_> {
    fn key(self) -> String {
        let (Self::Completion(key) | Self::Feedback(key) | Self::User(key)) = self;
        key.to_owned()
    }

    /// A query of the `round`s of owner `$1` whose data sets have what `$2` names. A user is known by what is noted with
    /// examples and by what is kept. (SQLite takes the tables of a CROSS JOIN in this order; it would begin with all examples.)
    pub(crate) fn rounds(self) -> &'static str {
        match self {
            Self::Completion(_) => {
                "SELECT round FROM round_examples \
                 WHERE owner = $1 AND kind = 'completion' AND id = $2"
            }
            Self::Feedback(_) => {
                "SELECT round FROM round_examples \
                 WHERE owner = $1 AND kind = 'feedback' AND id = $2"
            }
            Self::User(_) => {
                "SELECT round FROM round_examples WHERE owner = $1 AND user_sha256 = $2 \
                 UNION SELECT e.round FROM completions c CROSS JOIN round_examples e \
                 WHERE c.owner = $1 AND c.user_sha256 = $2 \
                 AND e.owner = c.owner AND e.kind = 'completion' AND e.id = c.id \
                 UNION SELECT e.round FROM feedback f CROSS JOIN round_examples e \
                 WHERE f.owner = $1 AND f.user_sha256 = $2 \
                 AND e.owner = f.owner AND e.kind = 'feedback' AND e.id = f.id"
            }
        }
    }
}

impl Store {
    /// Notes what a generation came from. What was noted of it and of its round first stays.
    ///
    /// # Errors
    /// When the recipe is too long, the owner does not exist, or the database cannot be written.
    pub async fn put_lineage(&self, owner: &Owner, lineage: &NewLineage) -> Result<(), StoreError> {
        let recipe = document(&lineage.recipe)?;
        sqlx::query(NEW)
            .bind(owner.as_str())
            .bind(lineage.generation.to_string())
            .bind(&lineage.base_sha256)
            .bind(lineage.parent.map(|digest| digest.to_string()))
            .bind(lineage.round.as_deref().unwrap_or_default())
            .bind(lineage.job.as_deref())
            .bind(lineage.data_sha256.as_deref())
            .bind(recipe)
            .bind(lineage.seed.cast_signed())
            .bind(now_ms())
            .execute(self.database.writers())
            .await
            .map_err(|source| {
                let generation = lineage.generation;
                StoreError::database(format!("note the lineage of {generation}"), source)
            })?;
        Ok(())
    }

    /// What a generation came from, whether or not it is still there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when that was never noted, or not for this owner.
    pub async fn lineage(
        &self,
        owner: &Owner,
        generation: &GenerationDigest,
    ) -> Result<StoredLineage, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(generation.to_string())
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("read the lineage of {generation}"), source)
            })?;
        row.as_ref().map_or_else(|| Err(unknown(generation)), lineage_in)
    }

    /// [`Self::lineage`] of a generation that a name points at or has pointed at, or that a round of that name trained.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also when it is another name's.
    pub async fn lineage_under(
        &self,
        owner: &Owner,
        name: &str,
        generation: &GenerationDigest,
    ) -> Result<StoredLineage, StoreError> {
        let row = sqlx::query(ONE_UNDER)
            .bind(owner.as_str())
            .bind(generation.to_string())
            .bind(name)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("read the lineage of {generation}"), source)
            })?;
        row.as_ref().map_or_else(|| Err(unknown(generation)), lineage_in)
    }

    /// The generations of an owner that learned from something, and those that went on from them, ordered by digest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn generations_that_saw(
        &self,
        owner: &Owner,
        seen: Seen<'_>,
    ) -> Result<Vec<SawGeneration>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(saw_query(seen)))
            .bind(owner.as_str())
            .bind(seen.key())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("look for what learned from it", source))?;
        rows.iter().map(saw_in).collect()
    }
}

/// [`Store::generations_that_saw`] within a change.
pub(crate) async fn that_saw(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    seen: Seen<'_>,
    action: &str,
) -> Result<Vec<SawGeneration>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(saw_query(seen)))
        .bind(owner.as_str())
        .bind(seen.key())
        .fetch_all(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    rows.iter().map(saw_in).collect()
}

/// Made of constants.
fn saw_query(seen: Seen<'_>) -> String {
    let rounds = seen.rounds();
    format!(
        "WITH RECURSIVE seen (round) AS ({rounds}), \
         saw (generation, direct) AS ( \
             SELECT generation, 1 FROM lineage \
             WHERE owner = $1 AND round IN (SELECT round FROM seen) \
             UNION SELECT lineage.generation, 0 FROM lineage \
             JOIN saw ON lineage.parent = saw.generation WHERE lineage.owner = $1) \
         SELECT saw.generation AS generation, CAST(MAX(saw.direct) AS BIGINT) AS direct, \
         CAST((SELECT COUNT(*) FROM generations WHERE generations.owner = $1 \
         AND generations.digest = saw.generation) AS BIGINT) AS kept \
         FROM saw GROUP BY saw.generation ORDER BY saw.generation"
    )
}

fn unknown(generation: &GenerationDigest) -> StoreError {
    StoreError::NotFound { kind: KIND, id: generation.to_string() }
}

fn saw_in(row: &AnyRow) -> Result<SawGeneration, StoreError> {
    let fields = Fields { row, table: "lineage" };
    Ok(SawGeneration {
        generation: fields.parsed("generation")?,
        is_direct: fields.int("direct")? != 0,
        is_kept: fields.int("kept")? != 0,
    })
}

fn lineage_in(row: &AnyRow) -> Result<StoredLineage, StoreError> {
    let fields = Fields { row, table: "lineage" };
    let from = NewLineage {
        generation: fields.parsed("generation")?,
        base_sha256: fields.text("base_sha256")?,
        parent: fields.maybe_parsed("parent")?,
        round: Some(fields.text("round")?).filter(|round| !round.is_empty()),
        job: fields.maybe_text("job")?,
        data_sha256: fields.maybe_text("data_sha256")?,
        recipe: fields.json("recipe")?,
        seed: fields.int("seed")?.cast_unsigned(),
    };
    Ok(StoredLineage {
        from,
        verdict: fields.maybe_json("verdict")?,
        created_ms: fields.int("created_ms")?,
        is_kept: fields.int("kept")? != 0,
    })
}
