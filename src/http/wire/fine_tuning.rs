//! Fine-tuning jobs, as `OpenAI` has them.

use std::ops::RangeInclusive;

use pleach_engine::train::ProductPrecision;
use pleach_store::{JobError, Metadata, StoredCheckpoint, StoredEvent, StoredJob};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    fields::{Fields, as_integer, as_number, as_string, wrong_type},
    metadata::read_metadata,
};
use crate::{
    http::{error::ApiError, ids},
    training::{Auto, Hyperparameters, JobSpec, Method},
};

/// Longest suffix of a model's name, characters (`OpenAI`'s limit).
const SUFFIX_CHARS_MAX: usize = 64;
/// Largest seed (`OpenAI`'s limit), so that a seed is the same number in every language.
const SEED_MAX: i64 = (1 << 31) - 1;
const BATCH_SIZES: RangeInclusive<i64> = 1..=1024;
const EPOCHS: RangeInclusive<i64> = 1..=50;
const RANKS: RangeInclusive<i64> = 1..=256;
const RATE_MULTIPLIERS: RangeInclusive<f32> = 0.0001..=1000.0;
const BETAS: RangeInclusive<f32> = 0.0001..=10.0;

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
        let (method, Settings { hyperparameters, early_stopping }) = read_method(fields)?;
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

/// `method`, or the older `hyperparameters` beside it.
fn read_method(fields: &Fields) -> Result<(Method, Settings), ApiError> {
    let old = fields.object("hyperparameters")?;
    let Some(object) = fields.object("method")? else {
        let settings = old.map(|old| read_settings(old, "hyperparameters")).transpose()?;
        return Ok((Method::Supervised, settings.unwrap_or_default()));
    };
    if old.is_some() {
        let reason = "with 'method' they are in it";
        return Err(ApiError::invalid("hyperparameters", reason));
    }
    let kind = object.get("type").ok_or_else(|| missing("method.type"))?;
    let kind = as_string(kind, "method.type")?;
    if kind == "reinforcement" {
        let (param, hint) = ("method.type".to_owned(), ": supervised, dpo and kto are");
        return Err(ApiError::Unsupported { param, hint });
    }
    let Some(method) = Method::ALL.into_iter().find(|method| method.name() == kind) else {
        let reason = format!("{kind:?} is none of supervised, dpo, kto");
        return Err(ApiError::invalid("method.type", reason));
    };
    if let Some(unknown) = object.keys().find(|key| *key != "type" && *key != kind) {
        return Err(ApiError::invalid(format!("method.{unknown}"), "there is no such field"));
    }
    let place = format!("method.{kind}");
    let settings = match object.get(kind) {
        None | Some(Value::Null) => None,
        Some(Value::Object(of_method)) => {
            if let Some(unknown) = of_method.keys().find(|key| *key != "hyperparameters") {
                return Err(ApiError::invalid(
                    format!("{place}.{unknown}"),
                    "there is no such field",
                ));
            }
            of_method.get("hyperparameters").filter(|value| !value.is_null())
        }
        Some(other) => return Err(wrong_type(&place, "an object", other)),
    };
    let place = format!("{place}.hyperparameters");
    let settings = match settings {
        None => Settings::default(),
        Some(Value::Object(settings)) => read_settings(settings, &place)?,
        Some(other) => return Err(wrong_type(&place, "an object", other)),
    };
    if method == Method::Supervised && settings.hyperparameters.beta != Auto::Auto {
        return Err(ApiError::invalid(format!("{place}.beta"), "it is a setting of dpo and kto"));
    }
    Ok((method, settings))
}

fn missing(param: &str) -> ApiError {
    ApiError::Missing { param: param.to_owned() }
}

/// What is in `hyperparameters`.
#[derive(Default)]
struct Settings {
    hyperparameters: Hyperparameters,
    early_stopping: Option<u32>,
}

fn read_settings(settings: &Map<String, Value>, place: &str) -> Result<Settings, ApiError> {
    let mut read = Hyperparameters::default();
    let mut early_stopping = None;
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
        match name.as_str() {
            "batch_size" => read.batch_size = count(BATCH_SIZES)?,
            "n_epochs" => read.n_epochs = count(EPOCHS)?,
            "lora_rank" => read.lora_rank = count(RANKS)?,
            "learning_rate_multiplier" => {
                read.learning_rate_multiplier = number(RATE_MULTIPLIERS)?;
            }
            "beta" => read.beta = number(BETAS)?,
            "early_stopping" => early_stopping = Some(count(EPOCHS)?.or(1)),
            _ => return Err(ApiError::invalid(param, "there is no such field")),
        }
    }
    Ok(Settings { hyperparameters: read, early_stopping })
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
        Self { code, message, param }
    }
}

impl From<StoredJob> for JobCard {
    fn from(job: StoredJob) -> Self {
        let spec: Option<JobSpec> = serde_json::from_str(&job.spec).ok();
        let seconds = |ms: i64| ms / 1000;
        let (hyperparameters, method) = spec.as_ref().map_or((Value::Null, Value::Null), settings);
        Self {
            id: job.id,
            object: "fine_tuning.job",
            created_at: seconds(job.created_ms),
            finished_at: job.finished_ms.map(seconds),
            estimated_finish: job.estimated_finish_ms.map(seconds),
            model: job.model,
            parent: spec.as_ref().and_then(|spec| Some(spec.parent?.to_string())),
            fine_tuned_model: job.fine_tuned_model,
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

/// The settings in both places where clients look for them.
fn settings(spec: &JobSpec) -> (Value, Value) {
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
    let name = spec.method.name();
    (plain, json!({"type": name, name: {"hyperparameters": settings}}))
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
            message: event.event.message,
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
            fine_tuned_model_checkpoint: checkpoint.model,
            step_number: checkpoint.step,
            metrics: checkpoint.metrics,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(settings(&stops).0["early_stopping"], 3);
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
            (json!({"method": {"type": "reinforcement"}}), "method.type"),
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
