//! Several adapters as one.
//!
//! A low-rank delta is `lora_scale * B A`, so the sum of several is one of the sum of their ranks: rows of the `A` below each
//! other, columns of the `B` side by side. That is exact, and costs what the parts cost.
//!
//! - [`Composition`]: which generations with which scales, by digest; what a request asks for.
//! - [`sum`]: the weights of it.
//! - [`merge`]: a new adapter off-line, the same sum or one of lower rank.
//!
//! `DoRA` (its norm is of the whole adapted weight) and whole matrices of one's own are no deltas, and are refused.

mod composition;
mod merge;
mod sum;
mod svd;

pub use composition::{
    COMPOSED_PARTS_MAX, COMPOSED_SCALE_MAX, ComposedPart, Composition, CompositionError, RunsAs,
};
pub use merge::{MergeError, MergeMethod, Merged, SiteLoss, merge};
pub use sum::{Part, SumError, sum};
