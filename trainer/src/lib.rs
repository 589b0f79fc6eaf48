//! Training adapters through the quantized base that serves.

pub mod data;
