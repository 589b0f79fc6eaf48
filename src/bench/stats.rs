//! Exact percentiles: every value is kept, so there are no buckets to choose.

use serde::Serialize;

/// What is told of many values of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 values are not above.
    pub p90: f64,
    /// 95 of 100 values are not above.
    pub p95: f64,
    /// 99 of 100 values are not above.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// The summary of `values`; `None` without any.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        Some(Self {
            count: values.len() as u64,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            min,
            p50: percentile(&values, 50),
            p90: percentile(&values, 90),
            p95: percentile(&values, 95),
            p99: percentile(&values, 99),
            max,
        })
    }
}

/// Linear between the two nearest values, as numpy and so vLLM's benchmark have it. `sorted` is not empty.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let hundredths = (sorted.len() - 1) * percent;
    let (below, part) = (hundredths / 100, (hundredths % 100) as f64 / 100.0);
    let above = sorted[(below + 1).min(sorted.len() - 1)];
    sorted[below] + (above - sorted[below]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_equal_numpy() {
        assert_eq!(Summary::of(Vec::new()), None);
        let one = Summary::of(vec![3.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.max), (3.0, 3.0, 3.0));
        // numpy.percentile([1, 2, 3, 4], [50, 90, 95, 99]) = [2.5, 3.7, 3.85, 3.97]
        let four = Summary::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        for (found, expected) in
            [(four.p50, 2.5), (four.p90, 3.7), (four.p95, 3.85), (four.p99, 3.97)]
        {
            assert!((found - expected).abs() < 1e-12, "{four:?}");
        }
        assert_eq!((four.mean, four.min, four.max, four.count), (2.5, 1.0, 4.0, 4));
    }
}
