//! Every type that is JSON on the wire. Only these are sent to clients.
//!
//! Requests are read field by field ([`fields::Fields`]) and not by a derived deserializer: every refusal can then name
//! its parameter, `null` is the same as absent, and unknown fields cost nothing.

pub mod adapters;
pub mod chat;
pub mod chat_request;
pub mod completion;
pub mod completion_request;
pub mod error;
pub mod feedback;
pub mod fields;
pub mod files;
pub mod fine_tuning;
pub mod graders;
pub mod hidden_names;
pub mod latency;
pub mod learning;
pub mod lineage;
pub mod list;
pub mod logprobs;
pub mod metadata;
pub mod models;
pub mod parts;
pub mod sampling;
pub mod stored;
pub mod tenants;
pub mod training_method;
pub mod unsupported;
pub mod usage;
