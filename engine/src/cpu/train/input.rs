//! What the operations of a pass only read.

use std::sync::Arc;

use crate::{
    adapter_weights::{AdapterWeights, SiteWeights},
    backend::HeadNorms,
    cpu::{Isa, packed::PackedMatrix},
};

use super::{
    base::{Frozen, FrozenLinear},
    dropout::Masks,
    linear::Dropped,
    plan::BatchPlan,
    program::{LinearAt, Norm, SiteAt},
};

/// What the operations of a pass only read, apart from its buffers.
#[derive(Debug)]
pub(super) struct PassInput {
    pub(super) base: Arc<Frozen>,
    pub(super) isa: Isa,
    pub(super) plan: BatchPlan,
    pub(super) adapter: Option<Arc<AdapterWeights>>,
    pub(super) masks: Option<Masks>,
}

impl PassInput {
    pub(super) fn new(base: Arc<Frozen>, isa: Isa) -> Self {
        Self { base, isa, plan: BatchPlan::default(), adapter: None, masks: None }
    }

    /// The weights of a site that the program names.
    pub(super) fn site_weights(&self, site: SiteAt) -> &SiteWeights {
        let adapter = self.adapter.as_ref();
        &adapter.expect("programs name sites only where there is an adapter").sites[site.index]
    }

    /// Output and input features of a site.
    pub(super) fn site_shape(&self, site: SiteAt) -> (usize, usize) {
        self.base.spec.linear_shape(self.site_weights(site).site.module)
    }

    pub(super) fn linear(&self, at: LinearAt) -> &FrozenLinear {
        self.base.layers[at.layer].linear(at.module)
    }

    pub(super) fn matrix(&self, at: LinearAt) -> &PackedMatrix {
        &self.linear(at).matrix
    }

    pub(super) fn head_norms(&self, layer: usize) -> Option<&HeadNorms<Vec<f32>>> {
        self.base.layers[layer].head_norms.as_ref()
    }

    pub(super) fn norm_weight(&self, norm: Norm) -> &[f32] {
        match norm {
            Norm::Attention(layer) => &self.base.layers[layer].attention_norm,
            Norm::Ffn(layer) => &self.base.layers[layer].ffn_norm,
        }
    }

    /// `1 / sqrt(head_dim)`, which queries are multiplied by.
    pub(super) fn softmax_scale(&self) -> f32 {
        1.0 / (self.base.spec.head_dim as f32).sqrt()
    }

    /// Dropout of a site's input.
    pub(super) fn dropped(&self, site: SiteAt) -> Option<Dropped<'_>> {
        let places = self.plan.places.as_slice();
        self.masks.map(|masks| Dropped { masks, site: self.site_weights(site).site, places })
    }
}
