//! Gradients of an adapter's weights.

use crate::{
    adapter_weights::{AdapterWeights, SiteWeights},
    site::Site,
    spec::ModelSpec,
};

/// Sites and ranks of an adapter: what memory for training it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterShape {
    /// In ascending order of site.
    pub sites: Vec<(Site, usize)>,
}

impl AdapterShape {
    /// That of some weights.
    pub fn of(weights: &AdapterWeights) -> Self {
        Self { sites: weights.sites.iter().map(|site| (site.site, site.rank)).collect() }
    }

    /// Numbers that are trained.
    pub fn n_parameters(&self, spec: &ModelSpec) -> usize {
        let of_site = |&(site, rank): &(Site, usize)| {
            let (n_out, n_in) = spec.linear_shape(site.module);
            rank * (n_out + n_in)
        };
        self.sites.iter().map(of_site).sum()
    }
}

/// Gradients of one site.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteGradients {
    /// Where.
    pub site: Site,
    /// `dL/dA`, `[R, K]`, row-major.
    pub a: Vec<f32>,
    /// `dL/dB`, `[N, R]`, row-major.
    pub b: Vec<f32>,
}

/// Gradients of all sites, each of the shape of its weights; passes add to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterGradients {
    /// As in the weights.
    pub sites: Vec<SiteGradients>,
}

impl AdapterGradients {
    /// Zeros in the shape of these weights.
    pub fn zeros(weights: &AdapterWeights) -> Self {
        let of_site = |weights: &SiteWeights| SiteGradients {
            site: weights.site,
            a: vec![0.0; weights.a.len()],
            b: vec![0.0; weights.b.len()],
        };
        Self { sites: weights.sites.iter().map(of_site).collect() }
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        for site in &mut self.sites {
            site.a.fill(0.0);
            site.b.fill(0.0);
        }
    }

    /// Every array, in the order of sites, `a` first.
    pub fn arrays(&self) -> impl Iterator<Item = &[f32]> {
        self.sites.iter().flat_map(|site| [site.a.as_slice(), site.b.as_slice()])
    }

    /// Root of the sum of all squares, summed in f64; not finite if a gradient is not.
    pub fn norm(&self) -> f64 {
        self.arrays()
            .flatten()
            .map(|&value| f64::from(value) * f64::from(value))
            .sum::<f64>()
            .sqrt()
    }

    /// Whether these are gradients of such weights.
    pub(crate) fn fit(&self, weights: &AdapterWeights) -> bool {
        self.sites.len() == weights.sites.len()
            && self.sites.iter().zip(&weights.sites).all(|(gradients, weights)| {
                gradients.site == weights.site
                    && gradients.a.len() == weights.a.len()
                    && gradients.b.len() == weights.b.len()
            })
    }
}
