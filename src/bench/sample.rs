//! What is measured of one request.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// No connection.
    Connect,
    /// Not finished within the time given.
    Timeout,
    /// An HTTP status other than success.
    Status(u16),
    /// The connection ended before the stream did.
    Disconnected,
    /// The stream makes no sense.
    Malformed,
    /// An error event within the stream.
    Server,
    /// Never sent: more requests in flight than the generator keeps.
    Dropped,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status(status) => return write!(f, "http_{status}"),
            Self::Disconnected => "disconnected",
            Self::Malformed => "malformed",
            Self::Server => "server_error",
            Self::Dropped => "dropped",
        })
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A failure with what was said about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// How.
    pub kind: ErrorKind,
    /// In words.
    pub message: String,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Its index in the plan.
    pub index: u64,
    /// The model that it named.
    #[serde(serialize_with = "as_text")]
    pub model: Arc<str>,
    /// When it was due, since the start of the run.
    #[serde(rename = "sent_ms", serialize_with = "as_ms")]
    pub sent: Duration,
    /// Until the first event with text.
    #[serde(rename = "ttft_ms", serialize_with = "as_optional_ms")]
    pub ttft: Option<Duration>,
    /// Until the end.
    #[serde(rename = "e2e_ms", serialize_with = "as_ms")]
    pub e2e: Duration,
    /// Time between an event with text and the one before, in microseconds.
    pub itl_us: Vec<u32>,
    /// Tokens asked for.
    pub asked_tokens: u32,
    /// Tokens of the prompt, by the server's count.
    pub prompt_tokens: u64,
    /// Those of them that the server had in its cache.
    pub cached_tokens: u64,
    /// Tokens of the completion, by the server's count; events with text where it doesn't count.
    pub output_tokens: u64,
    /// Whether the server counted.
    pub has_usage: bool,
    /// Whether a connection that the server had closed meanwhile made it be sent twice.
    pub is_resent: bool,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

impl Sample {
    /// Time per output token after the first.
    pub fn tpot_ms(&self) -> Option<f64> {
        let after_first = self.output_tokens.checked_sub(1).filter(|&count| count > 0)?;
        Some(ms(self.e2e.saturating_sub(self.ttft?)) / after_first as f64)
    }
}

/// Milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn as_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn as_ms<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(ms(*duration))
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn as_optional_ms<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(ms).serialize(serializer)
}
