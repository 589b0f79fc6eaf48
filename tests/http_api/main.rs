//! Proves the HTTP surface without a model: the real router, engine thread, scheduler, tokenizer and template, over a
//! runner that follows a script instead of computing.
//!
//! The tokenizer's ids are bytes (`104` is `h`), so that scripts and expectations can be read.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(clippy::float_cmp, reason = "values that pass through unchanged are equal")]

mod learning_shadow;
mod learning_support;
mod support;
mod tenant_support;
mod training_support;

mod adapter_churn;
mod adapter_download;
mod adapter_files;
mod adapter_places;
mod adapter_restart;
mod adapters;
mod bad_input;
mod chat;
mod completions;
mod compositions;
mod feedback;
mod files;
mod fine_tuning;
mod learning;
mod learning_anchors;
mod learning_base;
mod learning_judged;
mod learning_poison;
mod learning_rebuild;
mod learning_refused;
mod learning_rollout;
mod limits;
mod lineage;
mod namespaces;
mod observe;
mod sockets;
mod stored_completions;
mod tenant_admin;
mod tenant_auth;
mod tenant_fairness;
mod tenant_quotas;
mod tenants_matrix;
mod uploads;
