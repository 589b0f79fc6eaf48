//! The definition of every operation of a decoder: plain loops over f64, no cleverness.
//!
//! Kernels of all backends are tested against these functions, so nothing here is tuned or shared with a kernel. Inputs
//! are the f32 (or block format) values that a kernel sees; results are f64, so that a difference is the kernel's own.
//!
//! | file | operation |
//! |---|---|
//! | `matmul` | products with dense or quantized weights; activations exact or quantized to int8 |
//! | `lora` | low-rank adapters |
//! | `attention` | causal attention |
//! | `norm`, `rope`, `swiglu` | the rest of a layer |
//! | `backward` | derivatives, for training |

pub mod attention;
pub mod backward;
pub mod lora;
pub mod matmul;
pub mod norm;
pub mod rope;
pub mod swiglu;
