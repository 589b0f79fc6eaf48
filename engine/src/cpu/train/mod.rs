//! Training through the packed weights: forward and backward over one micro-batch, unit by unit.
//!
//! | file | what |
//! |---|---|
//! | `product`, `panel` | the one dense product, and what it reads of frozen weights |
//! | `product_bf16`, `product_tiles` | the same with factors rounded to bf16: by vectors, by tiles |
//! | `linear`, `linear_back`, `dropout` | linears with their adapters |
//! | `lora`, `lora_bf16` | the adapter's factors, first halves and gradients |
//! | `attention`, `elementwise`, `head` | the other operations |
//! | `base`, `memory`, `memory_pairs`, `plan`, `ops`, `program` | weights, buffers, what varies with the batch, the operations and their order |
//! | `pass`, `input`, `run`, `run_rows`, `run_products`, `run_lora`, `run_attention`, `run_head` | a pass, and its operations over the team of threads |
//!
//! Products are exact (dequantized values, f32 activations), whatever serving uses; with [`ProductPrecision::Bf16`], both
//! factors of those with frozen weights and with the adapter's are rounded to bf16 first. No sum is split over threads, and
//! every sum has one order, so gradients have the same bits on any number of threads, in slices or not, with activations
//! kept or computed again, and with sequences packed or one by one.
//!
//! [`ProductPrecision::Bf16`]: crate::train::ProductPrecision::Bf16

mod attention;
mod base;
mod dropout;
mod elementwise;
mod head;
mod input;
mod linear;
mod linear_back;
mod lora;
mod lora_bf16;
mod memory;
mod memory_pairs;
mod ops;
mod panel;
mod pass;
mod plan;
mod product;
mod product_bf16;
mod product_tiles;
mod program;
mod run;
mod run_attention;
mod run_head;
mod run_lora;
mod run_products;
mod run_rows;

#[cfg(test)]
mod tests;

pub use base::FrozenBase;
pub use pass::TrainPass;
