//! What the data set of a round was made of: ids and digests of users, no text. It is written before training begins, so
//! that whoever erases something knows which generations learned from it, and which are about to.

use sqlx::{Any, AssertSqlSafe, Transaction, any::AnyRow};

use crate::{
    error::StoreError,
    owner::Owner,
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

/// Rows of a statement at most: each has three parameters of its own.
const ROWS_MAX: usize = 250;

/// What an example is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExampleKind {
    /// A completion that was kept.
    Completion,
    /// Feedback.
    Feedback,
}

impl ExampleKind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Feedback => "feedback",
        }
    }
}

/// Something that a data set was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What it is.
    pub kind: ExampleKind,
    /// Its id.
    pub id: String,
    /// SHA-256 of whose it is (of a completion who asked, of feedback who gave it), 64 hex digits; `None` if that is not
    /// known, or was erased.
    pub user_sha256: Option<String>,
}

/// How much a data set was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExampleCounts {
    /// Completions.
    pub completions: u64,
    /// Feedback.
    pub feedback: u64,
}

/// What was deleted or withdrawn since it was read.
const GONE: &str = "SELECT e.* FROM round_examples e WHERE e.owner = $1 AND e.round = $2 \
     AND NOT EXISTS (SELECT 1 FROM completions c \
     WHERE e.kind = 'completion' AND c.owner = e.owner AND c.id = e.id) \
     AND NOT EXISTS (SELECT 1 FROM feedback f WHERE e.kind = 'feedback' AND f.owner = e.owner \
     AND f.id = e.id AND f.withdrawn_ms IS NULL) ORDER BY e.kind, e.id LIMIT 1";
/// Feedback comes after completions, as its name does.
const EXAMPLES: &str = "SELECT * FROM round_examples WHERE owner = $1 AND round = $2 \
     AND (kind, id) > ($3, $4) ORDER BY kind, id LIMIT $5";
const COUNTS: &str = "SELECT \
     CAST(COUNT(CASE WHEN kind = 'completion' THEN 1 END) AS BIGINT) AS completions, \
     CAST(COUNT(CASE WHEN kind = 'feedback' THEN 1 END) AS BIGINT) AS feedback \
     FROM round_examples WHERE owner = $1 AND round = $2";

impl Store {
    /// What a round's data set was made of, ordered by kind and id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn examples(
        &self,
        owner: &Owner,
        round: &str,
        page: &Page<'_>,
    ) -> Result<Listing<Example>, StoreError> {
        // No kind has a slash.
        let (kind, id) = page.after().split_once('/').unwrap_or_default();
        let rows = sqlx::query(EXAMPLES)
            .bind(owner.as_str())
            .bind(round)
            .bind(kind)
            .bind(id)
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("list examples of round {round:?}"), source)
            })?;
        let examples = rows.iter().map(example_in).collect::<Result<_, _>>()?;
        let key = |example: &Example| format!("{}/{}", example.kind.name(), example.id);
        Ok(Listing::new(examples, page, key))
    }

    /// How much a round's data set was made of.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_examples(
        &self,
        owner: &Owner,
        round: &str,
    ) -> Result<ExampleCounts, StoreError> {
        let row = sqlx::query(COUNTS)
            .bind(owner.as_str())
            .bind(round)
            .fetch_one(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("count examples of round {round:?}"), source)
            })?;
        let fields = Fields { row: &row, table: "round_examples" };
        let (completions, feedback) = (fields.number("completions")?, fields.number("feedback")?);
        Ok(ExampleCounts { completions, feedback })
    }
}

/// Adds examples that are not there yet. The caller holds the owner's row, so none of them goes meanwhile.
pub(crate) async fn add(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    round: &str,
    examples: &[Example],
    action: &str,
) -> Result<(), StoreError> {
    if examples.is_empty() {
        return Ok(());
    }
    let failed = |source| StoreError::database(action, source);
    for examples in examples.chunks(ROWS_MAX) {
        let row = |index: usize| {
            let first = 3 + 3 * index;
            format!("($1, $2, ${first}, ${}, ${})", first + 1, first + 2)
        };
        let rows: Vec<_> = (0..examples.len()).map(row).collect();
        let query = format!(
            "INSERT INTO round_examples (owner, round, kind, id, user_sha256) VALUES {} \
             ON CONFLICT (owner, round, kind, id) DO NOTHING",
            rows.join(", ")
        );
        // Made of counted placeholders. A statement for each count is not worth keeping.
        let mut query = sqlx::query(AssertSqlSafe(query))
            .persistent(false)
            .bind(owner.as_str())
            .bind(round.to_owned());
        for example in examples {
            query = query
                .bind(example.kind.name())
                .bind(example.id.clone())
                .bind(example.user_sha256.clone());
        }
        query.execute(&mut **change).await.map_err(failed)?;
    }
    let gone = sqlx::query(GONE)
        .bind(owner.as_str())
        .bind(round)
        .fetch_optional(&mut **change)
        .await
        .map_err(failed)?;
    let Some(row) = gone else { return Ok(()) };
    let Example { kind, id, .. } = example_in(&row)?;
    Err(StoreError::NotFound { kind: kind.name(), id })
}

fn example_in(row: &AnyRow) -> Result<Example, StoreError> {
    let fields = Fields { row, table: "round_examples" };
    let kind = match fields.text("kind")?.as_str() {
        "completion" => ExampleKind::Completion,
        "feedback" => ExampleKind::Feedback,
        other => return Err(fields.corrupt("kind", format!("{other:?} is none"))),
    };
    Ok(Example { kind, id: fields.text("id")?, user_sha256: fields.maybe_text("user_sha256")? })
}
