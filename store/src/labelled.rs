//! What people said about the answers of one adapter: what there is to learn from.

use std::collections::{BTreeSet, HashMap};

use sqlx::AssertSqlSafe;

use crate::{
    clock::now_ms,
    completions::{StoredCompletion, completion_in},
    error::StoreError,
    feedback::{FeedbackTarget, StoredFeedback, feedback_in},
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

/// What can be learned from, of feedback `f`.
macro_rules! is_label {
    () => {
        "f.withdrawn_ms IS NULL AND f.kind <> 'comment'"
    };
}

/// Two conditions, each with an index of its own, instead of one with OR, which has none.
const COMPLETIONS: &str = concat!(
    "SELECT * FROM completions c WHERE c.owner = $1 AND c.model = $2 AND ($3 = '' OR c.id < $3) \
     AND c.expires_ms > $4 AND (EXISTS (SELECT 1 FROM feedback f \
     WHERE f.owner = c.owner AND f.completion = c.id AND ",
    is_label!(),
    ") OR EXISTS (SELECT 1 FROM feedback f \
     WHERE f.owner = c.owner AND f.episode = c.episode AND ",
    is_label!(),
    ")) ORDER BY c.id DESC LIMIT $5"
);
/// The model as no index has it: completions are found by id and by episode.
const COUNT: &str = concat!(
    "SELECT CAST(COUNT(*) AS BIGINT) AS feedback, \
     CAST(MIN(f.created_ms) AS BIGINT) AS oldest_ms, MAX(f.id) AS newest FROM feedback f \
     WHERE f.owner = $1 AND f.id > $3 AND ",
    is_label!(),
    " AND (EXISTS (SELECT 1 FROM completions c WHERE c.owner = f.owner AND c.id = f.completion \
     AND (c.model || '') = $2 AND c.expires_ms > $4) \
     OR EXISTS (SELECT 1 FROM completions c WHERE c.owner = f.owner AND c.episode = f.episode \
     AND (c.model || '') = $2 AND c.expires_ms > $4))"
);

impl Store {
    /// Completions of an owner that asked for `name` and that something was said about, newest first. The worse answer
    /// of a comparison is in the completion that it names as rejected.
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
        let ids: BTreeSet<_> = items.iter().map(|completion| completion.id.as_str()).collect();
        let episodes: BTreeSet<_> =
            items.iter().filter_map(|completion| completion.episode.as_deref()).collect();
        let mut on_completion: HashMap<String, Vec<StoredFeedback>> = HashMap::new();
        let mut on_episode: HashMap<String, Vec<StoredFeedback>> = HashMap::new();
        for feedback in self.labels(owner, "completion", &ids).await? {
            if let FeedbackTarget::Completion { id, .. } = &feedback.target {
                on_completion.entry(id.clone()).or_default().push(feedback);
            }
        }
        for feedback in self.labels(owner, "episode", &episodes).await? {
            if let FeedbackTarget::Episode(episode) = &feedback.target {
                on_episode.entry(episode.clone()).or_default().push(feedback);
            }
        }
        let labelled = items.into_iter().filter_map(|completion| {
            let mut feedback = on_completion.remove(&completion.id).unwrap_or_default();
            let of_all = completion.episode.as_ref().and_then(|name| on_episode.get(name));
            feedback.extend(of_all.into_iter().flatten().cloned());
            feedback.sort_unstable_by(|one, other| one.id.cmp(&other.id));
            // All of it may have been withdrawn between the queries.
            (!feedback.is_empty()).then_some(Labelled { completion, feedback })
        });
        Ok(Listing { items: labelled.collect(), next })
    }

    /// Feedback whose `column` is one of a page's keys.
    async fn labels(
        &self,
        owner: &Owner,
        column: &'static str,
        keys: &BTreeSet<&str>,
    ) -> Result<Vec<StoredFeedback>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<_> = (2..).take(keys.len()).map(|place| format!("${place}")).collect();
        let query = format!(
            "SELECT * FROM feedback f WHERE f.owner = $1 AND {} AND f.{column} IN ({})",
            is_label!(),
            places.join(", ")
        );
        // Made of constants and counted placeholders. A statement for each count is not worth keeping.
        let mut query = sqlx::query(AssertSqlSafe(query)).persistent(false).bind(owner.as_str());
        for key in keys {
            query = query.bind(*key);
        }
        let rows = query
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("read feedback", source))?;
        rows.iter().map(feedback_in).collect()
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
