//! What has to survive: tenants, their keys, generations of adapters and the aliases that point at them.
//!
//! ```text
//! bytes ── Store::put_blob ──> StagedBlob ── Store::register ──> generation, its files, its alias   (one transaction)
//! key's text ── Store::check_key ──> ApiKey and its tenant
//! alias ── Store::move_alias, roll_back (compare-and-swap) ──> its history, and an AliasMove in the log
//! a server that starts ── Store::catalog ──> all aliases and generations
//! bytes ── Store::put_blob ──> StagedBlob ── Store::create_file, add_part ──> files to train on
//! completions ── Store::put_completions ──> what feedback is about ── Store::put_feedback
//! Store::create_job ── claim_job, report_job … ── finish_job ──> a training job, by whichever process lives
//! Store::put_policy ── create_round ── claim_round, advance_round, decide_round ──> a round of the learning loop
//! a trained generation ── Store::put_lineage ──> what it came from ── generations_that_saw ──> what is to be trained anew
//! ```
//!
//! Rows are in SQLite (a file) or PostgreSQL (a URL), in one SQL for both; blobs are in a folder or an object store,
//! named by the SHA-256 of their content. A function that returned `Ok` has changed what survives `kill -9`; one that
//! returned an error has changed nothing, except where it says so.
//!
//! This crate knows digests, names and bytes. What an adapter is, which names clash with the base model's, and who may
//! do what is decided by those who call it. Times are milliseconds since 1970-01-01 UTC.

mod alias_change;
mod alias_history;
mod alias_moves;
mod aliases;
mod api_keys;
mod beats;
mod blob_error;
mod blob_garbage;
mod blob_reader;
mod blob_writer;
mod blobs;
mod catalog;
mod checks;
mod clock;
mod completions;
mod database;
mod digest;
mod erasure;
mod error;
mod expiry;
mod feedback;
mod files;
mod generations;
mod job_changes;
mod job_records;
mod jobs;
mod key_text;
mod key_uses;
mod labelled;
mod lineage;
mod metadata;
mod migrations;
mod owner;
mod page;
mod policies;
mod registration;
mod remote_folder;
mod retirement;
mod round_changes;
mod round_claims;
mod round_examples;
mod rounds;
mod row;
mod scopes;
mod store;
mod tenants;
mod uploads;

pub use self::{
    alias_change::{AliasChange, Expected, RollBack},
    alias_history::HISTORY_MAX,
    alias_moves::AliasMove,
    aliases::StoredAlias,
    api_keys::{ApiKey, KeyCheck, KeyRefused, NewApiKey},
    blob_error::BlobError,
    blob_garbage::Swept,
    blob_reader::BlobReader,
    blob_writer::{BlobWriter, StagedBlob},
    blobs::Blobs,
    catalog::Catalog,
    completions::{CompletionFilter, StoredCompletion},
    digest::{BlobDigest, DigestParseError, GenerationDigest},
    erasure::Erased,
    error::StoreError,
    expiry::Expired,
    feedback::{
        FeedbackFilter, FeedbackKind, FeedbackTarget, IdempotencyKey, NewFeedback, StoredFeedback,
    },
    files::{NewFile, StoredFile},
    generations::{GenerationFile, GenerationMetadata, Origin, StoredGeneration},
    job_changes::{JobEnd, JobReport, JobSignal, NewCheckpoint},
    job_records::{EventLevel, JobEvent, StoredCheckpoint, StoredEvent},
    jobs::{JobError, JobStatus, NewJob, StoredJob},
    key_text::ApiKeyText,
    labelled::{Labelled, LabelledCount},
    lineage::{NewLineage, SawGeneration, Seen, StoredLineage},
    metadata::Metadata,
    owner::{Owner, TenantId, time_id},
    page::{Listing, Order, PAGE_ROWS_MAX, Page},
    policies::{POLICIES_MAX, StoredPolicy},
    registration::{Registered, Registration},
    remote_folder::{RemoteFile, RemoteFolder, RemotePath},
    round_changes::{RoundChange, RoundSignal},
    round_examples::{Example, ExampleCounts, ExampleKind},
    rounds::{Decided, Decision, NewRound, RoundState, StoredRound},
    scopes::{Scope, Scopes},
    store::{Store, StoreOptions},
    tenants::{KEEP_DAYS, Quotas, Tenant, TenantSettings},
    uploads::{NewUpload, StoredUpload, UPLOAD_PARTS_MAX, UploadPart, UploadStatus},
};
