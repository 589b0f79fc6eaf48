//! What people said about the answers of one adapter: what there is to learn from.

use std::collections::HashMap;

use crate::{
    clock::now_ms,
    completions::{StoredCompletion, completion_in},
    error::StoreError,
    feedback::{StoredFeedback, feedback_in},
    owner::Owner,
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

/// A completion, and what was said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// The completion.
    pub completion: StoredCompletion,
    /// At least one: feedback on it and on its episode, in the order of ids. None was withdrawn or is a comment.
    pub feedback: Vec<StoredFeedback>,
}

/// How much feedback came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledCount {
    /// How many; what was withdrawn and comments are none.
    pub feedback: u64,
    /// When the oldest of it was given, Unix ms.
    pub oldest_ms: Option<i64>,
    /// The id of the newest.
    pub newest: Option<String>,
}

/// What feedback `f` has to be, and to which completions `c` it belongs.
macro_rules! feedback_on {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " f.owner = c.owner AND f.withdrawn_ms IS NULL AND f.kind <> 'comment' \
             AND (f.completion = c.id OR f.episode = c.episode)",
            $after
        )
    };
}

const COMPLETIONS: &str = feedback_on!(
    "SELECT c.* FROM completions c WHERE c.owner = $1 AND c.model = $2 AND c.id > $3 \
     AND c.expires_ms > $4 AND EXISTS (SELECT 1 FROM feedback f WHERE",
    ") ORDER BY c.id LIMIT $5"
);
/// Of the completions of a page.
const FEEDBACK: &str = feedback_on!(
    "SELECT f.*, c.id AS about FROM completions c JOIN feedback f ON",
    " WHERE c.owner = $1 AND c.model = $2 AND c.id > $3 AND c.id <= $4 ORDER BY f.id"
);
const COUNT: &str = feedback_on!(
    "SELECT CAST(COUNT(*) AS BIGINT) AS feedback, \
     CAST(MIN(f.created_ms) AS BIGINT) AS oldest_ms, MAX(f.id) AS newest FROM feedback f \
     WHERE f.owner = $1 AND f.id > $3 AND EXISTS (SELECT 1 FROM completions c \
     WHERE c.owner = $1 AND c.model = $2 AND c.expires_ms > $4 AND",
    ")"
);

impl Store {
    /// Completions of an owner that asked for `name` and that something was said about, in the order of ids. The worse
    /// answer of a comparison is in the completion that it names as rejected.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn labelled(
        &self,
        owner: &Owner,
        name: &str,
        page: &Page<'_>,
    ) -> Result<Listing<Labelled>, StoreError> {
        let failed = |source| StoreError::database(format!("read feedback on {name:?}"), source);
        let rows = sqlx::query(COMPLETIONS)
            .bind(owner.as_str())
            .bind(name)
            .bind(page.after())
            .bind(now_ms())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(failed)?;
        let completions: Vec<_> = rows.iter().map(completion_in).collect::<Result<_, _>>()?;
        let Listing { items, next } =
            Listing::new(completions, page, |completion: &StoredCompletion| completion.id.clone());
        let Some(last) = items.last() else { return Ok(Listing { items: Vec::new(), next }) };
        let rows = sqlx::query(FEEDBACK)
            .bind(owner.as_str())
            .bind(name)
            .bind(page.after())
            .bind(&last.id)
            .fetch_all(self.database.readers())
            .await
            .map_err(failed)?;
        let mut feedback: HashMap<String, Vec<StoredFeedback>> = HashMap::new();
        for row in &rows {
            let about = Fields { row, table: "feedback" }.text("about")?;
            feedback.entry(about).or_default().push(feedback_in(row)?);
        }
        // All of it may have been withdrawn between the two queries.
        let labelled = items.into_iter().filter_map(|completion| {
            let feedback = feedback.remove(&completion.id)?;
            Some(Labelled { completion, feedback })
        });
        Ok(Listing { items: labelled.collect(), next })
    }

    /// How much feedback came after the one of id `after` (`None` is from the beginning) on what an owner asked of `name`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_labelled(
        &self,
        owner: &Owner,
        name: &str,
        after: Option<&str>,
    ) -> Result<LabelledCount, StoreError> {
        let row = sqlx::query(COUNT)
            .bind(owner.as_str())
            .bind(name)
            .bind(after.unwrap_or_default())
            .bind(now_ms())
            .fetch_one(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("count feedback on {name:?}"), source)
            })?;
        let fields = Fields { row: &row, table: "feedback" };
        Ok(LabelledCount {
            feedback: fields.number("feedback")?,
            oldest_ms: fields.maybe_int("oldest_ms")?,
            newest: fields.maybe_text("newest")?,
        })
    }
}
