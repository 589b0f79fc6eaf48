//! The gate of the feed-forward part (arXiv 2002.05202).

/// `gate / (1 + e^(−gate)) · up`.
pub fn swiglu(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}
