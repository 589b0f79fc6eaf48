//! The engine of pleach: model files, quantized weights, kernels, KV cache, adapters resident on the device,
//! sequences and their scheduler.
//!
//! It knows token ids, bytes and weights. It knows nothing of HTTP, tenants or text.

pub mod adapter_weights;
pub mod backend;
pub mod breaks;
pub mod cpu;
pub mod cuda;
pub mod engine;
pub mod gguf;
pub mod kv;
pub mod model;
pub mod packed_adapter;
pub mod quant;
pub mod reference;
pub mod rope;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod site;
pub mod spec;
pub mod step_batch;
pub mod train;
