//! What became of the weights, and what was lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Encoding, Matrix};

/// Squares of values and of what rounding changed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss {
    values: f64,
    errors: f64,
}

impl Loss {
    pub(crate) fn add(&mut self, value: f32, written: f32) {
        let (value, error) = (f64::from(value), f64::from(written) - f64::from(value));
        self.values += value * value;
        self.errors += error * error;
    }

    fn join(&mut self, other: Self) {
        self.values += other.values;
        self.errors += other.errors;
    }

    /// Frobenius norm of the error, as a share of that of the values.
    pub(crate) fn relative_error(self) -> f64 {
        if self.errors == 0.0 { 0.0 } else { (self.errors / self.values).sqrt() }
    }
}

/// Matrices of one format that were written in one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsWritten {
    /// Block format in the model file, `merged` after it where an adapter was merged into them.
    pub from: String,
    /// `f32`, or bits and values that share a scale: `int4 by 32`.
    pub to: String,
    /// How many.
    pub matrices: usize,
    /// Values of all of them.
    pub values: u64,
    /// Whether the values are those of the file (and the adapter).
    pub exact: bool,
    /// Frobenius norm of what was lost, as a share of that of the values.
    pub relative_error: f64,
}

/// Sums over all matrices.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<(String, String), (usize, u64, bool, Loss)>);

impl Tally {
    pub(crate) fn add(&mut self, matrix: &Matrix<'_, '_>, encoding: Encoding, loss: Loss) {
        let merged = if matrix.is_changed() { " merged" } else { "" };
        let from = format!("{}{merged}", matrix.format());
        let entry = self.0.entry((from, encoding.to_string())).or_default();
        entry.0 += 1;
        entry.1 += matrix.n_out as u64 * matrix.n_in as u64;
        entry.2 = encoding == Encoding::Floats || matrix.unchanged_codes().is_some();
        entry.3.join(loss);
    }

    pub(crate) fn finish(self) -> Vec<WeightsWritten> {
        let row = |((from, to), (matrices, values, exact, loss)): (_, (_, _, _, Loss))| {
            let relative_error = loss.relative_error();
            WeightsWritten { from, to, matrices, values, exact, relative_error }
        };
        self.0.into_iter().map(row).collect()
    }
}
