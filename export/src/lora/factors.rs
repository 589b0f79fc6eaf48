//! The two factors of a site as ONNX multiplies them: `A` `[in, R]`, `B` `[R, out]` with `lora_scale` in it.

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    spec::ModelSpec,
};

use crate::decoder::factor_names;

/// One factor of one site.
pub(crate) struct Factor<'a> {
    pub(crate) name: String,
    pub(crate) dims: [usize; 2],
    weights: &'a SiteWeights,
    is_b: bool,
}

/// Of all sites, in their order.
pub(crate) fn factors<'a>(weights: &'a AdapterWeights, spec: &ModelSpec) -> Vec<Factor<'a>> {
    let of_site = |weights: &'a SiteWeights| {
        let ((n_out, n_in), rank) = (spec.linear_shape(weights.site.module), weights.rank);
        let [a, b] = factor_names(weights.site);
        [(a, [n_in, rank], false), (b, [rank, n_out], true)].map(|(name, dims, is_b)| Factor {
            name,
            dims,
            weights,
            is_b,
        })
    };
    weights.sites.iter().flat_map(of_site).collect()
}

impl Factor<'_> {
    /// Of its values.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.dims.iter().map(|&dim| dim as u64).product::<u64>() * size_of::<f32>() as u64
    }

    /// Row-major; PEFT's matrices turned around.
    pub(crate) fn values(&self) -> Vec<f32> {
        let SiteWeights { lora_scale, a, b, .. } = self.weights;
        let [rows, columns] = self.dims;
        let (source, scale) = if self.is_b { (b, *lora_scale) } else { (a, 1.0) };
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            values.extend((0..columns).map(|column| source[column * rows + row] * scale));
        }
        values
    }
}
