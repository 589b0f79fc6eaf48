//! From files to examples: rows of every format and what is refused of them, tokens and targets against the reference,
//! the report, splits, mixtures, batches, and redaction.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bad_rows;
mod batches;
mod common;
mod dataset;
mod encode;
mod hostile;
mod mixture;
mod near_duplicates;
mod redact;
mod report;
mod rows;
mod split;
