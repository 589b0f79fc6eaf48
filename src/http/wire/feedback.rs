//! Feedback, with `TensorZero`'s names.

use std::collections::BTreeMap;

use pleach_store::{FeedbackKind, FeedbackTarget, StoredFeedback};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    fields::{Fields, as_integer, as_list, as_string, wrong_type},
    lineage::LearnedCard,
    metadata::{read_episode, read_metadata},
};
use crate::http::error::ApiError;

/// Longest comment or demonstration.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Longest name of a metric.
pub const METRIC_BYTES_MAX: usize = 128;
/// Longest idempotency key, as Stripe's.
pub const KEY_CHARS_MAX: usize = 255;
/// Largest index of a choice: more choices no request has.
const CHOICE_MAX: i64 = 127;

const INFERENCE: &str = "inference_id";
const EPISODE: &str = "episode_id";
const VALUE: &str = "value";

/// The body of `POST /v1/feedback`.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedbackRequest {
    /// What it is about.
    pub target: FeedbackTarget,
    /// The metric, or `comparison`, `demonstration`, `comment`.
    pub metric: String,
    /// What is said.
    pub said: Said,
    /// For people and programs.
    pub tags: BTreeMap<String, String>,
    /// Who says it.
    pub user: Option<String>,
    /// Check it, and keep nothing.
    pub dry_run: bool,
    /// Sent twice, it is kept once.
    pub idempotency_key: Option<String>,
}

/// What is said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Yes or no.
    Boolean(bool),
    /// A finite number.
    Float(f64),
    /// The answer that it is about is better than this one.
    BetterThan {
        /// Its completion.
        id: String,
        /// Which of its answers.
        choice: u32,
    },
    /// What the answer should have been.
    Demonstration(String),
    /// Words.
    Comment(String),
}

impl Said {
    /// What kind of thing it is.
    pub fn kind(&self) -> FeedbackKind {
        match self {
            Self::Boolean(_) => FeedbackKind::Boolean,
            Self::Float(_) => FeedbackKind::Float,
            Self::BetterThan { .. } => FeedbackKind::Comparison,
            Self::Demonstration(_) => FeedbackKind::Demonstration,
            Self::Comment(_) => FeedbackKind::Comment,
        }
    }

    /// As it is kept and shown.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Boolean(value) => json!(value),
            Self::Float(value) => json!(value),
            Self::BetterThan { id, choice } => json!({INFERENCE: id, "choice": choice}),
            Self::Demonstration(text) | Self::Comment(text) => json!(text),
        }
    }

    /// The completion of the worse answer.
    pub fn rejected(&self) -> Option<&str> {
        match self {
            Self::BetterThan { id, .. } => Some(id),
            Self::Boolean(_) | Self::Float(_) | Self::Demonstration(_) | Self::Comment(_) => None,
        }
    }

    /// The text of a person, which may have personal data in it.
    pub fn text_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Demonstration(text) | Self::Comment(text) => Some(text),
            Self::Boolean(_) | Self::Float(_) | Self::BetterThan { .. } => None,
        }
    }
}

impl FeedbackRequest {
    /// Reads and checks the fields. There are no others: a slip in a name must not go unnoticed.
    ///
    /// # Errors
    /// The first field that is missing, unknown, of wrong type or out of range.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        fields.only(&[
            INFERENCE,
            EPISODE,
            "choice",
            "metric_name",
            VALUE,
            "tags",
            "user",
            "dryrun",
            "idempotency_key",
        ])?;
        let choice = read_choice(fields.get("choice"), "choice")?;
        let target = match (fields.string(INFERENCE)?, fields.string(EPISODE)?) {
            (Some(id), None) => FeedbackTarget::Completion { id: id.to_owned(), choice },
            (None, Some(episode)) => FeedbackTarget::Episode(read_episode(episode, EPISODE)?),
            (None, None) => return Err(ApiError::Missing { param: INFERENCE.to_owned() }),
            (Some(_), Some(_)) => {
                let reason = "send it or 'inference_id', not both";
                return Err(ApiError::invalid(EPISODE, reason));
            }
        };
        let metric = read_metric(as_string(fields.require("metric_name")?, "metric_name")?)?;
        let said = read_said(&metric, &target, fields.require(VALUE)?)?;
        let key = fields.string("idempotency_key")?.map(read_key).transpose()?;
        Ok(Self {
            target,
            metric,
            said,
            tags: read_metadata(fields, "tags")?,
            user: fields.string("user")?.map(str::to_owned),
            dry_run: fields.flag("dryrun")?,
            idempotency_key: key,
        })
    }
}

/// Reads what is said about a target: of which kind it is, is told by the metric and the value.
///
/// # Errors
/// A value that the metric cannot have.
pub fn read_said(metric: &str, target: &FeedbackTarget, value: &Value) -> Result<Said, ApiError> {
    match metric {
        "comment" => Ok(Said::Comment(read_text(value)?)),
        "demonstration" => {
            must_be_completion(target, metric)?;
            Ok(Said::Demonstration(read_text(value)?))
        }
        "comparison" => {
            let (id, own_choice) = must_be_completion(target, metric)?;
            let Value::Object(worse) = value else {
                return Err(wrong_type(VALUE, "an object", value));
            };
            if let Some(unknown) =
                worse.keys().find(|key| ![INFERENCE, "choice"].contains(&key.as_str()))
            {
                return Err(ApiError::invalid(
                    format!("{VALUE}.{unknown}"),
                    "there is no such field",
                ));
            }
            let worse_id = worse.get(INFERENCE).filter(|id| !id.is_null());
            let worse_id = worse_id.map_or(Ok(id), |id| as_string(id, "value.inference_id"))?;
            let choice = read_choice(worse.get("choice"), "value.choice")?;
            if worse_id == id && choice == own_choice {
                return Err(ApiError::invalid(VALUE, "an answer is not better than itself"));
            }
            Ok(Said::BetterThan { id: worse_id.to_owned(), choice })
        }
        _ => match value {
            Value::Bool(value) => Ok(Said::Boolean(*value)),
            Value::Number(number) => {
                let number = number.as_f64().filter(|number| number.is_finite());
                number.map(Said::Float).ok_or_else(|| wrong_type(VALUE, "a number", value))
            }
            Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                Err(wrong_type(VALUE, "a boolean or a number", value))
            }
        },
    }
}

fn must_be_completion<'t>(
    target: &'t FeedbackTarget,
    metric: &str,
) -> Result<(&'t str, u32), ApiError> {
    match target {
        FeedbackTarget::Completion { id, choice } => Ok((id, *choice)),
        FeedbackTarget::Episode(_) => {
            let reason = format!("a {metric} is about one answer: send 'inference_id'");
            Err(ApiError::invalid(EPISODE, reason))
        }
    }
}

fn read_choice(value: Option<&Value>, param: &str) -> Result<u32, ApiError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(0) };
    // The bounds are those of a u32, so the conversion cannot fail.
    as_integer(value, param, 0..=CHOICE_MAX).map(|choice| u32::try_from(choice).unwrap_or(0))
}

/// Checks the name of a metric.
///
/// # Errors
/// Why it cannot be one.
pub fn check_metric(name: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if name.is_empty() || name.len() > METRIC_BYTES_MAX || !name.bytes().all(is_plain) {
        return Err(format!(
            "it has to be 1 to {METRIC_BYTES_MAX} letters, digits, `-`, `_`, `.`, `:` or `/`"
        ));
    }
    Ok(())
}

fn read_metric(name: &str) -> Result<String, ApiError> {
    check_metric(name).map_err(|reason| ApiError::invalid("metric_name", reason))?;
    Ok(name.to_owned())
}

/// A key by which a request that is sent twice is known.
///
/// # Errors
/// When it is empty or long.
pub fn read_key(key: &str) -> Result<String, ApiError> {
    let is_plain = key.chars().all(|character| !character.is_control());
    if key.is_empty() || key.chars().count() > KEY_CHARS_MAX || !is_plain {
        let reason = format!("it has to be 1 to {KEY_CHARS_MAX} printable characters");
        return Err(ApiError::invalid("idempotency_key", reason));
    }
    Ok(key.to_owned())
}

/// A text, or the text of blocks as `TensorZero` has them.
fn read_text(value: &Value) -> Result<String, ApiError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(_) => {
            let blocks = as_list(value, VALUE)?.iter().enumerate();
            let texts = blocks.map(|(index, block)| {
                let place = format!("{VALUE}[{index}]");
                if block.get("type").and_then(Value::as_str) != Some("text") {
                    return Err(ApiError::invalid(place, "only blocks of type text are supported"));
                }
                let text = block.get("text").unwrap_or(&Value::Null);
                as_string(text, &format!("{place}.text")).map(str::to_owned)
            });
            texts.collect::<Result<Vec<_>, _>>()?.concat()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(wrong_type(VALUE, "a string", value));
        }
    };
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(ApiError::invalid(VALUE, format!("it has to be 1 to {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The answer to `POST /v1/feedback`.
#[derive(Clone, Debug, Serialize)]
pub struct FeedbackGiven {
    /// `fb-…`.
    pub feedback_id: String,
}

/// Feedback.
#[derive(Clone, Debug, Serialize)]
pub struct FeedbackCard {
    /// `fb-…`.
    pub id: String,
    /// Always `feedback`.
    pub object: &'static str,
    /// The completion that it is about.
    pub inference_id: Option<String>,
    /// The episode that it is about.
    pub episode_id: Option<String>,
    /// Which of the completion's answers.
    pub choice: Option<u32>,
    /// The metric, or the kind's own name.
    pub metric_name: String,
    /// `boolean`, `float`, `comparison`, `demonstration` or `comment`.
    pub kind: &'static str,
    /// What is said; null when it was withdrawn.
    pub value: Value,
    /// For people and programs.
    pub tags: BTreeMap<String, String>,
    /// When it was given, seconds since 1970.
    pub created_at: i64,
    /// When it was last changed, seconds since 1970.
    pub updated_at: i64,
    /// When it was withdrawn, seconds since 1970.
    pub withdrawn_at: Option<i64>,
}

impl From<StoredFeedback> for FeedbackCard {
    fn from(feedback: StoredFeedback) -> Self {
        let (inference_id, episode_id, choice) = match feedback.target {
            FeedbackTarget::Completion { id, choice } => (Some(id), None, Some(choice)),
            FeedbackTarget::Episode(episode) => (None, Some(episode), None),
        };
        Self {
            id: feedback.id,
            object: "feedback",
            inference_id,
            episode_id,
            choice,
            metric_name: feedback.metric,
            kind: feedback.kind.name(),
            value: feedback.value,
            tags: feedback.tags,
            created_at: feedback.created_ms / 1000,
            updated_at: feedback.updated_ms / 1000,
            withdrawn_at: feedback.withdrawn_ms.map(|ms| ms / 1000),
        }
    }
}

/// The answer to the erasure of a user.
#[derive(Clone, Debug, Serialize)]
pub struct UserErased {
    /// Always `user.erased`.
    pub object: &'static str,
    /// Completions that are gone.
    pub completions: u64,
    /// Feedback that is gone: the user's, and that on the user's completions.
    pub feedback: u64,
    /// What has learned from the user, as far as it was not erased before.
    pub generations: Vec<LearnedCard>,
    /// Rounds of the learning loop that were about to, and are cancelled.
    pub rounds: Vec<String>,
}

/// Feedback that was withdrawn.
#[derive(Clone, Debug, Serialize)]
pub struct FeedbackWithdrawn {
    /// What is left of it.
    #[serde(flatten)]
    pub card: FeedbackCard,
    /// What has learned from it.
    pub generations: Vec<LearnedCard>,
}
