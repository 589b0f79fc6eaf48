//! How much of alpha each look gets.

use std::f64::consts::PI;

/// The part of `alpha` that look `k`, from 1 (0 counts as 1), may spend: `alpha · 6 / (π² k²)`. The parts of all looks that
/// there may ever be sum up to `alpha`, so by the union bound no number of looks promotes one of equals more often.
pub fn alpha_of_look(alpha: f64, look: u32) -> f64 {
    let k = f64::from(look.max(1));
    alpha * 6.0 / (PI * PI * k * k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_looks_together_spend_alpha() {
        assert!((alpha_of_look(0.05, 1) - 0.030_396_355).abs() < 1e-9);
        assert!((alpha_of_look(0.05, 3) * 9.0 - alpha_of_look(0.05, 0)).abs() < 1e-15);
        let spent: f64 = (1..100_000).map(|look| alpha_of_look(0.05, look)).sum();
        // What is left after K looks is about 6 / (π² K) of it.
        assert!(spent < 0.05 && spent > 0.05 * (1.0 - 1e-5), "{spent}");
        assert!(alpha_of_look(0.05, u32::MAX) > 0.0);
    }
}
