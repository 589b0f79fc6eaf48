//! What is kept of completions, for feedback on them and to learn from.
//!
//! ```text
//! a chat that is to be kept ── Recorder: its choices as they come ── Capture::offer ──> a bounded queue
//!     ── the writer: Redactor, then many in one commit ──> Store::put_completions
//! ```
//!
//! Nothing that a request waits for is done here: when the queue is full or the store fails, a completion is not kept,
//! and that is counted.

mod capture;
pub mod maintenance;
mod record;

pub use capture::{Capture, QUEUE_MAX};
pub use record::{
    CompletionBody, KeptChoice, KeptPart, KeptSampling, KeptUsage, Record, Recorder, user_digest,
};
