//! The weights of one adapter as the engine takes them: checked, named by site, in Hugging Face row order.

use crate::{breaks::may_break, site::Site, spec::ModelSpec};

/// Largest rank at one site: of one adapter, or of all parts of a composition together.
pub const LORA_RANK_MAX: usize = 512;

/// Low-rank weights of one site: `y += lora_scale * B (A x)`, and what two kinds of adapters have besides.
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
    /// `lora_bias`, `[N]`: `y += lora_scale * (B (A x) + bias)`.
    pub bias: Option<Vec<f32>>,
    /// `DoRA`'s magnitudes `m`, `[N]` (arXiv 2402.09353): row `n` of `W + lora_scale * B A` is scaled to the norm `m[n]`.
    pub magnitude: Option<Vec<f32>>,
}

impl SiteWeights {
    /// Plain `LoRA`.
    pub fn lora(site: Site, rank: usize, lora_scale: f32, a: Vec<f32>, b: Vec<f32>) -> Self {
        Self { site, rank, lora_scale, a, b, bias: None, magnitude: None }
    }

    /// Name and values of what the site has, with the number that it needs.
    fn parts(&self, spec: &ModelSpec) -> impl Iterator<Item = (&'static str, &[f32], usize)> {
        let (n_out, n_in) = spec.linear_shape(self.site.module);
        let bias = self.bias.as_deref().map(|values| ("lora_bias", values, n_out));
        let magnitude =
            self.magnitude.as_deref().map(|values| ("lora_magnitude_vector", values, n_out));
        let a = ("lora_A", self.a.as_slice(), self.rank * n_in);
        let b = ("lora_B", self.b.as_slice(), self.rank * n_out);
        [a, b].into_iter().chain(bias).chain(magnitude)
    }
}

/// An embedding or head of the adapter's own, in place of the base's.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnMatrix {
    /// `[vocab, hidden]`, row-major.
    pub values: Vec<f32>,
    /// It stands for the base's own matrix (PEFT's `base_layer.weight`): where that is embedding and head in one, so is
    /// this. Else (`modules_to_save`) it is a copy beside it.
    pub of_base: bool,
}

/// All sites of one adapter, at most one entry per site, and whole matrices that it brings along.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterWeights {
    /// In ascending order of site.
    pub sites: Vec<SiteWeights>,
    /// Instead of the base's embedding.
    pub embedding: Option<OwnMatrix>,
    /// Instead of the base's head.
    pub head: Option<OwnMatrix>,
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
    /// A matrix or vector has another size than the site needs.
    #[error("{site}: {matrix} has {found} values, expected {expected}")]
    Shape {
        /// Where the weights want to act.
        site: Site,
        /// `lora_A`, `lora_B`, `lora_bias`, `lora_magnitude_vector` or `weight`.
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
        /// As in [`Self::Shape`], or `lora_scale`.
        matrix: &'static str,
    },
    /// A weight is beyond the largest f16, in which the device would hold it.
    #[error("{site}: {matrix} holds {value}, beyond the range of f16")]
    BeyondF16 {
        /// Where the weights want to act.
        site: Site,
        /// `lora_A`, `lora_B` or `weight`.
        matrix: &'static str,
        /// The weight.
        value: f32,
    },
    /// A kind of adapter that cannot be run, there or at this site.
    #[error("{site}: {kind} is not supported on {device}")]
    Unsupported {
        /// Where the weights want to act.
        site: Site,
        /// The kind.
        kind: &'static str,
        /// The device.
        device: &'static str,
    },
    /// `DoRA` divides by the norm of a row that is zero, or beyond f32.
    #[error(
        "{site}: row {row} of the adapted weight cannot be scaled to its magnitude, its norm is {norm}"
    )]
    Norm {
        /// Where the weights act.
        site: Site,
        /// The row.
        row: usize,
        /// Its norm.
        norm: f32,
    },
    /// Embedding and head of the base are one matrix, and the adapter has two others for it.
    #[error(
        "embed_tokens and lm_head of this model are one matrix, and the adapter has two that differ in its place"
    )]
    Untied,
}

impl AdapterWeights {
    /// Every array of values, in no order that means anything.
    pub fn arrays(&self) -> impl Iterator<Item = &[f32]> {
        let sites = self.sites.iter().flat_map(|site| {
            let optional = [&site.bias, &site.magnitude].into_iter().flatten();
            [&site.a, &site.b].into_iter().chain(optional)
        });
        let own = [&self.embedding, &self.head].into_iter().flatten();
        sites.chain(own.map(|matrix| &matrix.values)).map(Vec::as_slice)
    }

    /// Weights of all kinds.
    pub fn n_values(&self) -> usize {
        self.arrays().map(<[f32]>::len).sum()
    }

    /// The matrices of its own, with the site that each replaces.
    pub fn own_matrices(&self) -> impl Iterator<Item = (Site, &OwnMatrix)> {
        [(Site::EMBEDDING, &self.embedding), (Site::HEAD, &self.head)]
            .into_iter()
            .filter_map(|(site, matrix)| Some((site, matrix.as_ref()?)))
    }

    /// Checks every entry against the model.
    ///
    /// # Errors
    /// The first entry that does not fit, by site.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), AdapterWeightsError> {
        let mut previous: Option<Site> = None;
        for weights in &self.sites {
            may_break();
            let site = weights.site;
            if previous.is_some_and(|p| p >= site) {
                return Err(AdapterWeightsError::Order { site });
            }
            previous = Some(site);
            if site.layer >= if site.module.is_end() { 1 } else { spec.n_layers } {
                return Err(AdapterWeightsError::NoSuchLayer { site, n_layers: spec.n_layers });
            }
            if weights.rank == 0 || weights.rank > LORA_RANK_MAX {
                return Err(AdapterWeightsError::Rank { site, rank: weights.rank });
            }
            for (matrix, values, expected) in weights.parts(spec) {
                check_values(site, matrix, values, expected)?;
            }
            if !weights.lora_scale.is_finite() {
                return Err(AdapterWeightsError::NotFinite { site, matrix: "lora_scale" });
            }
            check_kind(weights)?;
        }
        for (site, matrix) in self.own_matrices() {
            check_values(site, "weight", &matrix.values, spec.vocab * spec.hidden)?;
        }
        Ok(())
    }

    /// Checks that a device may hold matrices as f16; vectors (biases, magnitudes) stay f32.
    ///
    /// # Errors
    /// [`AdapterWeightsError::BeyondF16`].
    pub fn check_f16(&self) -> Result<(), AdapterWeightsError> {
        let factors = self.sites.iter().flat_map(|weights| {
            [(weights.site, "lora_A", &weights.a), (weights.site, "lora_B", &weights.b)]
        });
        let own = self.own_matrices().map(|(site, matrix)| (site, "weight", &matrix.values));
        for (site, matrix, values) in factors.chain(own) {
            may_break();
            if let Some(&value) = values.iter().find(|v| v.abs() > half::f16::MAX.to_f32()) {
                return Err(AdapterWeightsError::BeyondF16 { site, matrix, value });
            }
        }
        Ok(())
    }

    /// What embedding and head become, `None` for the base's; the same matrix twice where it stands for the one that is
    /// both (`is_tied`).
    ///
    /// # Errors
    /// [`AdapterWeightsError::Untied`].
    pub fn own_ends(&self, is_tied: bool) -> Result<[Option<&OwnMatrix>; 2], AdapterWeightsError> {
        let ends = [self.embedding.as_ref(), self.head.as_ref()];
        match ends {
            [Some(own), None] | [None, Some(own)] if is_tied && own.of_base => {
                Ok([Some(own), Some(own)])
            }
            [Some(own), Some(other)] if is_tied && own.of_base && other.of_base => {
                if own.values != other.values {
                    return Err(AdapterWeightsError::Untied);
                }
                Ok([Some(own), Some(own)])
            }
            _ => Ok(ends),
        }
    }

    /// Checks that the adapter is plain `LoRA` on linears of layers, the kind that can be trained.
    ///
    /// # Errors
    /// [`AdapterWeightsError::Unsupported`] with the first kind beyond it.
    pub(crate) fn check_plain(&self, device: &'static str) -> Result<(), AdapterWeightsError> {
        let refuse = |site, kind| Err(AdapterWeightsError::Unsupported { site, kind, device });
        for weights in &self.sites {
            let site = weights.site;
            let kind = if site == Site::EMBEDDING {
                "LoRA on the embedding"
            } else if site == Site::HEAD {
                "LoRA on the head"
            } else if weights.magnitude.is_some() {
                "DoRA (`use_dora`)"
            } else if weights.bias.is_some() {
                "a bias of lora_B (`lora_bias`)"
            } else {
                continue;
            };
            return refuse(site, kind);
        }
        match self.own_matrices().next() {
            Some((site, _)) => refuse(site, "a whole matrix of the adapter's own"),
            None => Ok(()),
        }
    }
}

fn check_values(
    site: Site,
    matrix: &'static str,
    values: &[f32],
    expected: usize,
) -> Result<(), AdapterWeightsError> {
    if values.len() != expected {
        return Err(AdapterWeightsError::Shape { site, matrix, found: values.len(), expected });
    }
    if !values.iter().all(|v| v.is_finite()) {
        return Err(AdapterWeightsError::NotFinite { site, matrix });
    }
    Ok(())
}

/// Kinds that no device runs.
fn check_kind(weights: &SiteWeights) -> Result<(), AdapterWeightsError> {
    let (embedding, bias) = (weights.site == Site::EMBEDDING, weights.bias.is_some());
    let kind = match weights.magnitude {
        Some(_) if embedding => "DoRA of an embedding",
        // PEFT takes the bias into every column of the norm.
        Some(_) if bias => "DoRA with `lora_bias`",
        None if embedding && bias => "`lora_bias` of an embedding",
        _ => return Ok(()),
    };
    Err(AdapterWeightsError::Unsupported { site: weights.site, kind, device: "any device" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::TargetModule;

    #[test]
    fn weights_beyond_f16_are_refused_by_site() {
        let site = Site { layer: 3, module: TargetModule::OProj };
        let weights = |value| AdapterWeights {
            sites: vec![SiteWeights::lora(site, 1, 1.0, vec![0.5], vec![1.0, value])],
            ..AdapterWeights::default()
        };
        assert_eq!(weights(65504.0).check_f16(), Ok(()));
        let error = weights(-65536.0).check_f16().unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.layers.3.self_attn.o_proj: lora_B holds -65536, beyond the range of f16"
        );
    }

    #[test]
    fn one_matrix_stands_for_both_ends_where_the_base_has_one() {
        let own = |value, of_base| Some(OwnMatrix { values: vec![value], of_base });
        let ends = |embedding, head, is_tied| {
            let weights = AdapterWeights { sites: Vec::new(), embedding, head };
            let values = |own: &OwnMatrix| own.values[0];
            weights.own_ends(is_tied).map(|ends| ends.map(|own| own.map(values)))
        };
        assert_eq!(ends(own(1.0, true), None, true), Ok([Some(1.0), Some(1.0)]));
        assert_eq!(ends(None, own(1.0, true), true), Ok([Some(1.0), Some(1.0)]));
        assert_eq!(ends(own(1.0, true), own(1.0, true), true), Ok([Some(1.0), Some(1.0)]));
        assert_eq!(
            ends(own(1.0, true), own(2.0, true), true),
            Err(AdapterWeightsError::Untied),
            "one matrix cannot be two"
        );
        // Copies beside the base's matrix, and bases that have two.
        assert_eq!(ends(own(1.0, false), None, true), Ok([Some(1.0), None]));
        assert_eq!(ends(own(1.0, false), own(2.0, false), true), Ok([Some(1.0), Some(2.0)]));
        assert_eq!(ends(own(1.0, true), own(2.0, true), false), Ok([Some(1.0), Some(2.0)]));
    }

    #[test]
    fn the_trainer_refuses_every_other_kind_by_name() {
        let plain = |site| SiteWeights::lora(site, 1, 1.0, vec![0.5], vec![1.0]);
        let linear = Site { layer: 2, module: TargetModule::QProj };
        let own = || Some(OwnMatrix { values: vec![0.0], of_base: true });
        let with = |edit: fn(&mut SiteWeights)| {
            let mut site = plain(linear);
            edit(&mut site);
            AdapterWeights { sites: vec![site], ..AdapterWeights::default() }
        };
        let of_sites =
            |sites: Vec<SiteWeights>| AdapterWeights { sites, ..AdapterWeights::default() };
        for (weights, message) in [
            (
                with(|site| site.magnitude = Some(vec![1.0])),
                "model.layers.2.self_attn.q_proj: DoRA (`use_dora`)",
            ),
            (
                with(|site| site.bias = Some(vec![1.0])),
                "model.layers.2.self_attn.q_proj: a bias of lora_B (`lora_bias`)",
            ),
            (of_sites(vec![plain(linear), plain(Site::HEAD)]), "lm_head: LoRA on the head"),
            (of_sites(vec![plain(Site::EMBEDDING)]), "model.embed_tokens: LoRA on the embedding"),
            (
                AdapterWeights { head: own(), ..AdapterWeights::default() },
                "lm_head: a whole matrix of the adapter's own",
            ),
            (
                AdapterWeights { embedding: own(), ..AdapterWeights::default() },
                "model.embed_tokens: a whole matrix of the adapter's own",
            ),
        ] {
            let error = weights.check_plain("the trainer").unwrap_err().to_string();
            assert_eq!(error, format!("{message} is not supported on the trainer"));
        }
        assert_eq!(of_sites(vec![plain(linear)]).check_plain("the trainer"), Ok(()));
    }
}
