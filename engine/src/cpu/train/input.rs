//! What the operations of a pass only read.

use std::sync::Arc;

use crate::{
    adapter_weights::{AdapterWeights, SiteWeights},
    backend::HeadNorms,
    cpu::{Isa, packed::PackedMatrix},
    rope::RopeTable,
    train::{ProductPrecision, TrainOptions},
};

use super::{
    base::{Frozen, FrozenLinear},
    dropout::Masks,
    linear::{Factors, Inputs, LowRank},
    linear_back::Dropped,
    memory::Memory,
    ops::{Columns, LinearAt, Norm, SiteAt},
    plan::BatchPlan,
    product::Rows,
    product_bf16::PairRows,
};

/// Which half of an adapter a linear adds: forward `B v`, backward `Aᵀ dv`.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdapterHalf {
    pub(super) site: SiteAt,
    /// `v` or `dv`.
    pub(super) v: Columns,
    /// Which of the packed factors.
    pub(super) factor: usize,
}

/// Cosines and sines of positions, `[positions, D / 2]`.
#[derive(Debug)]
pub(super) struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// With the sign changed, for the way back.
    minus_sin: Vec<f32>,
}

impl Angles {
    fn new(rope: &RopeTable, n_positions: usize) -> Self {
        let half = rope.frequencies.len();
        let [mut cos, mut sin] = [0, 1].map(|_| vec![0.0; n_positions * half]);
        let rows = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
        for (position, (cos, sin)) in rows.enumerate() {
            rope.angles(position, cos, sin);
        }
        let minus_sin = sin.iter().map(|value| -value).collect();
        Self { half, cos, sin, minus_sin }
    }

    /// Cosine and sine of a position; `back` for the transposed rotation.
    pub(super) fn at(&self, position: u32, back: bool) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        let sin = if back { &self.minus_sin } else { &self.sin };
        (&self.cos[start..start + self.half], &sin[start..start + self.half])
    }
}

/// What the operations of a pass only read, apart from its buffers.
#[derive(Debug)]
pub(super) struct PassInput {
    pub(super) base: Arc<Frozen>,
    pub(super) isa: Isa,
    pub(super) precision: ProductPrecision,
    pub(super) angles: Angles,
    pub(super) plan: BatchPlan,
    pub(super) adapter: Option<Arc<AdapterWeights>>,
    pub(super) masks: Option<Masks>,
}

impl PassInput {
    /// For a pass with these options.
    pub(super) fn new(base: Arc<Frozen>, options: &TrainOptions) -> Self {
        let &TrainOptions { isa, precision, rows_max, .. } = options;
        let angles = Angles::new(&base.rope, rows_max.min(base.spec.context));
        let plan = BatchPlan::default();
        Self { base, isa, precision, angles, plan, adapter: None, masks: None }
    }

    /// Cosine and sine of a row's position.
    pub(super) fn angles(&self, row: usize, back: bool) -> (&[f32], &[f32]) {
        self.angles.at(self.plan.places[row].0, back)
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

    /// What a product with frozen weights reads of a buffer from a column on, itself or what
    /// [`Op::Round`](super::ops::Op::Round) made of it, and the half of the site's adapter that is added: the one that
    /// has `v`, forward the second factor, backward the first.
    pub(super) fn inputs<'a>(
        &self,
        memory: &'a Memory,
        x: Columns,
        half: Option<AdapterHalf>,
    ) -> Inputs<'a> {
        let rank = |half: AdapterHalf| self.site_weights(half.site).rank;
        let wide = memory.widths.widest;
        match self.precision {
            ProductPrecision::F32 => {
                let low_rank = half.map(|half| LowRank {
                    rank: rank(half),
                    v: memory.rows(half.v),
                    factor: Rows::new(
                        &memory[memory.packed[half.site.part][half.factor]].values,
                        wide,
                    ),
                });
                Inputs::F32(Factors { x: memory.rows(x), low_rank })
            }
            ProductPrecision::Bf16 => {
                let pairs = &memory.pairs;
                let low_rank = half.map(|half| LowRank {
                    rank: rank(half).next_multiple_of(2),
                    v: pairs.v[half.site.part].rows(),
                    factor: PairRows {
                        pairs: &pairs.packed[half.site.part][half.factor],
                        stride: wide,
                    },
                });
                Inputs::Bf16(Factors { x: pairs.rounded.rows().from(x.column / 2), low_rank })
            }
        }
    }

    /// Dropout of a site's input.
    pub(super) fn dropped(&self, site: SiteAt) -> Option<Dropped<'_>> {
        let places = self.plan.places.as_slice();
        self.masks.map(|masks| Dropped { masks, site: self.site_weights(site).site, places })
    }
}
