//! The gate and what it is given: scores of samples, folds, judgement, and how often it errs.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod faults;
mod folds;
mod scoring;
mod simulation;

use pleach_engine::sampler::philox4x32;

/// Random numbers of one seed and stream.
pub(crate) struct Random {
    key: [u32; 2],
    counter: u32,
}

impl Random {
    pub(crate) fn new(seed: u32, stream: u32) -> Self {
        Self { key: [seed, stream], counter: 0 }
    }

    /// Above 0, below 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        let [word, ..] = philox4x32([self.counter, 0, 0, 0], self.key);
        self.counter += 1;
        (f64::from(word) + 0.5) / (f64::from(u32::MAX) + 1.0)
    }

    /// From -0.5 to 0.5, in steps of 2⁻¹⁶.
    pub(crate) fn small(&mut self) -> f32 {
        let [word, ..] = philox4x32([self.counter, 0, 0, 0], self.key);
        self.counter += 1;
        f32::from(u16::try_from(word >> 16).unwrap()) / 65_536.0 - 0.5
    }

    /// Mean 0, variance 1 (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Student's t: a normal variable by the root of a mean of squares of others.
    pub(crate) fn student(&mut self, df: u32) -> f64 {
        let squares: f64 = (0..df).map(|_| self.normal().powi(2)).sum();
        self.normal() / (squares / f64::from(df)).sqrt()
    }
}
