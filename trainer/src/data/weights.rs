//! Weights that let rare classes count.

/// `n_rows / (n_classes · n_rows of the class)`: every class has the same sum of weights, and the mean weight of a row
/// is 1. A class without rows has weight 0. (scikit-learn's "balanced".)
pub fn balanced_weights(rows_of_class: &[u64]) -> Vec<f64> {
    normalized(rows_of_class, |n| 1.0 / n)
}

/// `(1 - beta) / (1 - beta^n)` for a class of `n` rows, scaled so that the mean weight of a row is 1: rows of a large
/// class overlap, so its effective number is smaller. With `beta` = 0 all weights are 1; towards 1 they become
/// [`balanced_weights`]. Source: Cui et al. 2019 (arXiv 1901.05555), who use 0.9 to 0.9999.
///
/// # Panics
/// If `beta` is not in `0..1`.
pub fn effective_number_weights(rows_of_class: &[u64], beta: f64) -> Vec<f64> {
    assert!((0.0..1.0).contains(&beta), "beta must be from 0 to below 1");
    normalized(rows_of_class, |n| (1.0 - beta) / (1.0 - beta.powf(n)))
}

fn normalized(rows_of_class: &[u64], weight: impl Fn(f64) -> f64) -> Vec<f64> {
    let raw: Vec<f64> =
        rows_of_class.iter().map(|&n| if n == 0 { 0.0 } else { weight(n as f64) }).collect();
    let n_rows: u64 = rows_of_class.iter().sum();
    let sum: f64 = raw.iter().zip(rows_of_class).map(|(weight, &n)| weight * n as f64).sum();
    raw.into_iter()
        .map(|weight| if sum > 0.0 { weight * n_rows as f64 / sum } else { 0.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
        }
    }

    #[test]
    fn classes_have_equal_sums() {
        close(&balanced_weights(&[10, 30, 0]), &[2.0, 2.0 / 3.0, 0.0]);
        close(&balanced_weights(&[5, 5]), &[1.0, 1.0]);
        close(&balanced_weights(&[]), &[]);
        close(&balanced_weights(&[0, 0]), &[0.0, 0.0]);
    }

    #[test]
    fn effective_numbers_lie_between_equal_and_balanced() {
        close(&effective_number_weights(&[10, 1000], 0.0), &[1.0, 1.0]);
        let near_one = effective_number_weights(&[10, 1000], 1.0 - 1e-9);
        let balanced = balanced_weights(&[10, 1000]);
        assert!((near_one[0] / balanced[0] - 1.0).abs() < 1e-4);
        // By hand: beta 0.9, E(1) = 1, E(2) = 1.9; raw weights 1 and 1/1.9, over three rows.
        let sum = 1.0 + 2.0 / 1.9;
        close(&effective_number_weights(&[1, 2], 0.9), &[3.0 / sum, 3.0 / 1.9 / sum]);
    }
}
