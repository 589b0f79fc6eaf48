//! Graders on the wire: `/v1/fine_tuning/alpha/graders`, as `OpenAI` has them, and in jobs.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::fields::{Fields, as_string};
use crate::{
    http::error::ApiError,
    training::{Graded, Grader, GraderError},
};

/// Reads a grader that is at `place` of a request.
///
/// # Errors
/// The first field of it that cannot be used.
pub fn read_grader(value: &Value, place: &str) -> Result<Grader, ApiError> {
    Grader::read(value, place).map_err(|error| match error {
        GraderError::Invalid { place, reason } => ApiError::invalid(place, reason),
        GraderError::Unsupported { place, hint } => ApiError::Unsupported { param: place, hint },
    })
}

/// The body of `…/graders/run`.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// What grades.
    pub grader: Grader,
    /// The row.
    pub item: Map<String, Value>,
    /// The answer.
    pub sample: String,
}

impl RunRequest {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// The first one that is missing, unknown or of wrong type.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        fields.only(&["grader", "item", "model_sample"])?;
        Ok(Self {
            grader: read_grader(fields.require("grader")?, "grader")?,
            item: fields.object("item")?.cloned().unwrap_or_default(),
            sample: as_string(fields.require("model_sample")?, "model_sample")?.to_owned(),
        })
    }
}

/// What a grader said of an answer.
#[derive(Clone, Debug, Serialize)]
pub struct RunCard {
    /// What the answer is worth.
    pub reward: f64,
    /// Of a `multi`, what its graders said.
    pub sub_rewards: Map<String, Value>,
    /// How it came about.
    pub metadata: Value,
    /// Always empty: no model grades.
    pub model_grader_token_usage_per_model: Map<String, Value>,
}

impl RunCard {
    /// What `grader` said, and how long that took.
    pub fn new(grader: &Grader, said: &Graded, took: Duration) -> Self {
        let sub_rewards: Map<String, Value> =
            said.sub_rewards.iter().map(|(name, reward)| (name.clone(), json!(reward))).collect();
        let errors = json!({
            "formula_parse_error": false,
            "sample_parse_error": said.is_unparsed,
            "truncated_observation_error": said.is_truncated,
            "unresponsive_reward_error": false,
            "invalid_variable_error": said.missing.is_some(),
            // Ours: which one.
            "invalid_variable_error_details": said.missing,
            // A formula that came to no finite number.
            "other_error": said.is_not_finite,
            "python_grader_server_error": false,
            "python_grader_server_error_type": null,
            "python_grader_runtime_error": false,
            "python_grader_runtime_error_details": null,
            "model_grader_server_error": false,
            "model_grader_refusal_error": false,
            "model_grader_parse_error": false,
            "model_grader_server_error_details": null,
        });
        let metadata = json!({
            "name": grader.name(),
            "type": grader.kind(),
            "errors": errors,
            "execution_time": took.as_secs_f64(),
            "scores": sub_rewards,
            "token_usage": null,
            "sampled_model_name": null,
        });
        let model_grader_token_usage_per_model = Map::new();
        Self { reward: said.reward, sub_rewards, metadata, model_grader_token_usage_per_model }
    }
}
