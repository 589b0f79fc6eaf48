//! `AdamW` over an adapter's weights (arXiv 1711.05101), moments in f32, one site at a time.
//!
//! ```text
//! p ← p − lr λ p                                   decay is apart from the gradient
//! m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//! `g` is clipped before: all of it times `c / (‖g‖ + 10⁻⁶)` where its norm is above `c`, as PyTorch does.

mod schedule;

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    train::SiteGradients,
};

use crate::TrainerError;

pub use schedule::Schedule;

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// `β₁`.
    pub beta1: f64,
    /// `β₂`.
    pub beta2: f64,
    /// `ε`.
    pub epsilon: f64,
    /// `λ`, per unit of learning rate.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; `None` is no limit.
    pub clip_norm: Option<f64>,
    /// Shape of the learning rate.
    pub schedule: Schedule,
    /// Steps in which it rises.
    pub warmup_steps: u64,
    /// Steps after which it has fallen; not used by [`Schedule::Constant`].
    pub total_steps: u64,
    /// Factor of the learning rate from each layer to the one below it, `0 < factor ≤ 1`; 1 is the same rate for all.
    pub layer_decay: f64,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: Some(1.0),
            schedule: Schedule::Constant,
            warmup_steps: 0,
            total_steps: 0,
            layer_decay: 1.0,
        }
    }
}

impl OptimizerSettings {
    /// Learning rate of step `step`, counted from 0, at the topmost layer.
    pub fn rate(&self, step: u64) -> f64 {
        self.learning_rate * self.schedule.factor(step, self.warmup_steps, self.total_steps)
    }

    /// What gradients of this norm are multiplied by.
    pub fn clip_factor(&self, norm: f64) -> f64 {
        match self.clip_norm {
            Some(limit) if norm > limit => limit / (norm + 1e-6),
            _ => 1.0,
        }
    }

    fn check(&self) -> Result<(), TrainerError> {
        let from_zero = |value: f64| value.is_finite() && value >= 0.0;
        let share = |value: f64| (0.0..1.0).contains(&value);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        for (setting, value, fits, expected) in [
            ("learning_rate", self.learning_rate, from_zero(self.learning_rate), "at least 0"),
            ("beta1", self.beta1, share(self.beta1), "at least 0 and below 1"),
            ("beta2", self.beta2, share(self.beta2), "at least 0 and below 1"),
            ("epsilon", self.epsilon, positive(self.epsilon), "above 0"),
            ("weight_decay", self.weight_decay, from_zero(self.weight_decay), "at least 0"),
            (
                "clip_norm",
                self.clip_norm.unwrap_or(1.0),
                positive(self.clip_norm.unwrap_or(1.0)),
                "above 0",
            ),
            (
                "layer_decay",
                self.layer_decay,
                positive(self.layer_decay) && self.layer_decay <= 1.0,
                "above 0 and at most 1",
            ),
        ] {
            if !fits {
                return Err(TrainerError::Setting { setting, value, expected });
            }
        }
        Ok(())
    }
}

/// Moments of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    pub(crate) m: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Moments {
    fn zeros(n: usize) -> Self {
        Self { m: vec![0.0; n], v: vec![0.0; n] }
    }
}

/// The optimizer of one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    pub(crate) settings: OptimizerSettings,
    /// Of `A` and `B` of every site, in the adapter's order.
    pub(crate) moments: Vec<[Moments; 2]>,
    /// Steps taken.
    pub(crate) steps: u64,
    n_layers: usize,
}

/// One step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepScale {
    /// Learning rate at the topmost layer.
    pub(crate) rate: f64,
    /// Of all gradients.
    pub(crate) clip: f64,
}

impl AdamW {
    /// For an adapter of a model with so many layers.
    ///
    /// # Errors
    /// [`TrainerError::Setting`].
    pub fn new(
        settings: OptimizerSettings,
        adapter: &AdapterWeights,
        n_layers: usize,
    ) -> Result<Self, TrainerError> {
        settings.check()?;
        let zeros =
            |site: &SiteWeights| [Moments::zeros(site.a.len()), Moments::zeros(site.b.len())];
        let moments = adapter.sites.iter().map(zeros).collect();
        Ok(Self { settings, moments, steps: 0, n_layers })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Begins a step with gradients of this norm: what [`Self::update`] takes for every site.
    pub(crate) fn begin(&mut self, norm: f64) -> StepScale {
        let scale = StepScale {
            rate: self.settings.rate(self.steps),
            clip: self.settings.clip_factor(norm),
        };
        self.steps += 1;
        scale
    }

    /// Moves the weights of site `index`; returns the sum of squares of what they moved by.
    pub(crate) fn update(
        &mut self,
        index: usize,
        scale: StepScale,
        weights: &mut SiteWeights,
        gradients: &SiteGradients,
    ) -> f64 {
        let settings = self.settings;
        let below_top = self.n_layers.saturating_sub(weights.site.layer + 1);
        let below_top = i32::try_from(below_top).unwrap_or(i32::MAX);
        let rate = scale.rate * settings.layer_decay.powi(below_top);
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let update = Update {
            clip: narrow(scale.clip),
            keep: narrow(1.0 - rate * settings.weight_decay),
            beta1: narrow(settings.beta1),
            beta2: narrow(settings.beta2),
            rate: narrow(rate / (1.0 - settings.beta1.powi(t))),
            root: narrow((1.0 - settings.beta2.powi(t)).sqrt()),
            epsilon: narrow(settings.epsilon),
        };
        let [a, b] = &mut self.moments[index];
        update.run(&mut weights.a, a, &gradients.a) + update.run(&mut weights.b, b, &gradients.b)
    }
}

/// The numbers of an update that are the same for all weights of a site.
struct Update {
    clip: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rate: f32,
    root: f32,
    epsilon: f32,
}

impl Update {
    fn run(&self, weights: &mut [f32], moments: &mut Moments, gradients: &[f32]) -> f64 {
        let mut squares = 0.0;
        let of_moments = moments.m.iter_mut().zip(&mut moments.v);
        for ((p, (m, v)), g) in weights.iter_mut().zip(of_moments).zip(gradients) {
            let g = g * self.clip;
            *m += (g - *m) * (1.0 - self.beta1);
            *v = *v * self.beta2 + (1.0 - self.beta2) * g * g;
            let before = *p;
            *p = before * self.keep - self.rate * *m / (v.sqrt() / self.root + self.epsilon);
            squares += f64::from(*p - before) * f64::from(*p - before);
        }
        squares
    }
}

#[expect(clippy::cast_possible_truncation, reason = "weights, moments and gradients are f32")]
pub(crate) fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use pleach_engine::site::{Site, TargetModule};

    use super::*;

    fn adapter(layer: usize, value: f32) -> AdapterWeights {
        let site = Site { layer, module: TargetModule::QProj };
        let weights = SiteWeights::lora(site, 1, 1.0, vec![value; 3], vec![value; 2]);
        AdapterWeights { sites: vec![weights], ..AdapterWeights::default() }
    }

    fn gradients(adapter: &AdapterWeights, value: f32) -> SiteGradients {
        let site = &adapter.sites[0];
        SiteGradients { site: site.site, a: vec![value; 3], b: vec![value; 2] }
    }

    /// The formula in f64, three steps by hand.
    #[test]
    fn equals_the_formula() {
        let settings = OptimizerSettings {
            learning_rate: 0.1,
            weight_decay: 0.2,
            clip_norm: Some(0.5),
            ..OptimizerSettings::default()
        };
        let mut weights = adapter(0, 1.0);
        let mut optimizer = AdamW::new(settings, &weights, 1).unwrap();
        let (mut p, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        for (t, g) in [(1, 0.3), (2, -0.2), (3, 0.9)] {
            let norm = 5f64.sqrt() * f64::abs(g);
            let scale = optimizer.begin(norm);
            let of_site = gradients(&weights, narrow(g));
            let moved = optimizer.update(0, scale, &mut weights.sites[0], &of_site);
            let g = if norm > 0.5 { g * 0.5 / (norm + 1e-6) } else { g };
            let before = p;
            p -= 0.1 * 0.2 * p;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            p -= 0.1 / (1.0 - 0.9f64.powi(t)) * m / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
            let site = &weights.sites[0];
            for value in site.a.iter().chain(&site.b) {
                assert!((f64::from(*value) - p).abs() < 1e-6, "step {t}: {value} {p}");
            }
            assert!((moved - 5.0 * (p - before) * (p - before)).abs() < 1e-6);
        }
        assert_eq!(optimizer.steps(), 3);
    }

    #[test]
    fn layers_below_the_top_move_less() {
        let settings = OptimizerSettings { layer_decay: 0.5, ..OptimizerSettings::default() };
        let moved = |layer| {
            let mut weights = adapter(layer, 0.0);
            let mut optimizer = AdamW::new(settings, &weights, 4).unwrap();
            let scale = optimizer.begin(0.1);
            let of_site = gradients(&weights, 0.01);
            optimizer.update(0, scale, &mut weights.sites[0], &of_site).sqrt()
        };
        let top = moved(3);
        assert!((moved(2) / top - 0.5).abs() < 1e-5 && (moved(0) / top - 0.125).abs() < 1e-5);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |settings: OptimizerSettings| {
            AdamW::new(settings, &adapter(0, 0.0), 1).unwrap_err().to_string()
        };
        let default = OptimizerSettings::default();
        for (settings, message) in [
            (
                OptimizerSettings { learning_rate: f64::NAN, ..default },
                "learning_rate is NaN, expected at least 0",
            ),
            (
                OptimizerSettings { beta2: 1.0, ..default },
                "beta2 is 1, expected at least 0 and below 1",
            ),
            (
                OptimizerSettings { clip_norm: Some(0.0), ..default },
                "clip_norm is 0, expected above 0",
            ),
            (
                OptimizerSettings { layer_decay: 1.5, ..default },
                "layer_decay is 1.5, expected above 0 and at most 1",
            ),
        ] {
            assert_eq!(refused(settings), message);
        }
    }
}
