//! `method` of a fine-tuning job: what is minimized, by which settings, and what answers are worth.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::{
    fields::{Fields, as_integer, as_number, as_string, wrong_type},
    graders::read_grader,
};
use crate::{
    http::error::ApiError,
    training::{Auto, Hyperparameters, JobSpec, Method},
};

pub(crate) const BATCH_SIZES: RangeInclusive<i64> = 1..=1024;
pub(crate) const EPOCHS: RangeInclusive<i64> = 1..=50;
pub(crate) const RANKS: RangeInclusive<i64> = 1..=256;
const RATE_MULTIPLIERS: RangeInclusive<f32> = 0.0001..=1000.0;
pub(crate) const BETAS: RangeInclusive<f32> = 0.0001..=10.0;
const COMPUTE_MULTIPLIERS: RangeInclusive<f32> = 0.0001..=10.0;
const EVAL_INTERVALS: RangeInclusive<i64> = 1..=1_000_000;
const EVAL_SAMPLES: RangeInclusive<i64> = 1..=64;
const COMPLETION_TOKENS: RangeInclusive<i64> = 1..=2048;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct AskedMethod {
    /// What is minimized.
    pub method: Method,
    /// How.
    pub hyperparameters: Hyperparameters,
    /// See [`JobSpec::early_stopping`].
    pub early_stopping: Option<u32>,
    /// See [`JobSpec::grader`].
    pub grader: Option<Value>,
}

impl AskedMethod {
    /// Reads `method`, or the older `hyperparameters` beside it.
    ///
    /// # Errors
    /// The first field that is missing, unknown, of wrong type, out of range or not supported.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        let old = fields.object("hyperparameters")?;
        let Some(object) = fields.object("method")? else {
            let mut asked = Self::of(Method::Supervised);
            if let Some(old) = old {
                asked.read_settings(old, "hyperparameters")?;
            }
            return Ok(asked);
        };
        if old.is_some() {
            let reason = "with 'method' they are in it";
            return Err(ApiError::invalid("hyperparameters", reason));
        }
        let kind = object.get("type").ok_or_else(|| missing("method.type"))?;
        let kind = as_string(kind, "method.type")?;
        let Some(method) = Method::ALL.into_iter().find(|method| method.name() == kind) else {
            let reason = format!("{kind:?} is none of supervised, dpo, kto, reinforcement");
            return Err(ApiError::invalid("method.type", reason));
        };
        if let Some(unknown) = object.keys().find(|key| *key != "type" && *key != kind) {
            return Err(ApiError::invalid(format!("method.{unknown}"), "there is no such field"));
        }
        let mut asked = Self::of(method);
        let place = format!("method.{kind}");
        match object.get(kind) {
            None | Some(Value::Null) if method == Method::Reinforcement => {
                return Err(missing(&place));
            }
            None | Some(Value::Null) => {}
            Some(Value::Object(of_method)) => asked.read_body(of_method, &place)?,
            Some(other) => return Err(wrong_type(&place, "an object", other)),
        }
        Ok(asked)
    }

    fn of(method: Method) -> Self {
        let hyperparameters = Hyperparameters::default();
        Self { method, hyperparameters, early_stopping: None, grader: None }
    }

    fn read_body(&mut self, body: &Map<String, Value>, place: &str) -> Result<(), ApiError> {
        let is_reinforcement = self.method == Method::Reinforcement;
        for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
            let param = format!("{place}.{name}");
            match (name.as_str(), value) {
                ("hyperparameters", Value::Object(settings)) => {
                    self.read_settings(settings, &param)?;
                }
                ("hyperparameters", other) => return Err(wrong_type(&param, "an object", other)),
                ("grader", grader) if is_reinforcement => {
                    read_grader(grader, &param)?;
                    self.grader = Some(grader.clone());
                }
                ("response_format", format) if is_reinforcement => {
                    if format["type"] != "text" {
                        let hint = ": answers are texts, of any form";
                        return Err(ApiError::Unsupported { param, hint });
                    }
                }
                _ => return Err(ApiError::invalid(param, "there is no such field")),
            }
        }
        if is_reinforcement && self.grader.is_none() {
            return Err(missing(&format!("{place}.grader")));
        }
        Ok(())
    }

    fn read_settings(
        &mut self,
        settings: &Map<String, Value>,
        place: &str,
    ) -> Result<(), ApiError> {
        let read = &mut self.hyperparameters;
        for (name, value) in settings {
            let param = format!("{place}.{name}");
            if value.is_null() || value.as_str() == Some("auto") {
                continue;
            }
            // The bounds are those of a u32, so the conversion cannot fail.
            let count = |bounds| {
                let count = as_integer(value, &param, bounds)?;
                Ok::<_, ApiError>(Auto::Set(u32::try_from(count).unwrap_or(1)))
            };
            let number =
                |bounds| Ok::<_, ApiError>(Auto::Set(f64::from(as_number(value, &param, bounds)?)));
            let is_reinforcement = self.method == Method::Reinforcement;
            match name.as_str() {
                "batch_size" => read.batch_size = count(BATCH_SIZES)?,
                "n_epochs" => read.n_epochs = count(EPOCHS)?,
                "lora_rank" => read.lora_rank = count(RANKS)?,
                "learning_rate_multiplier" => {
                    read.learning_rate_multiplier = number(RATE_MULTIPLIERS)?;
                }
                "beta" if self.method == Method::Supervised => {
                    let reason = "it is a setting of dpo, kto and reinforcement";
                    return Err(ApiError::invalid(param, reason));
                }
                "beta" => read.beta = number(BETAS)?,
                "early_stopping" => self.early_stopping = Some(count(EPOCHS)?.or(1)),
                "compute_multiplier" if is_reinforcement => {
                    read.compute_multiplier = number(COMPUTE_MULTIPLIERS)?;
                }
                "eval_interval" if is_reinforcement => read.eval_interval = count(EVAL_INTERVALS)?,
                "eval_samples" if is_reinforcement => read.eval_samples = count(EVAL_SAMPLES)?,
                "max_completion_tokens" if is_reinforcement => {
                    read.max_completion_tokens = count(COMPLETION_TOKENS)?;
                }
                "reasoning_effort" if is_reinforcement => {
                    if value != "default" {
                        let hint = ": the model has no levels of it";
                        return Err(ApiError::Unsupported { param, hint });
                    }
                }
                _ => return Err(ApiError::invalid(param, "there is no such field")),
            }
        }
        Ok(())
    }
}

fn missing(param: &str) -> ApiError {
    ApiError::Missing { param: param.to_owned() }
}

/// The settings and the method of a job, in both places where clients look for them.
pub fn shown(spec: &JobSpec) -> (Value, Value) {
    let asked = &spec.hyperparameters;
    let mut settings = json!({
        "batch_size": asked.batch_size,
        "learning_rate_multiplier": asked.learning_rate_multiplier,
        "n_epochs": asked.n_epochs,
        "lora_rank": asked.lora_rank,
    });
    if let Some(patience) = spec.early_stopping {
        settings["early_stopping"] = json!(patience);
    }
    let plain = settings.clone();
    if spec.method != Method::Supervised {
        settings["beta"] = json!(asked.beta);
    }
    if spec.method == Method::Reinforcement {
        settings["compute_multiplier"] = json!(asked.compute_multiplier);
        settings["eval_interval"] = json!(asked.eval_interval);
        settings["eval_samples"] = json!(asked.eval_samples);
        settings["max_completion_tokens"] = json!(asked.max_completion_tokens);
    }
    let mut of_method = json!({"hyperparameters": settings});
    if let Some(grader) = &spec.grader {
        of_method["grader"] = grader.clone();
    }
    let name = spec.method.name();
    (plain, json!({"type": name, name: of_method}))
}
