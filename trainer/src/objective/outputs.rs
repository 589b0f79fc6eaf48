//! Objectives of a [`crate::Head`]: its outputs `o` at the last token of a text.
//!
//! ```text
//! classification   L = −Σ w ln softmax(o)[label] / Σ w          w is a sample's weight: that of its class, for example
//! regression       L = mean (o − score)²
//! reward           L = −mean ln σ(o_preferred − o_rejected)     Bradley and Terry (1952)
//! ```

use super::{log_sigmoid, sigmoid};

/// Loss of one sample before its share of the batch, and `dL/do`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutputLoss {
    pub(crate) loss: f64,
    pub(crate) slopes: Vec<f64>,
}

pub(crate) fn classification(outputs: &[f64], label: usize) -> OutputLoss {
    let largest = outputs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = outputs.iter().map(|output| (output - largest).exp()).sum();
    let lse = largest + sum.ln();
    let slope =
        |(index, output): (usize, &f64)| (output - lse).exp() - f64::from(u8::from(index == label));
    let slopes = outputs.iter().enumerate().map(slope).collect();
    OutputLoss { loss: lse - outputs[label], slopes }
}

pub(crate) fn regression(output: f64, score: f64) -> OutputLoss {
    let off = output - score;
    OutputLoss { loss: off * off, slopes: vec![2.0 * off] }
}

/// The slope is that of the margin.
pub(crate) fn reward(margin: f64) -> OutputLoss {
    OutputLoss { loss: -log_sigmoid(margin), slopes: vec![-sigmoid(-margin)] }
}

/// The label with the largest output; of equal ones the first.
pub(crate) fn likeliest(outputs: &[f64]) -> usize {
    let mut best = 0;
    for (index, output) in outputs.iter().enumerate() {
        if *output > outputs[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives() {
        let check = |at: &[f64], loss: &dyn Fn(&[f64]) -> OutputLoss| {
            for index in 0..at.len() {
                let moved = |by: f64| {
                    let mut at = at.to_vec();
                    at[index] += by;
                    loss(&at).loss
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((loss(at).slopes[index] - slope).abs() < 1e-8, "{at:?}");
            }
        };
        check(&[0.3, -2.0, 1.5], &|o| classification(o, 1));
        check(&[0.3], &|o| regression(o[0], -1.0));
        check(&[-0.7], &|o| reward(o[0]));
    }

    #[test]
    fn large_outputs_and_ties() {
        let found = classification(&[1000.0, -1000.0], 1);
        assert!((found.loss - 2000.0).abs() < 1e-9 && (found.slopes[0] - 1.0).abs() < 1e-12);
        assert_eq!([likeliest(&[1.0, 3.0, 3.0]), likeliest(&[f64::NAN, 0.0])], [1, 0]);
    }
}
