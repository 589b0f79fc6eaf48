//! What the owner of an adapter wants of the loop: a JSON document, all of whose fields have defaults and none of which is
//! unknown.

use std::collections::BTreeMap;

use pleach_trainer::{TrainerError, gate::GateSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    http::wire::{
        feedback::check_metric,
        training_method::{BATCH_SIZES, BETAS, EPOCHS, RANKS},
    },
    training::{Auto, Hyperparameters},
};

/// Most folds: each is a training.
const FOLDS_MAX: u32 = 16;
/// Most questions that a candidate is asked.
const PROBES_MAX: usize = 64;
/// Longest question, bytes.
const PROBE_BYTES_MAX: usize = 4096;
/// Most stages of a canary.
const STAGES_MAX: usize = 8;
/// Most metrics that are learned from.
const METRICS_MAX: usize = 32;
/// Longest document, bytes of JSON: a round keeps it with all that becomes of it.
const DOCUMENT_BYTES_MAX: usize = 512 << 10;
/// Characters of a name that are shown of one that cannot be.
const SHOWN_CHARS: usize = 64;
/// Most requests of a phase, and most examples that are waited for.
const COUNT_MAX: u64 = 10_000_000;
/// Longest age that is waited for: ten years.
const AGE_HOURS_MAX: f64 = 87_600.0;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Whether rounds begin by themselves.
    pub is_on: bool,
    /// Whether the name may have no adapter: the base answers under it until the first candidate is promoted.
    pub begins_at_base: bool,
    /// When a round begins.
    pub train_when: TrainWhen,
    /// What is minimized.
    pub method: MethodChoice,
    /// What is learned from.
    pub signals: Signals,
    /// Largest share of the rows that one user may have.
    pub user_share_max: f64,
    /// Whether nothing is learned from users whom all others contradict.
    pub leaves_out_contradicted: bool,
    /// A file of trusted rows, in a format for training.
    pub anchors: Option<String>,
    /// Share of the training rows that are anchors.
    pub anchor_share: f64,
    /// Parts of the data; each is judged by an adapter that has not seen it.
    pub folds: u32,
    /// Of all jobs.
    pub hyperparameters: Hyperparameters,
    /// Of all that is random in a training.
    pub seed: u64,
    /// What a candidate has to be like.
    pub gate: GateSettings,
    /// What a candidate is asked; `None`: questions of our own.
    pub probes: Option<Vec<String>>,
    /// How a candidate that has passed comes into service.
    pub rollout: Rollout,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            is_on: true,
            begins_at_base: false,
            train_when: TrainWhen::default(),
            method: MethodChoice::Auto,
            signals: Signals::default(),
            user_share_max: 0.2,
            leaves_out_contradicted: true,
            anchors: None,
            anchor_share: 0.1,
            folds: 4,
            hyperparameters: Hyperparameters::default(),
            seed: 1,
            gate: GateSettings::default(),
            probes: None,
            rollout: Rollout::default(),
        }
    }
}

/// When a round begins; either is enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainWhen {
    /// So much feedback has come since the last round.
    pub examples: u64,
    /// The oldest of it is as old as that, hours.
    pub age_hours: Option<f64>,
}

impl Default for TrainWhen {
    fn default() -> Self {
        Self { examples: 64, age_hours: Some(24.0) }
    }
}

/// What is minimized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodChoice {
    /// Whatever there are most rows for.
    #[default]
    Auto,
    /// Cross-entropy of demonstrations.
    Supervised,
    /// Preferences over pairs: comparisons, and demonstrations before the answers that they correct.
    Dpo,
    /// Answers that were liked or not.
    Kto,
}

/// What is learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Signals {
    /// What an answer should have been.
    pub demonstrations: bool,
    /// Which of two answers is better.
    pub comparisons: bool,
    /// What values of a metric mean, by its name; other metrics mean nothing.
    pub metrics: BTreeMap<String, MetricRule>,
}

impl Default for Signals {
    fn default() -> Self {
        let metrics = [
            ("liked".to_owned(), MetricRule { good: Some(true), ..MetricRule::default() }),
            (
                "score".to_owned(),
                MetricRule { good_from: Some(4.0), bad_to: Some(2.0), ..MetricRule::default() },
            ),
        ];
        Self { demonstrations: true, comparisons: true, metrics: metrics.into() }
    }
}

/// What the values of a metric mean: `good` for yes and no, the other two for numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricRule {
    /// The value that is good; the other one is bad.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good: Option<bool>,
    /// Good from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_from: Option<f64>,
    /// Bad up to here. What is between says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_to: Option<f64>,
}

impl MetricRule {
    /// Whether a value is good; `None` if it says nothing.
    pub fn judge(&self, value: &Value) -> Option<bool> {
        if let Some(value) = value.as_bool() {
            return self.good.map(|good| good == value);
        }
        let value = value.as_f64()?;
        if self.good_from.is_some_and(|from| value >= from) {
            return Some(true);
        }
        self.bad_to.is_some_and(|to| value <= to).then_some(false)
    }
}

/// How a candidate that has passed comes into service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// Whether somebody has to approve first.
    pub approval: bool,
    /// Share of the requests that are run on the candidate too, for nobody to see, until so many were, before it answers
    /// anybody; `None`: no such stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Stage>,
    /// Shares of requests that go to the candidate, one stage after the other; none: all at once.
    pub canary: Vec<Stage>,
    /// When it is taken back.
    pub guardrails: Guardrails,
    /// Requests for which guardrails hold after it serves all.
    pub watch_requests: u64,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            approval: false,
            shadow: None,
            canary: vec![Stage { share: 0.05, requests: 100 }, Stage { share: 0.5, requests: 200 }],
            guardrails: Guardrails::default(),
            watch_requests: 200,
        }
    }
}

/// A stage of a canary, or of shadows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Of the users, those who get the candidate; of the requests, those that have a shadow.
    pub share: f64,
    /// Until the candidate has answered so many requests.
    pub requests: u64,
}

/// When a candidate is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guardrails {
    /// Largest share of the requests of a stage that may fail.
    pub error_share_max: f64,
    /// Largest ratio of times for each token, of candidate and current generation.
    pub latency_ratio_max: f64,
    /// So much larger may the share of feedback be that is negative.
    pub negative_share_more_max: f64,
    /// So much larger may the share of answers be that refuse.
    pub refusals_more_max: f64,
    /// Least and largest ratio of mean answer lengths.
    pub length_ratio: [f64; 2],
}

impl Default for Guardrails {
    fn default() -> Self {
        Self {
            error_share_max: 0.02,
            latency_ratio_max: 1.5,
            negative_share_more_max: 0.1,
            refusals_more_max: 0.1,
            length_ratio: [0.4, 2.5],
        }
    }
}

/// A field of a policy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PolicyProblem {
    /// Which, such as `rollout.canary[1].share`.
    pub field: String,
    /// Why.
    pub reason: String,
}

impl PolicyProblem {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

impl Policy {
    /// Reads and checks a document.
    ///
    /// # Errors
    /// The first field that is unknown, of wrong type or out of range.
    pub fn read(document: &Map<String, Value>) -> Result<Self, PolicyProblem> {
        let whole = Value::Object(document.clone());
        let policy: Self = serde_json::from_value(whole.clone())
            .map_err(|error| PolicyProblem::new(field_at_fault(&whole), error.to_string()))?;
        policy.check()?;
        policy.check_length()?;
        Ok(policy)
    }

    /// Of what is too long as a whole, the longest field is to blame.
    fn check_length(&self) -> Result<(), PolicyProblem> {
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else { return Ok(()) };
        let lengths = fields.iter().map(|(name, value)| (value.to_string().len(), name));
        let n_bytes: usize = lengths.clone().map(|(length, _)| length).sum();
        match lengths.max() {
            Some((length, longest)) if n_bytes > DOCUMENT_BYTES_MAX => {
                let reason = format!(
                    "it has {length} bytes of a policy of {n_bytes}, which may have {DOCUMENT_BYTES_MAX}"
                );
                Err(PolicyProblem::new(longest, reason))
            }
            _ => Ok(()),
        }
    }

    /// Checks all ranges.
    ///
    /// # Errors
    /// The first field that is out of its own.
    pub fn check(&self) -> Result<(), PolicyProblem> {
        within("train_when.examples", self.train_when.examples as f64, 1.0, COUNT_MAX as f64)?;
        if let Some(hours) = self.train_when.age_hours {
            within("train_when.age_hours", hours, 0.0, AGE_HOURS_MAX)?;
        }
        self.signals.check()?;
        within("user_share_max", self.user_share_max, f64::MIN_POSITIVE, 1.0)?;
        within("anchor_share", self.anchor_share, 0.0, 0.9)?;
        within("folds", f64::from(self.folds), 2.0, f64::from(FOLDS_MAX))?;
        if let Some(name) = self.hyperparameters.of_reinforcement() {
            let reason =
                "it is a setting of reinforcement, and nobody grades the answers of a round";
            return Err(PolicyProblem::new(format!("hyperparameters.{name}"), reason));
        }
        check_hyperparameters(&self.hyperparameters)?;
        self.gate.check().map_err(|error| {
            let field = if let TrainerError::Setting { setting, .. } = &error {
                format!("gate.{setting}")
            } else {
                "gate".to_owned()
            };
            PolicyProblem::new(field, error.to_string())
        })?;
        if let Some(probes) = &self.probes {
            let n_probes = probes.len();
            if n_probes == 0 || n_probes > PROBES_MAX {
                let reason = format!("{n_probes} questions, it has to be 1 to {PROBES_MAX}");
                return Err(PolicyProblem::new("probes", reason));
            }
            let is_bad = |probe: &String| probe.is_empty() || probe.len() > PROBE_BYTES_MAX;
            if let Some(index) = probes.iter().position(is_bad) {
                let reason = format!("it has to be 1 to {PROBE_BYTES_MAX} bytes");
                return Err(PolicyProblem::new(format!("probes[{index}]"), reason));
            }
        }
        self.rollout.check()
    }
}

impl Signals {
    fn check(&self) -> Result<(), PolicyProblem> {
        if self.metrics.len() > METRICS_MAX {
            let reason = format!("{} metrics, at most {METRICS_MAX}", self.metrics.len());
            return Err(PolicyProblem::new("signals.metrics", reason));
        }
        for (name, rule) in &self.metrics {
            let field = format!("signals.metrics.{}", shown(name));
            if let Err(reason) = check_metric(name) {
                return Err(PolicyProblem::new(field, reason));
            }
            let numbers = [rule.good_from, rule.bad_to];
            let has_number = numbers.iter().any(Option::is_some);
            if rule.good.is_some() == has_number {
                let reason =
                    "it has either good (of yes and no), or good_from and bad_to (of numbers)";
                return Err(PolicyProblem::new(field, reason));
            }
            if let [Some(from), Some(to)] = numbers
                && from <= to
            {
                return Err(PolicyProblem::new(field, "bad_to has to be below good_from"));
            }
        }
        Ok(())
    }
}

impl Rollout {
    fn check(&self) -> Result<(), PolicyProblem> {
        let n_stages = self.canary.len();
        if n_stages > STAGES_MAX {
            let reason = format!("{n_stages} stages, at most {STAGES_MAX}");
            return Err(PolicyProblem::new("rollout.canary", reason));
        }
        if let Some(stage) = &self.shadow {
            within("rollout.shadow.share", stage.share, f64::MIN_POSITIVE, 1.0)?;
            let requests = stage.requests as f64;
            within("rollout.shadow.requests", requests, 1.0, COUNT_MAX as f64)?;
        }
        let mut before = 0.0;
        for (index, stage) in self.canary.iter().enumerate() {
            let field = |name| format!("rollout.canary[{index}].{name}");
            within(&field("share"), stage.share, f64::MIN_POSITIVE, 1.0)?;
            within(&field("requests"), stage.requests as f64, 1.0, COUNT_MAX as f64)?;
            if stage.share < before {
                let reason = "shares may not become smaller: who has the candidate keeps it";
                return Err(PolicyProblem::new(field("share"), reason));
            }
            before = stage.share;
        }
        within("rollout.watch_requests", self.watch_requests as f64, 0.0, COUNT_MAX as f64)?;
        let rails = &self.guardrails;
        let field = |name: &str| format!("rollout.guardrails.{name}");
        within(&field("error_share_max"), rails.error_share_max, 0.0, 1.0)?;
        within(&field("latency_ratio_max"), rails.latency_ratio_max, 1.0, 1000.0)?;
        within(&field("negative_share_more_max"), rails.negative_share_more_max, 0.0, 1.0)?;
        within(&field("refusals_more_max"), rails.refusals_more_max, 0.0, 1.0)?;
        let [least, most] = rails.length_ratio;
        within(&field("length_ratio"), least, 0.0, 1.0)?;
        within(&field("length_ratio"), most, 1.0, f64::MAX)
    }
}

/// Counts within the bounds of jobs: a training without end would keep those of all others waiting.
fn check_hyperparameters(asked: &Hyperparameters) -> Result<(), PolicyProblem> {
    let counts = [
        ("batch_size", asked.batch_size, BATCH_SIZES),
        ("n_epochs", asked.n_epochs, EPOCHS),
        ("lora_rank", asked.lora_rank, RANKS),
    ];
    for (name, asked, bounds) in counts {
        let Auto::Set(count) = asked else { continue };
        let field = format!("hyperparameters.{name}");
        within(&field, f64::from(count), *bounds.start() as f64, *bounds.end() as f64)?;
    }
    if let Auto::Set(beta) = asked.beta {
        let (least, most) = (f64::from(*BETAS.start()), f64::from(*BETAS.end()));
        within("hyperparameters.beta", beta, least, most)?;
    }
    // However large it is, the gate sees what comes of it.
    if let Auto::Set(factor) = asked.learning_rate_multiplier {
        let field = "hyperparameters.learning_rate_multiplier";
        within(field, factor, f64::MIN_POSITIVE, f64::MAX)?;
    }
    Ok(())
}

fn within(field: &str, value: f64, least: f64, most: f64) -> Result<(), PolicyProblem> {
    // Written so that NaN is out of every range.
    if value >= least && value <= most {
        return Ok(());
    }
    let reason = if least > 0.0 && least <= f64::MIN_POSITIVE {
        format!("expected a value above 0 and up to {most}, but got {value} instead")
    } else {
        format!("expected a value from {least} to {most}, but got {value} instead")
    };
    Err(PolicyProblem::new(field, reason))
}

/// Which field of a document cannot be read: every field has a default, so each can be tried alone.
fn field_at_fault(document: &Value) -> String {
    fn is_read(path: &[String], value: &Value) -> bool {
        let alone = path.iter().rev().fold(value.clone(), |inner, name| {
            Value::Object(Map::from_iter([(name.clone(), inner)]))
        });
        serde_json::from_value::<Policy>(alone).is_ok()
    }
    fn search(at: &Value, path: &mut Vec<String>) {
        let Value::Object(fields) = at else { return };
        for (name, value) in fields {
            path.push(name.clone());
            if !is_read(path, value) {
                // One that is not known at all is at fault itself, whatever is in it.
                if is_read(path, &Value::Object(Map::new())) {
                    search(value, path);
                }
                return;
            }
            path.pop();
        }
    }
    let mut path = Vec::new();
    search(document, &mut path);
    path.iter().map(|name| shown(name)).collect::<Vec<_>>().join(".")
}

/// The beginning of a name that may be of any length.
fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(SHOWN_CHARS).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
