//! The weights of a sum of adapters.

use std::collections::BTreeMap;

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    site::Site,
};

/// One adapter of a sum.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its checked weights.
    pub weights: &'a AdapterWeights,
    /// What its own `lora_scale` is multiplied by.
    pub scale: f32,
}

/// Why adapters cannot be added up.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SumError {
    /// A part that is no delta.
    #[error("{site}: {kind} cannot be composed with other adapters")]
    Kind {
        /// Index of the part.
        part: usize,
        /// Where it acts.
        site: Site,
        /// What it is.
        kind: &'static str,
    },
    /// Ranks that are too large together.
    #[error("{site}: the ranks add up to {rank}, at most {rank_max} can be composed")]
    Rank {
        /// Where they act.
        site: Site,
        /// The sum.
        rank: usize,
        /// The most.
        rank_max: usize,
    },
}

/// What a part brings to a site.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term<'a> {
    pub(super) weights: &'a SiteWeights,
    /// Of the part times `lora_scale`; never 0.
    pub(super) scale: f32,
}

/// The adapter whose delta is, at every site, the sum of the parts' deltas: its rank there is the sum of the ranks of the
/// parts that act there.
///
/// A site's `lora_scale` is the largest of its parts' (each times the part's scale), by absolute value. The others' shares of
/// it, in `-1..=1`, go into their rows of `A`, rounded once from f64: parts of equal scale, and any part alone, keep their
/// weights as they are; else a weight of `A` changes by at most 2⁻²⁴ of itself. A device that holds f16 rounds those rows of
/// `A` again, by 2⁻¹¹ of the weight, or 2⁻²⁵ where it is below 2⁻¹⁴; nothing can leave the range of f16.
///
/// # Errors
/// [`SumError`]: parts with `DoRA` or whole matrices of their own, and sites with ranks of more than `rank_max` together.
pub fn sum(parts: &[Part<'_>], rank_max: usize) -> Result<AdapterWeights, SumError> {
    let sites = terms(parts)?
        .into_iter()
        .map(|(site, terms)| concatenate(site, &terms, rank_max))
        .collect::<Result<_, _>>()?;
    Ok(AdapterWeights { sites, ..AdapterWeights::default() })
}

/// What parts bring to each site; parts and scales of 0 are left out.
pub(super) fn terms<'a>(parts: &[Part<'a>]) -> Result<BTreeMap<Site, Vec<Term<'a>>>, SumError> {
    let mut by_site: BTreeMap<Site, Vec<Term<'_>>> = BTreeMap::new();
    for (part, &Part { weights, scale }) in parts.iter().enumerate() {
        if let Some((site, _)) = weights.own_matrices().next() {
            let kind = "a whole matrix of the adapter's own";
            return Err(SumError::Kind { part, site, kind });
        }
        for site in &weights.sites {
            if site.magnitude.is_some() {
                return Err(SumError::Kind { part, site: site.site, kind: "DoRA" });
            }
            let scale = scale * site.lora_scale;
            if scale != 0.0 {
                by_site.entry(site.site).or_default().push(Term { weights: site, scale });
            }
        }
    }
    Ok(by_site)
}

/// At least one term.
pub(super) fn concatenate(
    site: Site,
    terms: &[Term<'_>],
    rank_max: usize,
) -> Result<SiteWeights, SumError> {
    let rank = terms.iter().map(|term| term.weights.rank).sum();
    if rank > rank_max {
        return Err(SumError::Rank { site, rank, rank_max });
    }
    let lora_scale = terms.iter().map(|term| term.scale.abs()).fold(0.0, f32::max);
    let mut a = Vec::with_capacity(terms.iter().map(|term| term.weights.a.len()).sum());
    for term in terms {
        let share = f64::from(term.scale) / f64::from(lora_scale);
        a.extend(term.weights.a.iter().map(|&value| round(f64::from(value) * share)));
    }
    let n_out = terms[0].weights.b.len() / terms[0].weights.rank;
    let mut b = Vec::with_capacity(n_out * rank);
    for n in 0..n_out {
        for Term { weights, .. } in terms {
            b.extend_from_slice(&weights.b[n * weights.rank..][..weights.rank]);
        }
    }
    let bias = bias(terms, n_out, f64::from(lora_scale));
    Ok(SiteWeights { bias, ..SiteWeights::lora(site, rank, lora_scale, a, b) })
}

/// The biases' sum, each times its term's scale, divided by `lora_scale`; `None` if no term has one.
pub(super) fn bias(terms: &[Term<'_>], n_out: usize, lora_scale: f64) -> Option<Vec<f32>> {
    let mut sum: Option<Vec<f64>> = None;
    for Term { weights, scale } in terms {
        let Some(bias) = &weights.bias else { continue };
        let share = f64::from(*scale) / lora_scale;
        let sum = sum.get_or_insert_with(|| vec![0.0; n_out]);
        for (sum, &bias) in sum.iter_mut().zip(bias) {
            *sum += f64::from(bias) * share;
        }
    }
    sum.map(|sum| sum.into_iter().map(round).collect())
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
pub(super) fn round(value: f64) -> f32 {
    value as f32
}
