//! The weights of one adapter as the engine takes them: checked, named by site, in Hugging Face row order.

use crate::{site::Site, spec::ModelSpec};

/// Largest rank of one adapter at one site.
pub const LORA_RANK_MAX: usize = 256;

/// Low-rank weights of one site: `y += lora_scale * B (A x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteWeights {
    /// Where they act.
    pub site: Site,
    /// Rank `R`, `1..=LORA_RANK_MAX`.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub lora_scale: f32,
    /// `[R, K]`, row-major.
    pub a: Vec<f32>,
    /// `[N, R]`, row-major, rows in Hugging Face order (half-split `RoPE`).
    pub b: Vec<f32>,
}

/// All sites of one adapter, at most one entry per site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterWeights {
    /// In ascending order of site.
    pub sites: Vec<SiteWeights>,
}

/// Why weights cannot be used with a model.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum AdapterWeightsError {
    /// The layer does not exist.
    #[error("{site}: the model has {n_layers} layers")]
    NoSuchLayer {
        /// Where the weights want to act.
        site: Site,
        /// Layers of the model.
        n_layers: usize,
    },
    /// A matrix has another size than the site needs.
    #[error("{site}: {matrix} has {found} values, expected {expected}")]
    Shape {
        /// Where the weights want to act.
        site: Site,
        /// `lora_A` or `lora_B`.
        matrix: &'static str,
        /// Values found.
        found: usize,
        /// Values that rank and site need.
        expected: usize,
    },
    /// Rank zero or above the limit.
    #[error("{site}: rank {rank} is outside 1..={LORA_RANK_MAX}")]
    Rank {
        /// Where the weights want to act.
        site: Site,
        /// The rank.
        rank: usize,
    },
    /// Two entries for one site.
    #[error("{site}: named twice, or out of order")]
    Order {
        /// The site.
        site: Site,
    },
    /// A weight or the scale is NaN or infinite.
    #[error("{site}: {matrix} holds a value that is not finite")]
    NotFinite {
        /// Where the weights want to act.
        site: Site,
        /// `lora_A`, `lora_B` or `lora_scale`.
        matrix: &'static str,
    },
    /// A weight is beyond the largest f16, in which the device would hold it.
    #[error("{site}: {matrix} holds {value}, beyond the range of f16")]
    BeyondF16 {
        /// Where the weights want to act.
        site: Site,
        /// `lora_A` or `lora_B`.
        matrix: &'static str,
        /// The weight.
        value: f32,
    },
}

impl AdapterWeights {
    /// Checks every entry against the model.
    ///
    /// # Errors
    /// The first entry that does not fit, by site.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), AdapterWeightsError> {
        let mut previous: Option<Site> = None;
        for weights in &self.sites {
            let site = weights.site;
            if previous.is_some_and(|p| p >= site) {
                return Err(AdapterWeightsError::Order { site });
            }
            previous = Some(site);
            if site.layer >= spec.n_layers {
                return Err(AdapterWeightsError::NoSuchLayer { site, n_layers: spec.n_layers });
            }
            if weights.rank == 0 || weights.rank > LORA_RANK_MAX {
                return Err(AdapterWeightsError::Rank { site, rank: weights.rank });
            }
            let (n_out, n_in) = spec.linear_shape(site.module);
            for (matrix, values, expected) in [
                ("lora_A", &weights.a, weights.rank * n_in),
                ("lora_B", &weights.b, weights.rank * n_out),
            ] {
                if values.len() != expected {
                    return Err(AdapterWeightsError::Shape {
                        site,
                        matrix,
                        found: values.len(),
                        expected,
                    });
                }
                if !values.iter().all(|v| v.is_finite()) {
                    return Err(AdapterWeightsError::NotFinite { site, matrix });
                }
            }
            if !weights.lora_scale.is_finite() {
                return Err(AdapterWeightsError::NotFinite { site, matrix: "lora_scale" });
            }
        }
        Ok(())
    }

    /// Checks that a device may hold the weights as f16.
    ///
    /// # Errors
    /// [`AdapterWeightsError::BeyondF16`].
    pub fn check_f16(&self) -> Result<(), AdapterWeightsError> {
        for weights in &self.sites {
            for (matrix, values) in [("lora_A", &weights.a), ("lora_B", &weights.b)] {
                if let Some(&value) = values.iter().find(|v| v.abs() > half::f16::MAX.to_f32()) {
                    return Err(AdapterWeightsError::BeyondF16 {
                        site: weights.site,
                        matrix,
                        value,
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::TargetModule;

    #[test]
    fn weights_beyond_f16_are_refused_by_site() {
        let site = Site { layer: 3, module: TargetModule::OProj };
        let weights = |value| AdapterWeights {
            sites: vec![SiteWeights {
                site,
                rank: 1,
                lora_scale: 1.0,
                a: vec![0.5],
                b: vec![1.0, value],
            }],
        };
        assert_eq!(weights(65504.0).check_f16(), Ok(()));
        let error = weights(-65536.0).check_f16().unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.layers.3.self_attn.o_proj: lora_B holds -65536, beyond the range of f16"
        );
    }
}
