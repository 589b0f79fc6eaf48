//! A head of an adapter's own: outputs from the hidden state of a text's last token, `o = W h` without a bias. In
//! transformers and PEFT it is the module `score` of a sequence classifier.

use std::path::Path;

use pleach_engine::sampler::philox4x32;
use safetensors::{Dtype, SafeTensors};

use crate::{error::TrainerError, optimizer::narrow, state::StateError};

/// Layer and module in the counter that draws a fresh head: beyond those of any site.
const FRESH: [u32; 2] = [u32::MAX, u32::MAX];

/// The name of its tensor in a PEFT folder.
pub(crate) const TENSOR: &str = "base_model.model.score.weight";

/// Weights of a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    hidden: usize,
    /// `[outputs, hidden]`, row-major.
    pub(crate) weights: Vec<f32>,
}

impl Head {
    /// A head with these weights, `[outputs, hidden]`.
    ///
    /// # Errors
    /// [`TrainerError::Head`] if they are not whole rows.
    pub fn new(hidden: usize, weights: Vec<f32>) -> Result<Self, TrainerError> {
        if hidden == 0 || weights.is_empty() || !weights.len().is_multiple_of(hidden) {
            return Err(TrainerError::Head { found: weights.len(), hidden });
        }
        Ok(Self { hidden, weights })
    }

    /// A head to begin with: uniform in `±1/√hidden`, as `PyTorch` begins linears.
    pub fn fresh(n_outputs: usize, hidden: usize, seed: u64) -> Self {
        let bound = 1.0 / (hidden as f32).sqrt();
        let [low, high] =
            [0, 32].map(|shift| u32::try_from((seed >> shift) & 0xffff_ffff).unwrap_or(0));
        let n = n_outputs * hidden;
        let calls = u32::try_from(n.div_ceil(4)).unwrap_or(u32::MAX);
        let words =
            (0..calls).flat_map(|call| philox4x32([call, FRESH[0], FRESH[1], 0], [low, high]));
        let unit = |word: u32| (word >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
        Self { hidden, weights: words.take(n).map(|word| unit(word) * bound).collect() }
    }

    /// Reads the head of a PEFT folder of a sequence classifier, of a model of this width.
    ///
    /// # Errors
    /// [`StateError`]: of the disk, or without such a tensor.
    pub fn load(folder: &Path, hidden: usize) -> Result<Self, StateError> {
        let path = folder.join("adapter_model.safetensors");
        let bytes = std::fs::read(&path)
            .map_err(|source| StateError::File { path: path.display().to_string(), source })?;
        let file = SafeTensors::deserialize(&bytes)?;
        let found = file.tensor(TENSOR).ok().filter(|found| {
            found.dtype() == Dtype::F32 && found.shape().len() == 2 && found.shape()[1] == hidden
        });
        let missing = || StateError::Tensor { tensor: TENSOR.to_owned(), shape: vec![0, hidden] };
        let values = found.ok_or_else(missing)?.data().as_chunks::<4>().0.iter();
        let weights = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Self::new(hidden, weights).map_err(|_| missing())
    }

    /// Outputs.
    pub fn n_outputs(&self) -> usize {
        self.weights.len() / self.hidden
    }

    /// `[outputs, hidden]`, row-major.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// `W h`; sums in f64.
    ///
    /// # Panics
    /// When `h` has another width.
    pub fn outputs(&self, feature: &[f32]) -> Vec<f64> {
        assert_eq!(feature.len(), self.hidden, "width of a feature");
        let dot =
            |row: &[f32]| row.iter().zip(feature).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
        self.weights.chunks_exact(self.hidden).map(dot).collect()
    }

    /// Adds `slopesᵀ h` to the gradient of the weights; returns `Wᵀ slopes`, the feature's.
    pub(crate) fn backward(
        &self,
        feature: &[f32],
        slopes: &[f32],
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let mut of_feature = vec![0.0; self.hidden];
        let rows = self.weights.chunks_exact(self.hidden);
        for ((row, gradient), slope) in rows.zip(gradient.chunks_exact_mut(self.hidden)).zip(slopes)
        {
            gradient.iter_mut().zip(feature).for_each(|(sum, h)| *sum += slope * h);
            of_feature
                .iter_mut()
                .zip(row)
                .for_each(|(sum, w)| *sum += f64::from(*slope) * f64::from(*w));
        }
        of_feature.into_iter().map(narrow).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_and_gradients_are_those_of_a_matrix() {
        let head = Head::new(3, vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.0]).unwrap();
        let feature = [0.5, -1.0, 2.0];
        assert_eq!((head.n_outputs(), head.outputs(&feature)), (2, vec![4.5, -1.0]));
        let mut gradient = vec![1.0; 6];
        let of_feature = head.backward(&feature, &[2.0, -4.0], &mut gradient);
        assert_eq!(of_feature, [6.0, 2.0, 6.0]);
        assert_eq!(gradient, [2.0, -1.0, 5.0, -1.0, 5.0, -7.0]);
    }

    #[test]
    fn fresh_heads_follow_the_seed_and_others_are_refused() {
        let head = Head::fresh(3, 64, 5);
        assert_eq!(head, Head::fresh(3, 64, 5));
        assert_ne!(head, Head::fresh(3, 64, 6));
        let largest = head.weights.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        assert!(largest <= 0.125 && largest > 0.11, "{largest}");
        assert_eq!(
            Head::new(3, vec![0.0; 4]).unwrap_err().to_string(),
            "a head of 4 weights over hidden states of 3 values"
        );
    }
}
