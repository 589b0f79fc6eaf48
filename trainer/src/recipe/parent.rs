//! An adapter to go on from.

use std::{collections::BTreeMap, sync::Arc};

use pleach_engine::{adapter_weights::AdapterWeights, spec::ModelSpec};

use super::RecipeError;
use crate::LoraSettings;

/// An adapter to go on from, with the sites, ranks and scales that it has. Preferences are compared with it.
#[derive(Clone, Debug)]
pub struct Parent(Arc<AdapterWeights>);

impl Parent {
    /// Takes plain `LoRA` on linears of layers.
    ///
    /// # Errors
    /// [`RecipeError::Parent`]: `DoRA`, `lora_bias`, an embedding or a head, and where it is.
    pub fn new(weights: Arc<AdapterWeights>) -> Result<Self, RecipeError> {
        let error = |site, kind| Err(RecipeError::Parent { site, kind });
        if let Some((site, _)) = weights.own_matrices().next() {
            return error(site, "a whole matrix of the adapter's own");
        }
        for weights in &weights.sites {
            let site = weights.site;
            if site.module.is_end() {
                return error(site, "an embedding or head");
            }
            if weights.magnitude.is_some() {
                return error(site, "DoRA");
            }
            if weights.bias.is_some() {
                return error(site, "lora_bias");
            }
        }
        Ok(Self(weights))
    }

    /// Nothing learned in the same sites, ranks and scales: to begin at the base.
    ///
    /// # Errors
    /// [`RecipeError::Trainer`]: a site that the model has not.
    pub fn anew(&self, spec: &ModelSpec, seed: u64) -> Result<Self, RecipeError> {
        let mut fresh = self.lora().fresh(spec, seed)?;
        // Both are in the order of their sites.
        for (fresh, own) in fresh.sites.iter_mut().zip(&self.0.sites) {
            fresh.lora_scale = own.lora_scale;
        }
        Ok(Self(Arc::new(fresh)))
    }

    /// Its weights.
    pub fn weights(&self) -> &Arc<AdapterWeights> {
        &self.0
    }

    /// Its sites, ranks and the scale that most of them have.
    pub fn lora(&self) -> LoraSettings {
        let mut counts: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        for site in &self.0.sites {
            *counts.entry((site.rank, site.lora_scale.to_bits())).or_default() += 1;
        }
        let usual = counts.into_iter().max_by_key(|(settings, count)| (*count, *settings));
        let (rank, scale) = usual.map_or((1, 1f32.to_bits()), |(settings, _)| settings);
        LoraSettings {
            rank,
            alpha: f64::from(f32::from_bits(scale)) * rank as f64,
            use_rslora: false,
            modules: Vec::new(),
            ranks: self.0.sites.iter().map(|site| (site.site, site.rank)).collect(),
        }
    }
}
