//! What the store has of answers and feedback, as the data set wants it.

use std::collections::HashMap;

use pleach_store::{
    Example, ExampleKind, FeedbackKind, FeedbackTarget, Labelled, Owner, PAGE_ROWS_MAX, Page,
    Store, StoreError, StoredCompletion, StoredFeedback,
};
use serde_json::Value;

use super::dataset::{Answered, Judged, LoopData, Material, Opinion, OpinionSaid};
use crate::feedback::CompletionBody;

/// Rows of a page: each has a whole conversation.
const PAGE_ROWS: u32 = 200;
const _: () = assert!(PAGE_ROWS <= PAGE_ROWS_MAX);

/// What was read, and by whom it was said, which rows do not tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Read {
    pub(super) material: Material,
    /// By id of a completion or feedback, the digest of its user.
    users: HashMap<String, Option<String>>,
    /// When the first of the completions ceases to be kept, Unix ms.
    pub(super) expires_ms: Option<i64>,
}

/// Reads all that an owner has of a name and that may be learned from.
pub(super) async fn read(store: &Store, owner: &Owner, name: &str) -> Result<Read, StoreError> {
    let mut read = Read::default();
    let mut after: Option<String> = None;
    loop {
        let page = Page { after: after.as_deref(), rows_max: PAGE_ROWS };
        let listing = store.labelled(owner, name, &page).await?;
        for labelled in listing.items {
            read.add(store, owner, labelled).await?;
        }
        after = listing.next;
        if after.is_none() {
            return Ok(read);
        }
    }
}

impl Read {
    async fn add(
        &mut self,
        store: &Store,
        owner: &Owner,
        Labelled { completion, feedback }: Labelled,
    ) -> Result<(), StoreError> {
        let Some(answered) = self.answered(&completion) else { return Ok(()) };
        let opinions: Vec<_> = feedback.iter().filter_map(opinion).collect();
        for given in &feedback {
            self.users.insert(given.id.clone(), given.user_sha256.clone());
        }
        for opinion in &opinions {
            let OpinionSaid::BetterThan { id, .. } = &opinion.said else { continue };
            if *id == completion.id || self.material.others.contains_key(id) {
                continue;
            }
            match store.completion(owner, id).await {
                Ok(other) => {
                    if let Some(answered) = self.answered(&other) {
                        self.material.others.insert(other.id, answered);
                    }
                }
                // It was deleted, and the feedback with it by now.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.material.judged.push(Judged { completion: answered, opinions });
        Ok(())
    }

    fn answered(&mut self, completion: &StoredCompletion) -> Option<Answered> {
        let body: CompletionBody = match serde_json::from_str(&completion.body) {
            Ok(body) => body,
            Err(error) => {
                tracing::warn!(completion = completion.id, %error, "it cannot be learned from");
                return None;
            }
        };
        // What several adapters said together is no answer of this one.
        if !body.parts.is_empty() {
            return None;
        }
        self.users.insert(completion.id.clone(), completion.user_sha256.clone());
        let soonest =
            self.expires_ms.map_or(completion.expires_ms, |ms| ms.min(completion.expires_ms));
        self.expires_ms = Some(soonest);
        Some(Answered {
            id: completion.id.clone(),
            user: completion.user_sha256.clone(),
            episode: completion.episode.clone(),
            messages: body.messages,
            tools: body.template_variables.get("tools").cloned().filter(Value::is_array),
            choices: body.choices.into_iter().map(|choice| choice.content).collect(),
        })
    }

    /// What the rows of a data set are made of.
    pub(super) fn examples(&self, data: &LoopData) -> Vec<Example> {
        let example = |kind, id: &String| {
            let user_sha256 = self.users.get(id).cloned().flatten();
            (id.clone(), Example { kind, id: id.clone(), user_sha256 })
        };
        let completions = data.rows.iter().flat_map(|row| &row.completions);
        let feedback = data.rows.iter().flat_map(|row| &row.feedback);
        let examples = completions
            .map(|id| example(ExampleKind::Completion, id))
            .chain(feedback.map(|id| example(ExampleKind::Feedback, id)));
        // Each once, in their order.
        examples.collect::<std::collections::BTreeMap<_, _>>().into_values().collect()
    }
}

/// What was said about one answer. What was said about an episode is about no answer in particular.
fn opinion(feedback: &StoredFeedback) -> Option<Opinion> {
    let FeedbackTarget::Completion { choice, .. } = &feedback.target else { return None };
    let said = match feedback.kind {
        FeedbackKind::Boolean | FeedbackKind::Float => {
            OpinionSaid::Metric { name: feedback.metric.clone(), value: feedback.value.clone() }
        }
        FeedbackKind::Demonstration => {
            OpinionSaid::Demonstration(feedback.value.as_str()?.to_owned())
        }
        FeedbackKind::Comparison => OpinionSaid::BetterThan {
            id: feedback.value.get("inference_id")?.as_str()?.to_owned(),
            choice: u32::try_from(feedback.value.get("choice")?.as_u64()?).ok()?,
        },
        FeedbackKind::Comment => return None,
    };
    Some(Opinion {
        id: feedback.id.clone(),
        choice: *choice,
        rater: feedback.user_sha256.clone(),
        said,
    })
}

/// Reads a file of rows of the owner's, each a JSON object.
pub(super) async fn rows_of_file(
    store: &Store,
    owner: &Owner,
    file: &str,
    bytes_max: u64,
) -> Result<Vec<Value>, StoreError> {
    let file = store.file(owner, file).await?;
    let bytes = store.read_blob(&file.blob, bytes_max).await?;
    let text = String::from_utf8_lossy(&bytes);
    // Every line was read before the file was taken.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
