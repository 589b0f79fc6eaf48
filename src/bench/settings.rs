//! What a run does.

use std::{fmt, str::FromStr, time::Duration};

use serde::Serialize;

/// Which endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Endpoint {
    /// Its path.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// How prompts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PromptForm {
    /// Random common words, about one token each.
    Words,
    /// Random token ids, exactly one token each; completions only.
    Ids,
}

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// So many clients, each sending its next request when it has its answer.
    Concurrency(usize),
    /// Arrivals that don't wait for answers.
    Rate {
        /// Requests per second; infinite for all at once.
        rate: f64,
        /// 1 is a Poisson process, less comes in bursts, more is more even.
        burstiness: f64,
    },
}

/// When to stop sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// After so many requests.
    Requests(u64),
    /// After so long, in seconds; what was sent is waited for.
    #[serde(rename = "duration_s", serialize_with = "as_seconds")]
    Duration(Duration),
}

/// A number of tokens: fixed, or uniform over a range with both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// The least.
    pub min: u32,
    /// The most.
    pub max: u32,
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.trim().parse::<u32>().map_err(|error| format!("{text:?}: {error}"));
        let (min, max) = match text.split_once("..") {
            Some((min, max)) => (number(min)?, number(max.trim_start_matches('='))?),
            None => (number(text)?, number(text)?),
        };
        if min == 0 || min > max {
            return Err(format!("{text:?} is not a length: give N or A..B with 1 ≤ A ≤ B"));
        }
        Ok(Self { min, max })
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}..{}", self.min, self.max)
        }
    }
}

impl Serialize for Length {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which adapter each request asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// Each as likely as the others.
    Uniform,
    /// The k-th with a weight of k^-s.
    Zipf(f64),
    /// In turn, so that requests in flight differ as much as they can.
    Distinct,
    /// None: only the base model.
    Base,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "uniform" => Ok(Self::Uniform),
            "distinct" => Ok(Self::Distinct),
            "base" => Ok(Self::Base),
            "zipf" => Ok(Self::Zipf(1.0)),
            _ => match text.strip_prefix("zipf:").map(str::parse::<f64>) {
                Some(Ok(s)) if s.is_finite() && s >= 0.0 => Ok(Self::Zipf(s)),
                _ => Err(format!(
                    "unknown mix {text:?}: one of uniform, zipf, zipf:S with S ≥ 0, distinct, base"
                )),
            },
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
            Self::Distinct => f.write_str("distinct"),
            Self::Base => f.write_str("base"),
        }
    }
}

impl Serialize for Mix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One run. The key is never part of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// The server, without a path.
    pub url: String,
    /// The base model's name.
    pub model: String,
    /// Names of adapters; none for the base alone.
    pub adapters: Vec<String>,
    /// How they are mixed.
    pub mix: Mix,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// How prompts are written.
    pub prompt_form: PromptForm,
    /// Length of each prompt.
    pub prompt_tokens: Length,
    /// Tokens at the beginning that all prompts share.
    pub shared_prefix: u32,
    /// Tokens to ask for.
    pub output_tokens: Length,
    /// Whether to ask for exactly that many, by the extensions `ignore_eos` and `min_tokens`.
    pub ignore_eos: bool,
    /// Sampling temperature; the server's default if absent.
    pub temperature: Option<f64>,
    /// How requests arrive.
    pub load: Load,
    /// When to stop.
    pub limit: Limit,
    /// Requests before the clock starts, which count for nothing.
    pub warmup: u64,
    /// What everything random is drawn from.
    pub seed: u64,
    /// How long one request may take, in seconds.
    #[serde(rename = "timeout_s", serialize_with = "as_seconds")]
    pub timeout: Duration,
    /// `Authorization: Bearer …`.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// Whether each request is part of the report.
    pub samples: bool,
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_mixes_read_and_print() {
        for (text, min, max) in [("7", 7, 7), ("3..9", 3, 9), ("3..=9", 3, 9)] {
            assert_eq!(text.parse(), Ok(Length { min, max }));
        }
        for bad in ["", "0", "9..3", "-1", "1..", "a..b"] {
            assert!(bad.parse::<Length>().is_err(), "{bad}");
        }
        for text in ["uniform", "zipf:1.5", "distinct", "base"] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), text);
        }
        for bad in ["zipf:-1", "zipf:x", "zipf:inf", "none"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }
}
