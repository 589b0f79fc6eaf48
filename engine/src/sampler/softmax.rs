//! Exponentials, maxima and sums over a row of logits, in an order that no machine or vector width changes.

/// Sums run in this many interleaved lanes, so that the compiler can use vectors without changing the result.
const LANES: usize = 8;

/// Exponentials computed at once before they are added up.
const SUM_CHUNK: usize = 256;

/// `e^x` underflows to 0 below this; the smallest result kept, `e^-87`, is still a normal number.
const EXP_MIN: f32 = -87.0;

/// `e^x` for `x <= 0`, relative error below 3e-7. Only plain multiplications and additions (which Rust never fuses): the
/// same bits on every machine, and it vectorizes, which the one of the C library does not.
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; products of the first with integers up to 127 are exact (Cody and Waite).
    const LN_2_HI: f32 = 0.693_359_4;
    const LN_2_LO: f32 = -2.121_944_4e-4;
    let clamped = if x > EXP_MIN { x } else { EXP_MIN };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HI) - n * LN_2_LO;
    // Taylor to r^7/5040; |r| <= ln(2)/2, so the rest is below 6e-9.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let value = p * f32::from_bits(exponent << 23);
    // A mask, not a branch: branches keep the compiler from vectors.
    f32::from_bits(value.to_bits() & u32::from(x >= EXP_MIN).wrapping_neg())
}

/// Index and value of the largest value, the lowest index among equals. `None` when there is a NaN, when the largest is
/// infinite (nothing can be normalized), or when the row is empty.
pub(super) fn finite_max(values: &[f32]) -> Option<(usize, f32)> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Words, not `bool`s: lanes of one width stay in vectors.
    let mut nans = [0u32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, (nan, &value)) in lanes.iter_mut().zip(nans.iter_mut().zip(chunk)) {
            *lane = if value > *lane { value } else { *lane };
            *nan |= u32::from(value.is_nan());
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || nans != [0; LANES] || rest.iter().any(|value| value.is_nan()) {
        return None;
    }
    let index = values.iter().position(|&value| value == max)?;
    Some((index, max))
}

/// `ln sum_i e^values[i]`, error below 1e-6, where `max` is the largest value and finite.
pub(super) fn log_sum_exp(values: &[f32], max: f32) -> f64 {
    let mut weights = [0.0f32; SUM_CHUNK];
    let mut total = 0.0;
    for chunk in values.chunks(SUM_CHUNK) {
        for (weight, &value) in weights.iter_mut().zip(chunk) {
            *weight = exp_nonpositive(value - max);
        }
        total += sum(&weights[..chunk.len()]);
    }
    f64::from(max) + total.ln()
}

/// Sum of weights.
pub(super) fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight);
        }
    }
    for (lane, &weight) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(weight);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_down_to_underflow() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_nonpositive(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-87.1), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn log_sum_exp_matches_f64() {
        for n in [1usize, 2, 7, 8, 9, 133, 49_152] {
            let values: Vec<f32> = (0..n)
                .map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 / 40_000.0 - 12.0)
                .collect();
            let (_, max) = finite_max(&values).unwrap();
            let exact = values.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&values, max) - exact).abs() < 1e-6, "n {n}");
        }
    }

    #[test]
    fn max_takes_the_first_and_refuses_what_has_none() {
        let mut values = vec![1.0f32; 37];
        values[3] = 5.0;
        values[35] = 5.0;
        assert_eq!(finite_max(&values), Some((3, 5.0)));
        for (place, bad) in [(0, f32::NAN), (36, f32::NAN), (12, f32::INFINITY)] {
            let mut broken = values.clone();
            broken[place] = bad;
            assert_eq!(finite_max(&broken), None, "{bad} at {place}");
        }
        assert_eq!(finite_max(&[f32::NEG_INFINITY; 20]), None);
        assert_eq!(finite_max(&[]), None);
    }
}
