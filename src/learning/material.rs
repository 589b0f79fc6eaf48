//! What the store has of answers and feedback, as the data set wants it.

use std::collections::{HashMap, HashSet};

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

/// How much is read for a data set, all of which is in memory at once. The newest comes first, and what is beyond is left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Completions that something was said about.
    pub(super) completions_max: usize,
    /// Bytes of all bodies, of completions that these were compared with, too.
    pub(super) bytes_max: usize,
}

impl Limits {
    /// Those of a round.
    pub(super) const OF_ROUND: Self = Self { completions_max: 50_000, bytes_max: 256 << 20 };
}

/// What was read, and by whom it was said, which rows do not tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Read {
    pub(super) material: Material,
    /// By id of a completion or feedback, the digest of its user.
    users: HashMap<String, Option<String>>,
    /// When the first of the completions ceases to be kept, Unix ms.
    pub(super) expires_ms: Option<i64>,
    /// Whether there was more than the limits let in.
    pub(super) is_cut: bool,
    /// Of all bodies.
    n_bytes: usize,
}

/// Reads what an owner has of a name and that may be learned from; of these ids only, if some are given.
pub(super) async fn read(
    store: &Store,
    owner: &Owner,
    name: &str,
    limits: Limits,
    only: Option<&HashSet<String>>,
) -> Result<Read, StoreError> {
    let mut read = Read::default();
    let mut after: Option<String> = None;
    loop {
        let page = Page { after: after.as_deref(), rows_max: PAGE_ROWS };
        let listing = store.labelled(owner, name, &page).await?;
        for mut labelled in listing.items {
            if let Some(ids) = only {
                if !ids.contains(&labelled.completion.id) {
                    continue;
                }
                labelled.feedback.retain(|given| ids.contains(&given.id));
            }
            let n_bytes = read.n_bytes + labelled.completion.body.len();
            read.is_cut =
                read.material.judged.len() >= limits.completions_max || n_bytes > limits.bytes_max;
            if read.is_cut {
                return Ok(read);
            }
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
        self.n_bytes += completion.body.len();
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pleach_store::{Blobs, Metadata, NewFeedback};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn of_more_than_is_read_the_newest_is() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::in_folder(folder.path().join("blobs")).unwrap();
        let database = folder.path().join("database");
        let store = Store::open(database.to_str().unwrap(), blobs).await.unwrap();
        let mut body_bytes = 0;
        for n in 0..5 {
            let body = json!({
                "messages": [{"role": "user", "content": "hi"}],
                "choices": [{"content": "yes", "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1},
                "fingerprint": "fp",
                "sampling": {
                    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
                    "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
                    "seed": null, "max_tokens": null,
                },
            });
            let body = body.to_string();
            body_bytes = body.len();
            let id = format!("chatcmpl-{n}");
            let made = StoredCompletion {
                id: id.clone(),
                model: "mia".to_owned(),
                generation: None,
                episode: None,
                user_sha256: None,
                metadata: Metadata::new(),
                body,
                created_ms: 1,
                expires_ms: 4_000_000_000_000,
            };
            store.put_completions(&[(Owner::Shared, made)]).await.unwrap();
            let liked = NewFeedback {
                target: FeedbackTarget::Completion { id, choice: 0 },
                metric: "liked".to_owned(),
                kind: FeedbackKind::Boolean,
                value: json!(true),
                rejected: None,
                tags: BTreeMap::new(),
                user_sha256: None,
                idempotency: None,
            };
            store.put_feedback(&Owner::Shared, &liked, false).await.unwrap();
        }
        let read = async |completions_max, bytes_max, only: Option<&HashSet<String>>| {
            let limits = Limits { completions_max, bytes_max };
            let read = read(&store, &Owner::Shared, "mia", limits, only).await.unwrap();
            let judged = read.material.judged.iter();
            let ids: Vec<_> = judged.map(|judged| judged.completion.id.clone()).collect();
            (ids, read.is_cut)
        };
        let newest = |n: usize| -> Vec<_> {
            (0..5).rev().take(n).map(|n| format!("chatcmpl-{n}")).collect()
        };
        assert_eq!(read(5, 5 * body_bytes, None).await, (newest(5), false));
        assert_eq!(read(3, usize::MAX, None).await, (newest(3), true));
        assert_eq!(read(99, 4 * body_bytes + 1, None).await, (newest(4), true));
        assert_eq!(read(99, 0, None).await, (Vec::new(), true));
        // What is not asked for takes nobody's place.
        let old = ["chatcmpl-1", "chatcmpl-0"].map(str::to_owned);
        let only = HashSet::from(old.clone());
        assert_eq!(read(2, usize::MAX, Some(&only)).await, (old.to_vec(), false));
    }
}
