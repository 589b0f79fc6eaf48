//! Fine-tuning jobs, as `OpenAI` has them.

use pleach_adapters::registry::is_hidden;
use pleach_engine::train::ProductPrecision;
use pleach_store::{JobError, Metadata, StoredCheckpoint, StoredEvent, StoredJob};
use serde::Serialize;
use serde_json::Value;

use super::{
    fields::{Fields, as_string},
    hidden_names::without_hidden,
    metadata::read_metadata,
    training_method::{self, AskedMethod},
};
use crate::{
    http::{error::ApiError, ids},
    training::JobSpec,
};

/// Longest suffix of a model's name, characters (`OpenAI`'s limit).
const SUFFIX_CHARS_MAX: usize = 64;
/// Largest seed (`OpenAI`'s limit), so that a seed is the same number in every language.
const SEED_MAX: i64 = (1 << 31) - 1;

/// The body of `POST /v1/fine_tuning/jobs`.
#[derive(Clone, Debug)]
pub struct JobRequest {
    /// The base.
    pub model: String,
    /// A file of rows.
    pub training_file: String,
    /// Another.
    pub validation_file: Option<String>,
    /// Method, settings, seed, suffix.
    pub spec: JobSpec,
    /// Pairs to find it by.
    pub metadata: Metadata,
}

impl JobRequest {
    /// Reads and checks the fields. There are no others: a slip in a name must not go unnoticed for the hours of a training.
    ///
    /// # Errors
    /// The first field that is missing, unknown, of wrong type, out of range or not supported.
    pub fn read(fields: &Fields) -> Result<Self, ApiError> {
        fields.only(&[
            "model",
            "training_file",
            "validation_file",
            "suffix",
            "seed",
            "method",
            "hyperparameters",
            "metadata",
            "integrations",
        ])?;
        let integrations = fields.list("integrations")?;
        if integrations.is_some_and(|integrations| !integrations.is_empty()) {
            let hint = ": events and metrics are here";
            return Err(ApiError::Unsupported { param: "integrations".to_owned(), hint });
        }
        let text = |name| as_string(fields.require(name)?, name).map(str::to_owned);
        let AskedMethod { method, hyperparameters, early_stopping, grader } =
            AskedMethod::read(fields)?;
        // Of the system's generator, unless it is to be the same as another's.
        #[expect(clippy::cast_possible_wrap, reason = "31 bits")]
        let drawn = (ids::random_u64() >> 33) as i64;
        let seed = fields.integer("seed", 0..=SEED_MAX)?.unwrap_or(drawn).unsigned_abs();
        let suffix = fields.string("suffix")?.map(read_suffix).transpose()?;
        let validation_file = fields.string("validation_file")?.map(str::to_owned);
        if early_stopping.is_some() && validation_file.is_none() {
            let reason =
                "'early_stopping' needs it: the best model is the one with the least loss there";
            return Err(ApiError::invalid("validation_file", reason));
        }
        Ok(Self {
            model: text("model")?,
            training_file: text("training_file")?,
            validation_file,
            spec: JobSpec {
                method,
                hyperparameters,
                seed,
                // Of the server, when the job is made.
                precision: ProductPrecision::default(),
                suffix,
                round: None,
                early_stopping,
                parent: None,
                shape_of: None,
                grader,
            },
            metadata: read_metadata(fields, "metadata")?,
        })
    }
}

fn read_suffix(suffix: &str) -> Result<String, ApiError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if suffix.is_empty() || suffix.len() > SUFFIX_CHARS_MAX || !suffix.bytes().all(is_plain) {
        let reason =
            format!("it has to be 1 to {SUFFIX_CHARS_MAX} letters, digits, `-`, `_` or `.`");
        return Err(ApiError::invalid("suffix", reason));
    }
    Ok(suffix.to_owned())
}

/// A job.
#[derive(Clone, Debug, Serialize)]
pub struct JobCard {
    /// `ftjob-…`.
    pub id: String,
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    /// When it ended.
    pub finished_at: Option<i64>,
    /// When it may be expected to end.
    pub estimated_finish: Option<i64>,
    /// What is trained.
    pub model: String,
    /// The generation that it goes on from, if that is an adapter's. Ours.
    pub parent: Option<String>,
    /// What came of it.
    pub fine_tuned_model: Option<String>,
    /// Whose it is.
    pub organization_id: String,
    /// `validating_files`, `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// As it was asked for.
    pub hyperparameters: Value,
    /// As it was asked for.
    pub method: Value,
    /// Of all that is random.
    pub seed: u64,
    /// Rows.
    pub training_file: String,
    /// Rows that are not learned from.
    pub validation_file: Option<String>,
    /// Files of what was measured.
    pub result_files: Vec<String>,
    /// Tokens that were learned from.
    pub trained_tokens: Option<u64>,
    /// Why it failed.
    pub error: Option<JobErrorCard>,
    /// Always empty.
    pub integrations: [(); 0],
    /// Pairs that it is found by.
    pub metadata: Metadata,
    /// Part of the model's name.
    pub user_provided_suffix: Option<String>,
}

/// Why a job failed.
#[derive(Clone, Debug, Serialize)]
pub struct JobErrorCard {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What of the request is at fault.
    pub param: Option<String>,
}

impl From<JobError> for JobErrorCard {
    fn from(JobError { code, message, param }: JobError) -> Self {
        Self { code, message: without_hidden(message), param }
    }
}

impl From<StoredJob> for JobCard {
    fn from(job: StoredJob) -> Self {
        let spec: Option<JobSpec> = serde_json::from_str(&job.spec).ok();
        let seconds = |ms: i64| ms / 1000;
        let (hyperparameters, method) =
            spec.as_ref().map_or((Value::Null, Value::Null), training_method::shown);
        Self {
            id: job.id,
            object: "fine_tuning.job",
            created_at: seconds(job.created_ms),
            finished_at: job.finished_ms.map(seconds),
            estimated_finish: job.estimated_finish_ms.map(seconds),
            model: job.model,
            parent: spec.as_ref().and_then(|spec| Some(spec.parent?.to_string())),
            // A round's model is asked for by the name of its adapter, once it serves.
            fine_tuned_model: job.fine_tuned_model.filter(|name| !is_hidden(name)),
            organization_id: job.owner.to_string(),
            status: job.status.name(),
            hyperparameters,
            method,
            seed: spec.as_ref().map_or(0, |spec| spec.seed),
            training_file: job.training_file,
            validation_file: job.validation_file,
            result_files: job.result_file.into_iter().collect(),
            trained_tokens: job.trained_tokens,
            error: job.error.map(JobErrorCard::from),
            integrations: [],
            metadata: job.metadata,
            user_provided_suffix: spec.and_then(|spec| spec.suffix),
        }
    }
}

/// An event of a job.
#[derive(Clone, Debug, Serialize)]
pub struct JobEventCard {
    /// `ftevent-…`.
    pub id: String,
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    /// For people.
    pub message: String,
    /// `message` or `metrics`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What was measured.
    pub data: Option<Value>,
}

const EVENT_PREFIX: &str = "ftevent-";

impl From<StoredEvent> for JobEventCard {
    fn from(event: StoredEvent) -> Self {
        let job = event.job.strip_prefix("ftjob-").unwrap_or(&event.job);
        Self {
            id: format!("{EVENT_PREFIX}{job}-{}", event.number),
            object: "fine_tuning.job.event",
            created_at: event.created_ms / 1000,
            level: event.event.level.name(),
            message: without_hidden(event.event.message),
            kind: if event.event.metrics.is_some() { "metrics" } else { "message" },
            data: event.event.metrics,
        }
    }
}

/// The number in the id of an event.
pub fn event_number(id: &str) -> Option<&str> {
    id.strip_prefix(EVENT_PREFIX)?.rsplit_once('-').map(|(_, number)| number)
}

/// A model on the way.
#[derive(Clone, Debug, Serialize)]
pub struct JobCheckpointCard {
    /// `ftckpt-…`.
    pub id: String,
    /// Always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Its job.
    pub fine_tuning_job_id: String,
    /// The name that it is served by.
    pub fine_tuned_model_checkpoint: String,
    /// After so many steps of the optimizer.
    pub step_number: u64,
    /// What was measured there.
    pub metrics: Value,
}

impl From<StoredCheckpoint> for JobCheckpointCard {
    fn from(checkpoint: StoredCheckpoint) -> Self {
        Self {
            id: checkpoint.id,
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_ms / 1000,
            fine_tuning_job_id: checkpoint.job,
            fine_tuned_model_checkpoint: without_hidden(checkpoint.model),
            step_number: checkpoint.step,
            metrics: checkpoint.metrics,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training::{Auto, Hyperparameters, Method};

    fn read(extra: &Value) -> Result<JobRequest, ApiError> {
        let mut body = json!({"model": "tiny", "training_file": "file-1"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        JobRequest::read(&Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn methods_and_their_settings_are_read_where_clients_write_them() {
        let auto = read(&json!({})).unwrap();
        assert_eq!(auto.spec.method, Method::Supervised);
        assert_eq!(auto.spec.hyperparameters, Hyperparameters::default());
        assert!(auto.spec.seed <= SEED_MAX.unsigned_abs());
        let old =
            read(&json!({"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}, "seed": 7}));
        let old = old.unwrap().spec;
        assert_eq!((old.hyperparameters.n_epochs, old.seed), (Auto::Set(2), 7));
        let method =
            json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.5, "lora_rank": 4}}});
        let dpo = read(&json!({"method": method, "suffix": "cats"})).unwrap().spec;
        assert_eq!((dpo.method, dpo.hyperparameters.beta), (Method::Dpo, Auto::Set(0.5)));
        assert_eq!(dpo.hyperparameters.lora_rank, Auto::Set(4));
        assert_eq!(dpo.suffix.as_deref(), Some("cats"));
        let stops = json!({"validation_file": "file-2", "hyperparameters": {"early_stopping": 3}});
        let stops = read(&stops).unwrap().spec;
        assert_eq!(stops.early_stopping, Some(3));
        assert_eq!(training_method::shown(&stops).0["early_stopping"], 3);
    }

    fn grader() -> Value {
        json!({"type": "string_check", "name": "c", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.x}}"})
    }

    fn rewards(grader: &Value, settings: &Value) -> Value {
        let method = json!({"grader": grader, "hyperparameters": settings});
        json!({"method": {"type": "reinforcement", "reinforcement": method}})
    }

    #[test]
    fn graders_and_what_is_sampled_are_kept_and_shown_as_they_were_asked_for() {
        let settings = json!({
            "compute_multiplier": 2, "eval_interval": 5, "eval_samples": 3, "reasoning_effort": "default",
            "max_completion_tokens": 64, "n_epochs": 2, "beta": 0.01,
        });
        let mut asked = rewards(&grader(), &settings);
        asked["method"]["reinforcement"]["response_format"] = json!({"type": "text"});
        let spec = read(&asked).unwrap().spec;
        assert_eq!((spec.method, spec.grader.clone()), (Method::Reinforcement, Some(grader())));
        assert_eq!(spec.hyperparameters.compute_multiplier, Auto::Set(2.0));
        let again: JobSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
        let (plain, method) = training_method::shown(&spec);
        let expected = json!({
            "batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": 2, "lora_rank": "auto",
        });
        assert_eq!(plain, expected);
        let shown = &method["reinforcement"];
        assert_eq!((&method["type"], &shown["grader"]), (&json!("reinforcement"), &grader()));
        let settings = json!({
            "batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": 2, "lora_rank": "auto",
            "beta": 0.01, "compute_multiplier": 2.0, "eval_interval": 5, "eval_samples": 3,
            "max_completion_tokens": 64,
        });
        let shown = shown["hyperparameters"].as_object().unwrap().clone();
        let near =
            |name: &str| (shown[name].as_f64().unwrap() - settings[name].as_f64().unwrap()).abs();
        assert!(near("beta") < 1e-6);
        let others = |value: Value| {
            let mut value = value.as_object().unwrap().clone();
            value.remove("beta");
            value
        };
        assert_eq!(others(Value::Object(shown.clone())), others(settings));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_place() {
        for (extra, param) in [
            (json!({"model": null}), "model"),
            (json!({"training_file": null}), "training_file"),
            (json!({"epochs": 3}), "epochs"),
            (json!({"seed": -1}), "seed"),
            (json!({"suffix": "a b"}), "suffix"),
            (json!({"suffix": "x".repeat(65)}), "suffix"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"hyperparameters": {"n_epochs": 0}}), "hyperparameters.n_epochs"),
            (json!({"hyperparameters": {"n_epochs": "many"}}), "hyperparameters.n_epochs"),
            (json!({"hyperparameters": {"epochs": 1}}), "hyperparameters.epochs"),
            (json!({"hyperparameters": {"early_stopping": 2}}), "validation_file"),
            (
                json!({"hyperparameters": {"early_stopping": 0}, "validation_file": "file-2"}),
                "hyperparameters.early_stopping",
            ),
            (json!({"method": {}}), "method.type"),
            (json!({"method": {"type": "magic"}}), "method.type"),
            (json!({"method": {"type": "reinforcement"}}), "method.reinforcement"),
            (
                json!({"method": {"type": "reinforcement", "reinforcement": {}}}),
                "method.reinforcement.grader",
            ),
            (
                rewards(&json!({"type": "python", "name": "p", "source": ""}), &json!({})),
                "method.reinforcement.grader.type",
            ),
            (
                rewards(&json!({"type": "string_check", "name": "c"}), &json!({})),
                "method.reinforcement.grader.operation",
            ),
            (
                rewards(&grader(), &json!({"reasoning_effort": "high"})),
                "method.reinforcement.hyperparameters.reasoning_effort",
            ),
            (
                rewards(&grader(), &json!({"compute_multiplier": 0})),
                "method.reinforcement.hyperparameters.compute_multiplier",
            ),
            (
                rewards(&grader(), &json!({"eval_interval": 0})),
                "method.reinforcement.hyperparameters.eval_interval",
            ),
            (
                rewards(&grader(), &json!({"eval_samples": 0})),
                "method.reinforcement.hyperparameters.eval_samples",
            ),
            (
                json!({"method": {"type": "reinforcement", "reinforcement": {"grader": grader(), "response_format": {"type": "json_schema"}}}}),
                "method.reinforcement.response_format",
            ),
            (json!({"method": {"type": "dpo", "dpo": {"grader": grader()}}}), "method.dpo.grader"),
            (
                json!({"method": {"type": "dpo", "dpo": {"hyperparameters": {"eval_samples": 2}}}}),
                "method.dpo.hyperparameters.eval_samples",
            ),
            (json!({"method": {"type": "dpo", "supervised": {}}}), "method.supervised"),
            (json!({"method": {"type": "dpo", "dpo": 3}}), "method.dpo"),
            (json!({"method": {"type": "dpo", "dpo": {"beta": 1}}}), "method.dpo.beta"),
            (
                json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}}),
                "method.supervised.hyperparameters.beta",
            ),
            (json!({"method": {"type": "dpo"}, "hyperparameters": {}}), "hyperparameters"),
        ] {
            let error = read(&extra).unwrap_err();
            assert_eq!(error.envelope().error.param.as_deref(), Some(param), "{extra}");
        }
    }

    #[test]
    fn events_are_asked_for_after_one() {
        assert_eq!(event_number("ftevent-018b-17"), Some("17"));
        assert_eq!(event_number("17"), None);
    }
}
