//! Student's t distribution with whole degrees of freedom, by the finite series of Abramowitz and Stegun, *Handbook of
//! Mathematical Functions*, 26.7.3 and 26.7.4: with `θ = atan(t / √ν)`, the probability of `|T| ≤ t` is
//!
//! ```text
//! ν = 1:     2/π θ
//! ν odd:     2/π (θ + sin θ (cos θ + 2/3 cos³ θ + … + 2·4…(ν−3) / 3·5…(ν−2) cos^(ν−2) θ))
//! ν even:    sin θ (1 + 1/2 cos² θ + … + 1·3…(ν−3) / 2·4…(ν−2) cos^(ν−2) θ)
//! ```

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

/// Halvings of the interval that a quantile is sought in: down to neighbouring numbers.
const HALVINGS: u32 = 64;

/// Probability of `|T| ≤ √ν tan θ`, for `0 ≤ θ ≤ π/2`.
fn central(theta: f64, df: usize) -> f64 {
    let (sin, cos) = theta.sin_cos();
    let is_odd = df % 2 == 1;
    let mut term = if is_odd { cos } else { 1.0 };
    let mut sum = if df == 1 { 0.0 } else { term };
    // Factors k / (k + 1): from 2/3 on for odd ν, from 1/2 on for even.
    for k in (if is_odd { 2 } else { 1 }..df.saturating_sub(2)).step_by(2) {
        term *= k as f64 / (k + 1) as f64 * cos * cos;
        sum += term;
        if term < sum * 1e-18 {
            break;
        }
    }
    if is_odd { FRAC_2_PI * (theta + sin * sum) } else { sin * sum }
}

/// Probability of `T > t`; NaN if `t` is, or without a degree of freedom.
pub fn upper_tail(t: f64, df: usize) -> f64 {
    if df == 0 || t.is_nan() {
        return f64::NAN;
    }
    let central = central((t.abs() / (df as f64).sqrt()).atan(), df);
    if t > 0.0 { 0.5 * (1.0 - central) } else { 0.5 * (1.0 + central) }
}

/// The `t` that `T` exceeds with probability `p`; NaN unless `0 < p < 1` and there is a degree of freedom. To about ten
/// digits for `p` from 1e-6 on; below, the difference of two numbers near 1 takes digits away.
pub fn upper_quantile(p: f64, df: usize) -> f64 {
    if df == 0 || !(p > 0.0 && p < 1.0) {
        return f64::NAN;
    }
    let (tail, sign) = if p <= 0.5 { (p, 1.0) } else { (1.0 - p, -1.0) };
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if 0.5 * (1.0 - central(middle, df)) > tail {
            low = middle;
        } else {
            high = middle;
        }
    }
    sign * (df as f64).sqrt() * (0.5 * (low + high)).tan()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.t.isf(p, df)`, scipy 1.17.1.
    const QUANTILES: [(f64, usize, f64); 32] = [
        (0.3, 1, 0.726_542_528_0),
        (0.3, 2, 0.617_213_399_8),
        (0.3, 3, 0.584_389_727_4),
        (0.3, 4, 0.568_649_063_0),
        (0.3, 15, 0.535_729_133_0),
        (0.3, 64, 0.527_022_591_2),
        (0.05, 1, 6.313_751_514_7),
        (0.05, 2, 2.919_985_580_4),
        (0.05, 3, 2.353_363_434_8),
        (0.05, 4, 2.131_846_786_3),
        (0.05, 15, 1.753_050_355_7),
        (0.05, 64, 1.669_013_025_0),
        (0.030_396_355, 1, 10.440_125_187_6),
        (0.030_396_355, 2, 3.868_464_210_5),
        (0.030_396_355, 3, 2.934_227_630_3),
        (0.030_396_355, 4, 2.588_300_815_3),
        (0.030_396_355, 15, 2.027_237_532_9),
        (0.030_396_355, 64, 1.908_658_435_4),
        (0.001, 1, 318.308_838_985_6),
        (0.001, 2, 22.327_124_770_1),
        (0.001, 3, 10.214_531_852_4),
        (0.001, 4, 7.173_182_219_8),
        (0.001, 15, 3.732_834_425_3),
        (0.001, 64, 3.222_526_674_8),
        (0.9, 1, -3.077_683_537_2),
        (0.9, 2, -1.885_618_083_2),
        (0.9, 3, -1.637_744_353_7),
        (0.9, 4, -1.533_206_274_1),
        (0.9, 15, -1.340_605_607_9),
        (0.9, 64, -1.294_919_819_6),
        (1e-6, 7, 14.241_469_652_0),
        (1e-6, 1000, 4.781_608_620_5),
    ];

    #[test]
    fn quantiles_are_those_of_scipy() {
        for (p, df, expected) in QUANTILES {
            let found = upper_quantile(p, df);
            assert!(
                (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
                "p {p}, {df} degrees of freedom: {found}, expected {expected}"
            );
            assert!(
                (upper_tail(expected, df) - p).abs() < 1e-9 * p.max(1e-3),
                "tail of {expected}"
            );
        }
    }

    #[test]
    fn tails_are_symmetric_and_ends_are_told() {
        for df in [1, 2, 7, 8] {
            assert!((upper_tail(0.0, df) - 0.5).abs() < 1e-15);
            assert!((upper_tail(1.3, df) + upper_tail(-1.3, df) - 1.0).abs() < 1e-15);
            assert!(upper_quantile(0.5, df).abs() < 1e-9);
            assert!(upper_tail(f64::INFINITY, df).abs() < 1e-12);
        }
        // As the normal distribution's, in the end: 1.959964.
        assert!((upper_quantile(0.025, 2_000_000) - 1.959_964).abs() < 1e-5);
        assert!(upper_quantile(1e-12, 3).is_finite());
        for bad in [
            upper_quantile(0.0, 3),
            upper_quantile(1.0, 3),
            upper_quantile(f64::NAN, 3),
            upper_quantile(0.1, 0),
            upper_tail(1.0, 0),
            upper_tail(f64::NAN, 2),
        ] {
            assert!(bad.is_nan());
        }
    }
}
