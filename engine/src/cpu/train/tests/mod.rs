//! Kernels of training against [`crate::reference`], on every instruction set of this processor. Outputs are filled with
//! a marked NaN first, as for all kernels.

mod adapter_pairs;
mod attention;
mod emulated_tiles;
mod pair_cases;
mod products;
mod products_amx;
mod products_bf16;
mod rows;
