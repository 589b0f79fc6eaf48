//! What a job was asked to do: method, settings, seed. Kept with the job as JSON.

use pleach_engine::train::ProductPrecision;
use pleach_store::GenerationDigest;
use pleach_trainer::recipe::{Hyperparameters, Method, Recipe, precision_name};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapter_service::candidate_name;

/// What is asked of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What is minimized.
    pub method: Method,
    /// How.
    pub hyperparameters: Hyperparameters,
    /// Of everything that is random.
    pub seed: u64,
    /// Of products with frozen weights: that of the server that took the job, whoever goes on with it.
    #[serde(default, with = "precision_name")]
    pub precision: ProductPrecision,
    /// Part of the model's name.
    #[serde(default)]
    pub suffix: Option<String>,
    /// The round of the learning loop that it belongs to; never a client's to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<String>,
    /// Ends after so many epochs whose validation loss is not better, and keeps the best epoch's model; `None` makes all
    /// epochs and keeps the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<u32>,
    /// The generation of the owner's that it goes on from; `None` is the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<GenerationDigest>,
    /// The generation of the owner's whose sites, ranks and scales it gets, although it begins at the base; `None`: all
    /// linears, by the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape_of: Option<GenerationDigest>,
    /// What answers are worth, in a training by rewards; as it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grader: Option<Value>,
}

impl JobSpec {
    /// The name that the model of this job gets: one that can be asked for, unless it is a round's, which decides later.
    pub fn name_of(&self, base: &str, org: &str, job: &str) -> String {
        match &self.round {
            Some(_) => candidate_name(job),
            None => model_name(base, org, self.suffix.as_deref(), job),
        }
    }

    /// What of it does not depend on who asks.
    pub fn recipe(&self) -> Recipe {
        let Self { method, hyperparameters, seed, precision, .. } = *self;
        Recipe { method, hyperparameters, seed, precision }
    }
}

/// The name by which a job's model is served: `ft:BASE:ORG:SUFFIX:ID`.
pub fn model_name(base: &str, org: &str, suffix: Option<&str>, job: &str) -> String {
    // The last digits are random; those before are the time.
    let id = job.get(job.len().saturating_sub(8)..).unwrap_or(job);
    format!("ft:{base}:{org}:{}:{id}", suffix.unwrap_or_default())
}

/// The name by which a model on the way is served.
pub fn checkpoint_name(model: &str, step: u64) -> String {
    format!("{model}:ckpt-step-{step}")
}

#[cfg(test)]
mod tests {
    use pleach_trainer::recipe::Auto;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_auto_stays_auto_and_numbers_stay_numbers() {
        let text = json!({
            "method": "dpo", "seed": 3, "suffix": "x",
            "hyperparameters": {"batch_size": 4, "learning_rate_multiplier": "auto", "n_epochs": 2, "beta": 0.5},
        });
        let spec: JobSpec = serde_json::from_value(text).unwrap();
        assert_eq!(spec.hyperparameters.batch_size, Auto::Set(4));
        assert_eq!(spec.hyperparameters.lora_rank, Auto::Auto);
        // As jobs of before have none.
        assert_eq!(spec.precision, ProductPrecision::F32);
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written["hyperparameters"]["learning_rate_multiplier"], "auto");
        assert_eq!(written["hyperparameters"]["beta"], 0.5);
        assert_eq!(serde_json::from_value::<JobSpec>(written.clone()).unwrap(), spec);
        let mut rounded = written;
        rounded["precision"] = json!("bf16");
        let rounded: JobSpec = serde_json::from_value(rounded).unwrap();
        assert_eq!(rounded.recipe().precision, ProductPrecision::Bf16);
        let unknown = serde_json::from_value::<JobSpec>(json!({
            "method": "dpo", "seed": 3, "hyperparameters": {}, "precision": "f16",
        }));
        assert!(
            unknown.unwrap_err().to_string().contains("unknown precision \"f16\": f32 or bf16")
        );
        assert!(serde_json::from_value::<Auto<u32>>(json!("many")).is_err());
    }

    #[test]
    fn names_are_those_of_openai() {
        let job = "ftjob-018bcfe568000123456789abcdef0123";
        let name = model_name("tiny", "shared", Some("cats"), job);
        assert_eq!(name, "ft:tiny:shared:cats:cdef0123");
        assert_eq!(model_name("tiny", "o", None, job), "ft:tiny:o::cdef0123");
        assert_eq!(checkpoint_name(&name, 9), "ft:tiny:shared:cats:cdef0123:ckpt-step-9");
    }
}
