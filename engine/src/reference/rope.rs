//! Rotary position embedding (arXiv 2104.09864), half-split layout.

use std::f64::consts::TAU;

use crate::spec::RopeScaling;

/// Angle per position of pair `i` of a head of `D` values, `i` in `0..D / 2`: `f_i = theta^(−2i / D)`, then scaled:
///
/// - linear: `f_i / factor`
/// - divisors: `f_i / divisor[i]`
/// - `YaRN`: between `f_i` (pairs that turn at least `beta_fast` times within the original context) and `f_i / factor`
///   (at most `beta_slow` times), linearly in `i`; both borders are rounded outwards and kept within `0..=D − 1`.
pub fn frequency(scaling: &RopeScaling, theta: f64, head_dim: usize, i: usize) -> f64 {
    let dim = head_dim as f64;
    let plain = theta.powf(-2.0 * i as f64 / dim);
    match scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / f64::from(*factor),
        RopeScaling::Divisors(divisors) => plain / f64::from(divisors[i]),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
            // Pair i turns `context · f_i / 2π` times; solved for i.
            let pair_that_turns = |times: f32| {
                let wavelength = f64::from(*original_context) / f64::from(times);
                dim / 2.0 * (wavelength / TAU).ln() / theta.ln()
            };
            let first = pair_that_turns(*beta_fast).floor().max(0.0);
            let last = pair_that_turns(*beta_slow).ceil().min(dim - 1.0);
            // Borders that coincide are a step; the width is transformers' guard against dividing by zero.
            let share = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
            (1.0 - share) * plain + share * plain / f64::from(*factor)
        }
    }
}

/// What cos and sin are multiplied by: `YaRN`'s attention factor, else 1.
pub fn attention_factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } => f64::from(*attention_factor),
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Divisors(_) => 1.0,
    }
}

/// Rotates one head, `[D]`: pair `(x[i], x[i + D/2])` by `angles[i]`, and multiplies it by `factor`:
/// `out[i] = factor (x[i] cos a_i − x[i + D/2] sin a_i)`, `out[i + D/2] = factor (x[i + D/2] cos a_i + x[i] sin a_i)`.
///
/// # Panics
/// When there are not twice as many values as angles.
pub fn rope(x: &[f64], angles: &[f64], factor: f64) -> Vec<f64> {
    assert_eq!(x.len(), 2 * angles.len(), "two values per angle");
    let (low, high) = x.split_at(angles.len());
    let pairs = || low.iter().zip(high).zip(angles).map(|((a, b), angle)| (a, b, angle.sin_cos()));
    let first = pairs().map(|(a, b, (sin, cos))| factor * (a * cos - b * sin));
    let second = pairs().map(|(a, b, (sin, cos))| factor * (b * cos + a * sin));
    first.chain(second).collect()
}
