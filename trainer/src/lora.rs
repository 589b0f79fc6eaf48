//! Which factors are trained, and how they begin.

use std::collections::BTreeMap;

use pleach_engine::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX, SiteWeights},
    sampler::philox4x32,
    site::{Site, TargetModule},
    spec::ModelSpec,
    train::AdapterShape,
};

use crate::TrainerError;

/// Shape and scale of the factors, as in PEFT.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// `r`, where `ranks` says nothing.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// Scale by `alpha / √r` instead of `alpha / r` (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Linears that are trained, of every layer.
    pub modules: Vec<TargetModule>,
    /// Ranks of single sites; 0 leaves the site out.
    pub ranks: BTreeMap<Site, usize>,
}

impl LoraSettings {
    /// All linears of all layers, `alpha` twice the rank.
    pub fn all_linear(rank: usize) -> Self {
        Self {
            rank,
            alpha: 2.0 * rank as f64,
            use_rslora: false,
            modules: TargetModule::ALL.to_vec(),
            ranks: BTreeMap::new(),
        }
    }

    /// Scale of a site of this rank.
    pub fn scale(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Sites and ranks in a model.
    ///
    /// # Errors
    /// [`TrainerError::Site`] for a site that is none of a linear in a layer, or a rank outside
    /// `1..=`[`LORA_RANK_MAX`]; [`TrainerError::Setting`].
    pub fn shape(&self, spec: &ModelSpec) -> Result<AdapterShape, TrainerError> {
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            let (setting, value) = ("alpha", self.alpha);
            return Err(TrainerError::Setting { setting, value, expected: "above 0" });
        }
        let error = |site, problem| Err(TrainerError::Site { site, problem });
        let mut ranks = BTreeMap::new();
        for layer in 0..spec.n_layers {
            ranks.extend(self.modules.iter().map(|&module| (Site { layer, module }, self.rank)));
        }
        ranks.extend(&self.ranks);
        ranks.retain(|_, rank| *rank > 0);
        if ranks.is_empty() {
            let (setting, expected) = ("modules", "at least one linear");
            return Err(TrainerError::Setting { setting, value: 0.0, expected });
        }
        for (&site, &rank) in &ranks {
            if site.module.is_end() {
                return error(site, "it is no linear of a layer");
            }
            if site.layer >= spec.n_layers {
                return error(site, "the model has no such layer");
            }
            if rank > LORA_RANK_MAX {
                return error(site, "its rank is too large");
            }
        }
        Ok(AdapterShape { sites: ranks.into_iter().collect() })
    }

    /// A fresh adapter, which changes nothing yet: `A` uniform in `±1/√K`, as PEFT begins, `B` zero. The same settings,
    /// model and seed give the same bytes; a site's values do not depend on which others there are.
    ///
    /// # Errors
    /// As [`Self::shape`].
    pub fn fresh(&self, spec: &ModelSpec, seed: u64) -> Result<AdapterWeights, TrainerError> {
        let shape = self.shape(spec)?;
        let site = |(site, rank): (Site, usize)| {
            let (n_out, n_in) = spec.linear_shape(site.module);
            let a = uniform(seed, site, rank * n_in, 1.0 / (n_in as f32).sqrt());
            let scale = crate::optimizer::narrow(self.scale(rank));
            SiteWeights::lora(site, rank, scale, a, vec![0.0; n_out * rank])
        };
        let sites = shape.sites.into_iter().map(site).collect();
        Ok(AdapterWeights { sites, ..AdapterWeights::default() })
    }
}

/// `n` values in `-bound..bound`.
fn uniform(seed: u64, site: Site, n: usize, bound: f32) -> Vec<f32> {
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let [low, high] =
        [0, 32].map(|shift| u32::try_from((seed >> shift) & 0xffff_ffff).unwrap_or(0));
    let words = (0..n.div_ceil(4)).flat_map(|index| {
        philox4x32([word(index), word(site.layer), word(site.module.index()), 0], [low, high])
    });
    // 24 bits, as many as an f32 holds.
    let unit = |word: u32| (word >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
    words.take(n).map(|word| unit(word) * bound).collect()
}

#[cfg(test)]
mod tests {
    use pleach_engine::spec::{Architecture, RopeScaling};

    use super::*;

    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: Architecture::Llama,
            name: "tiny".to_owned(),
            n_layers: 2,
            hidden: 64,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            vocab: 320,
            context: 128,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
        }
    }

    #[test]
    fn fresh_adapters_follow_the_settings() {
        let mut settings = LoraSettings::all_linear(8);
        let site = |layer, module| Site { layer, module };
        settings.ranks = BTreeMap::from([
            (site(0, TargetModule::QProj), 4),
            (site(1, TargetModule::DownProj), 0),
        ]);
        let adapter = settings.fresh(&spec(), 5).unwrap();
        adapter.check(&spec()).unwrap();
        assert_eq!(adapter.sites.len(), 13);
        assert_eq!((adapter.sites[0].rank, adapter.sites[1].rank), (4, 8));
        assert!((adapter.sites[0].lora_scale - 4.0).abs() < 1e-6);
        for weights in &adapter.sites {
            let (_, n_in) = spec().linear_shape(weights.site.module);
            let bound = 1.0 / (n_in as f32).sqrt();
            let largest = weights.a.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest}", weights.site);
            let mean = weights.a.iter().sum::<f32>() / weights.a.len() as f32;
            assert!(mean.abs() < 0.1 * bound, "{}: mean {mean}", weights.site);
            assert!(weights.b.iter().all(|value| value.to_bits() == 0));
        }
        assert_eq!(adapter, settings.fresh(&spec(), 5).unwrap());
        assert_ne!(adapter, settings.fresh(&spec(), 6).unwrap());
        settings.ranks.clear();
        // Others do not change a site's values.
        assert_eq!(settings.fresh(&spec(), 5).unwrap().sites[1], adapter.sites[1]);
        settings.use_rslora = true;
        assert!(
            (settings.fresh(&spec(), 5).unwrap().sites[0].lora_scale - 16.0 / 8f32.sqrt()).abs()
                < 1e-6
        );
    }

    #[test]
    fn sites_that_cannot_be_trained_are_named() {
        let with = |site, rank| LoraSettings {
            ranks: BTreeMap::from([(site, rank)]),
            ..LoraSettings::all_linear(8)
        };
        let message = |settings: LoraSettings| settings.shape(&spec()).unwrap_err().to_string();
        let beyond = Site { layer: 2, module: TargetModule::QProj };
        for (settings, expected) in [
            (with(Site::HEAD, 4), "lm_head cannot be trained: it is no linear of a layer"),
            (
                with(beyond, 4),
                "model.layers.2.self_attn.q_proj cannot be trained: the model has no such layer",
            ),
            (
                with(Site { layer: 0, ..beyond }, 257),
                "model.layers.0.self_attn.q_proj cannot be trained: its rank is too large",
            ),
            (
                LoraSettings { modules: Vec::new(), ..LoraSettings::all_linear(8) },
                "modules is 0, expected at least one linear",
            ),
            (
                LoraSettings { alpha: 0.0, ..LoraSettings::all_linear(8) },
                "alpha is 0, expected above 0",
            ),
        ] {
            assert_eq!(message(settings), expected);
        }
    }
}
