//! pleach: one quantized base model, another `LoRA` adapter for every request of the same batch.
//!
//! This crate is the serving process: command line, HTTP, telemetry. The engine, text and adapters are crates of their
//! own; `main.rs` only reads the arguments.

pub mod adapter_service;
pub mod bench;
pub mod cli;
pub mod feedback;
pub mod hex;
pub mod http;
pub mod learning;
pub mod memory;
pub mod models;
pub mod serving;
pub mod telemetry;
pub mod tenants;
pub mod training;
