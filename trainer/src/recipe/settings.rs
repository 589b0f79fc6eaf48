//! What is asked for: method, settings, seed.

use pleach_engine::train::ProductPrecision;
use serde::{Deserialize, Serialize, Serializer};

/// How an adapter is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// What is minimized.
    pub method: Method,
    /// How.
    pub hyperparameters: Hyperparameters,
    /// Of everything that is random.
    pub seed: u64,
    /// Of products with frozen weights. A training that goes on must have that it began with.
    pub precision: ProductPrecision,
}

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Cross-entropy of answers, or of texts.
    Supervised,
    /// Preferences over pairs.
    Dpo,
    /// Thumbs, without pairs.
    Kto,
    /// Rewards of answers that the model in training gives.
    Reinforcement,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Supervised, Self::Dpo, Self::Kto, Self::Reinforcement];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
            Self::Kto => "kto",
            Self::Reinforcement => "reinforcement",
        }
    }
}

/// A setting that may be left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auto<T> {
    /// It is chosen by rows, model and method.
    #[default]
    Auto,
    /// As it says.
    Set(T),
}

impl<T> Auto<T> {
    /// Whether it was left open.
    pub fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }

    /// The value, or what was chosen.
    pub fn or(self, chosen: T) -> T {
        match self {
            Self::Auto => chosen,
            Self::Set(value) => value,
        }
    }
}

const AUTO: &str = "auto";

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form<T> {
            Value(T),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Value(value) => Ok(Self::Set(value)),
            Form::Text(text) if text == AUTO => Ok(Self::Auto),
            Form::Text(text) => {
                Err(serde::de::Error::custom(format!("{text:?} is neither a number nor {AUTO:?}")))
            }
        }
    }
}

/// How it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// Rows of a step of the optimizer.
    pub batch_size: Auto<u32>,
    /// Factor of the learning rate that would be chosen.
    pub learning_rate_multiplier: Auto<f64>,
    /// Times that every row is learned from.
    pub n_epochs: Auto<u32>,
    /// Strength of the reference: of DPO, KTO and reinforcement.
    pub beta: Auto<f64>,
    /// Rank of the adapter. Ours.
    pub lora_rank: Auto<u32>,
    /// Answers to a prompt, as a multiple of [`GROUP_SIZE`]. This and what follows are of reinforcement.
    #[serde(skip_serializing_if = "Auto::is_auto")]
    pub compute_multiplier: Auto<f64>,
    /// Steps between two evaluations.
    #[serde(skip_serializing_if = "Auto::is_auto")]
    pub eval_interval: Auto<u32>,
    /// Answers to a prompt in an evaluation.
    #[serde(skip_serializing_if = "Auto::is_auto")]
    pub eval_samples: Auto<u32>,
    /// Longest answer, tokens. Ours.
    #[serde(skip_serializing_if = "Auto::is_auto")]
    pub max_completion_tokens: Auto<u32>,
}

impl Hyperparameters {
    fn exploration(&self) -> Exploration {
        let multiplier = self.compute_multiplier.or(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the range of a u32, or at its ends"
        )]
        let group_size = (f64::from(GROUP_SIZE) * multiplier).round() as u32;
        Exploration {
            group_size: group_size.clamp(*GROUP_SIZES.start(), *GROUP_SIZES.end()),
            max_completion_tokens: self.max_completion_tokens.or(COMPLETION_TOKENS),
            eval_interval: match self.eval_interval {
                Auto::Auto => None,
                Auto::Set(steps) => Some(steps),
            },
            eval_samples: self.eval_samples.or(1),
        }
    }

    /// The first setting of reinforcement alone that is not left open.
    pub fn of_reinforcement(&self) -> Option<&'static str> {
        [
            ("compute_multiplier", self.compute_multiplier.is_auto()),
            ("eval_interval", self.eval_interval.is_auto()),
            ("eval_samples", self.eval_samples.is_auto()),
            ("max_completion_tokens", self.max_completion_tokens.is_auto()),
        ]
        .into_iter()
        .find_map(|(name, is_auto)| (!is_auto).then_some(name))
    }
}

/// The settings as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// Rows of a step of the optimizer.
    pub batch_size: u32,
    /// Times that every row is learned from.
    pub n_epochs: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Strength of the reference: of DPO, KTO and reinforcement.
    pub beta: f64,
    /// Rank of the adapter.
    pub lora_rank: u32,
    /// Of reinforcement: what is sampled.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub exploration: Option<Exploration>,
}

/// What is sampled in a training by rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exploration {
    /// Answers to each prompt of a step, which are compared with each other.
    pub group_size: u32,
    /// Longest answer, tokens.
    pub max_completion_tokens: u32,
    /// Steps between two evaluations; `None`: at the ends of epochs.
    pub eval_interval: Option<u32>,
    /// Answers to each prompt of an evaluation.
    pub eval_samples: u32,
}

/// Epochs unless told otherwise.
const EPOCHS: u32 = 3;
/// Most and least rows of a step unless told otherwise: adapters learn worse from large batches.
const BATCH_SIZES: std::ops::RangeInclusive<u32> = 1..=16;
/// A step for so many rows of an epoch.
const STEPS_PER_EPOCH: u32 = 32;
/// Rank unless told otherwise; preferences need less.
const RANK: u32 = 16;
/// Learning rate of a model of [`HIDDEN`], ten times what all weights would take (Thinking Machines, "`LoRA` without regret").
const LEARNING_RATE: f64 = 5e-4;
const HIDDEN: f64 = 2000.0;
/// Smaller models take larger steps (Tinker's rule for Llama).
const HIDDEN_POWER: f64 = 0.781;
/// Preferences move a model that knows the task already.
const PREFERENCE_RATE: f64 = 0.1;
const BETA: f64 = 0.1;
/// Weight of the divergence from where a training by rewards began (arXiv 2402.03300).
const REWARD_BETA: f64 = 0.04;
/// Answers to a prompt unless told otherwise. One has nothing to be compared with.
pub const GROUP_SIZE: u32 = 8;
const GROUP_SIZES: std::ops::RangeInclusive<u32> = 2..=64;
/// Longest answer unless told otherwise, tokens.
const COMPLETION_TOKENS: u32 = 256;
/// Prompts of a step unless told otherwise: of fewer, a step may find nothing to learn.
const PROMPTS_MIN: u32 = 4;

impl Recipe {
    /// The settings for a data set of `n_rows` on a model of this hidden size.
    pub fn resolve(&self, n_rows: usize, hidden: usize) -> Resolved {
        let asked = self.hyperparameters;
        let n_rows = u32::try_from(n_rows).unwrap_or(u32::MAX);
        let is_reinforcement = self.method == Method::Reinforcement;
        let least = if is_reinforcement { PROMPTS_MIN } else { *BATCH_SIZES.start() };
        let batch_size = (n_rows / STEPS_PER_EPOCH).clamp(least, *BATCH_SIZES.end());
        let of_method = if self.method == Method::Supervised { 1.0 } else { PREFERENCE_RATE };
        let base_rate =
            of_method * LEARNING_RATE * (HIDDEN / hidden.max(1) as f64).powf(HIDDEN_POWER);
        Resolved {
            batch_size: asked.batch_size.or(batch_size),
            n_epochs: asked.n_epochs.or(EPOCHS),
            learning_rate: base_rate * asked.learning_rate_multiplier.or(1.0),
            beta: asked.beta.or(if is_reinforcement { REWARD_BETA } else { BETA }),
            lora_rank: asked.lora_rank.or(RANK),
            exploration: is_reinforcement.then(|| asked.exploration()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_follows_rows_size_and_method() {
        let recipe = |method, hyperparameters| Recipe {
            method,
            hyperparameters,
            seed: 1,
            precision: ProductPrecision::F32,
        };
        let auto = Hyperparameters::default();
        let small = recipe(Method::Supervised, auto).resolve(10, 2000);
        assert_eq!((small.batch_size, small.n_epochs, small.lora_rank), (1, 3, 16));
        assert!((small.learning_rate - LEARNING_RATE).abs() < 1e-12);
        assert_eq!(recipe(Method::Supervised, auto).resolve(128, 576).batch_size, 4);
        let large = recipe(Method::Dpo, auto).resolve(100_000, 2000);
        assert_eq!(large.batch_size, 16);
        assert!(large.learning_rate < small.learning_rate / 5.0);
        let asked = Hyperparameters {
            batch_size: Auto::Set(7),
            learning_rate_multiplier: Auto::Set(2.0),
            n_epochs: Auto::Set(1),
            beta: Auto::Set(0.3),
            lora_rank: Auto::Set(4),
            compute_multiplier: Auto::Set(0.5),
            ..Hyperparameters::default()
        };
        let exact = recipe(Method::Supervised, asked).resolve(10, 2000);
        let expected = Resolved {
            batch_size: 7,
            n_epochs: 1,
            learning_rate: 2.0 * LEARNING_RATE,
            beta: 0.3,
            lora_rank: 4,
            exploration: None,
        };
        assert_eq!(exact, expected);
        let rewards = recipe(Method::Reinforcement, asked).resolve(10, 2000).exploration;
        let expected = Exploration {
            group_size: 4,
            max_completion_tokens: 256,
            eval_interval: None,
            eval_samples: 1,
        };
        assert_eq!(rewards, Some(expected));
        let auto = recipe(Method::Reinforcement, Hyperparameters::default()).resolve(10, 2000);
        assert_eq!((auto.batch_size, auto.exploration.unwrap().group_size), (4, 8));
    }
}
