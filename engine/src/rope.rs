//! Rotary frequencies.

use crate::spec::{ModelSpec, RopeScaling};

/// Angles per position of a model, computed in f64 and rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `[head_dim / 2]`, radians per position.
    pub frequencies: Vec<f32>,
    /// Multiplies cos and sin.
    pub factor: f32,
}

impl RopeTable {
    /// Frequencies `theta^(-2i / head_dim)`, scaled as the model says.
    pub fn new(spec: &ModelSpec) -> Self {
        let half = spec.head_dim / 2;
        let dim = spec.head_dim as f64;
        let theta = f64::from(spec.rope_theta);
        let plain: Vec<f64> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / dim)).collect();
        let (frequencies, factor) = match &spec.rope_scaling {
            RopeScaling::None => (plain, 1.0),
            RopeScaling::Linear { factor } => {
                (plain.iter().map(|f| f / f64::from(*factor)).collect(), 1.0)
            }
            RopeScaling::Divisors(divisors) => {
                (plain.iter().zip(divisors).map(|(f, d)| f / f64::from(*d)).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                let context = f64::from(*original_context);
                let [low, high] =
                    [(beta_fast, f64::floor as fn(f64) -> f64), (beta_slow, f64::ceil)].map(
                        |(beta, round)| {
                            round(yarn_dimension(f64::from(*beta), context, dim, theta))
                        },
                    );
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = (high - low).max(0.001);
                let scaled = plain.iter().enumerate().map(|(i, f)| {
                    // 0: rotates often within the original context, kept; 1: divided by the factor.
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / f64::from(*factor) * ramp + f * (1.0 - ramp)
                });
                (scaled.collect(), *attention_factor)
            }
        };
        Self { frequencies: frequencies.into_iter().map(to_f32).collect(), factor }
    }

    /// Writes cos and sin of every frequency at a position; both `[head_dim / 2]`.
    pub fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((f, c), s) in self.frequencies.iter().zip(cos).zip(sin) {
            // The angle is rounded to f32 first, as every framework does.
            let (sine, cosine) = (position as f32 * f).sin_cos();
            *c = cosine * self.factor;
            *s = sine * self.factor;
        }
    }
}

/// The dimension whose frequency rotates `beta` times within the original context (`YaRN`, arXiv 2309.00071, eq. 17).
fn yarn_dimension(beta: f64, context: f64, dim: f64, theta: f64) -> f64 {
    dim * (context / (beta * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
fn to_f32(value: f64) -> f32 {
    value as f32
}
