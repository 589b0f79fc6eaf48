//! Exports in ONNX Runtime and in onnxruntime-genai, beside our engine: every architecture and block format in both forms
//! and all precisions, adapters of every kind, and whatever must be refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod adapters;
mod default_model;
mod models;
mod python;
mod refused;
mod support;
mod tokenizer;
