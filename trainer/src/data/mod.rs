//! From files to examples: rows, tokens and targets, what is wrong with the data, who learns from what and in which
//! order.
//!
//! ```text
//! file ── RowReader, DocumentReader ──> Row ── Encoder ──> Record: token ids, targets
//!                                        └── ReportBuilder ──> DataReport: findings; near-duplicate groups
//! groups ── split ──> train, validation, test, folds       rows ── mixture ──> caps, anchors, replay
//! lengths ── BatchPlan ──> optimizer steps of micro-batches, by seed and epoch
//! what users write ── Redactor ──> the same without e-mail addresses, keys, numbers of cards …
//! ```
//!
//! Everything here is a pure function of its input and a seed: no clock, no threads, no order of hash maps. A row is
//! in memory as JSON only while it is read.

mod batches;
mod counter_rng;
mod dataset;
mod digest;
mod documents;
mod duplicates;
mod encode;
mod error;
mod example;
mod fields;
mod format;
mod lines;
mod mixture;
mod read;
mod redact;
mod report;
mod row;
mod rows;
mod split;
mod union_find;
mod weights;

pub use self::{
    batches::{BatchPlan, BatchSettings, EpochPlan, Order, Packing, Position, StepPlan},
    dataset::{DataSet, Item, Loaded, load},
    documents::{DocumentEnd, DocumentReader},
    duplicates::{NearDuplicateSettings, NearDuplicates},
    encode::{EncodeCounts, EncodeSettings, Encoder, Overlong, Rewriting},
    error::{BadField, DataError},
    example::{Example, Record, TargetSpan},
    format::Format,
    lines::ReadLimits,
    mixture::{CapRow, Capped, MixedRow, MixtureError, Source, cap_users, mix, replay},
    read::{RowReader, RowSource},
    redact::{PiiKind, Redaction, Redactor},
    report::{Agreement, DataReport, Finding, Lengths, Level, ReportBuilder, ReportSettings},
    row::{Conversation, Message, Origin, Role, Row, RowBody},
    split::{Assignment, Placement, SplitItem, SplitSettings, components, split},
    weights::{balanced_weights, effective_number_weights},
};
