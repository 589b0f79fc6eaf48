//! Found against expected.

use super::CheckRow;

/// `|found − expected| ≤ abs + rel · magnitude`, where the magnitude is what rounding errors of the value are
/// proportional to: the value itself, or the sum of the magnitudes of what it is the sum of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub(super) abs: f64,
    pub(super) rel: f64,
}

/// Sums in f32 in another order.
pub(super) const F32_SUM: Tolerance = Tolerance { abs: 1e-7, rel: 2e-6 };
/// One rounding to f16 (2^-11) of a value that f32 gives; the smallest normal f16 is 6.1e-5.
pub(super) const F16_ROUNDED: Tolerance = Tolerance { abs: 1e-7, rel: 5.2e-4 };
/// Probabilities and the result rounded to f16 (2^-11 each), of what the result is the sum of.
pub(super) const F16_ATTENTION: Tolerance = Tolerance { abs: 1e-6, rel: 1.1e-3 };
/// Logarithms of sums of exponentials in f32.
pub(super) const LOGPROB: Tolerance = Tolerance { abs: 4e-6, rel: 1e-6 };

/// The worst so far of one shape.
#[derive(Debug)]
pub(super) struct Comparison {
    name: &'static str,
    shape: String,
    worst_ratio: f64,
    worst: String,
}

impl Comparison {
    pub(super) fn new(name: &'static str, shape: String) -> Self {
        Self { name, shape, worst_ratio: 0.0, worst: String::new() }
    }

    /// A value within a tolerance.
    pub(super) fn near(
        &mut self,
        place: impl FnOnce() -> String,
        found: f64,
        expected: f64,
        magnitude: f64,
        tolerance: Tolerance,
    ) {
        let ratio = (found - expected).abs() / (tolerance.abs + tolerance.rel * magnitude.abs());
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        if ratio > self.worst_ratio {
            self.worst_ratio = ratio;
            self.worst = format!("{}: found {found}, expected {expected}", place());
        }
    }

    /// Something that holds exactly, or not.
    pub(super) fn holds(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.worst_ratio < f64::INFINITY {
            self.worst_ratio = f64::INFINITY;
            self.worst = what();
        }
    }

    /// The bytes around an output.
    pub(super) fn guards(&mut self, whole: bool) {
        self.holds(whole, || "wrote beyond its output".to_owned());
    }

    /// Values that a kernel must not have touched.
    pub(super) fn untouched<T: Copy + std::fmt::Debug>(
        &mut self,
        what: &str,
        values: &[T],
        is_fill: impl Fn(T) -> bool,
    ) {
        if let Some(at) = values.iter().position(|&value| !is_fill(value)) {
            self.holds(false, || format!("wrote {:?} at {at} of {what}", values[at]));
        }
    }

    pub(super) fn row(self) -> CheckRow {
        let pass = self.worst_ratio <= 1.0;
        CheckRow {
            name: self.name,
            shape: self.shape,
            worst_ratio: self.worst_ratio,
            worst: self.worst,
            pass,
        }
    }
}

pub(super) fn is_fill_half(value: half::f16) -> bool {
    value.to_bits() == u16::MAX
}

pub(super) fn is_fill_float(value: f32) -> bool {
    value.to_bits() == u32::MAX
}
