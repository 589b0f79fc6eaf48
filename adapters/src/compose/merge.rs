//! New adapters of old ones, off-line. The methods have the names and results of `add_weighted_adapter` in PEFT 0.21.2
//! (`tuners/lora/model.py`), where that is right: it leaves out `lora_bias`, and takes a first adapter with `use_rslora` for
//! one without.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    site::Site,
};

use super::{
    sum::{Part, SumError, Term, bias, concatenate, round, terms},
    svd::truncate,
};
use crate::peft::ADAPTER_RANK_MAX;

/// How adapters become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeMethod {
    /// Concatenated ranks: exact; ranks add up.
    Cat,
    /// The sum of the `A` times the sum of the `B`, each weighted by the root of its scale: of the ranks that the adapters
    /// have, which must be equal, and a rough approximation, as products between them come in.
    Linear,
    /// The nearest delta of a lower rank at every site, by singular values.
    Svd {
        /// The rank; `None` is the largest of any adapter.
        rank: Option<usize>,
    },
}

/// What [`MergeMethod::Svd`] lost at a site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteLoss {
    /// Where.
    pub site: Site,
    /// The rank that is left.
    pub rank: usize,
    /// Frobenius norm of what was cut off, as a share of that of the exact delta.
    pub relative_error: f64,
}

/// A new adapter.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Its weights; every `lora_scale` is 1.
    pub weights: AdapterWeights,
    /// By site; empty but for [`MergeMethod::Svd`].
    pub losses: Vec<SiteLoss>,
}

/// Why there is none.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum MergeError {
    /// Parts that are no deltas, or ranks that are too large together.
    #[error(transparent)]
    Sum(#[from] SumError),
    /// A rank that no adapter may have.
    #[error("rank {rank} is outside 1..={ADAPTER_RANK_MAX}")]
    Rank {
        /// The rank.
        rank: usize,
    },
    /// `linear` adds matrices of one shape.
    #[error("{site}: `linear` needs equal ranks, found {one} and {other}")]
    RanksDiffer {
        /// Where they act.
        site: Site,
        /// Rank of the first part there.
        one: usize,
        /// Another.
        other: usize,
    },
    /// Everything has the weight 0.
    #[error("nothing is left to merge: all weights are 0")]
    Nothing,
    /// PEFT has one switch for the biases of all sites, and none for an embedding's.
    #[error("an adapter with `lora_bias` and one on embed_tokens cannot be merged")]
    BiasWithEmbedding,
}

/// Merges adapters. `progress` is told the number of finished sites and of all, from any thread; sites are spread over the
/// processors.
///
/// # Errors
/// [`MergeError`].
pub fn merge(
    parts: &[Part<'_>],
    method: MergeMethod,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Merged, MergeError> {
    let of_parts = parts.iter().flat_map(|part| &part.weights.sites).map(|site| site.rank);
    let largest = of_parts.max().unwrap_or_default();
    let terms: Vec<_> = terms(parts)?.into_iter().collect();
    if terms.is_empty() {
        return Err(MergeError::Nothing);
    }
    let sites = match method {
        MergeMethod::Cat => each(&terms, progress, |site, terms| {
            Ok((unscaled(concatenate(site, terms, ADAPTER_RANK_MAX)?), None))
        }),
        MergeMethod::Linear => {
            each(&terms, progress, |site, terms| Ok((linear(site, terms)?, None)))
        }
        MergeMethod::Svd { rank } => {
            let rank = rank.unwrap_or(largest);
            if rank == 0 || rank > ADAPTER_RANK_MAX {
                return Err(MergeError::Rank { rank });
            }
            each(&terms, progress, |site, terms| {
                let (weights, loss) = svd(&concatenate(site, terms, usize::MAX)?, rank);
                Ok((weights, Some(loss)))
            })
        }
    }?;
    let (mut sites, losses): (Vec<_>, Vec<_>) = sites.into_iter().unzip();
    spread_biases(&mut sites)?;
    let weights = AdapterWeights { sites, ..AdapterWeights::default() };
    Ok(Merged { weights, losses: losses.into_iter().flatten().collect() })
}

/// What a method makes of a site.
type MergedSite = (SiteWeights, Option<SiteLoss>);

/// Every site on some thread; results in order, or the first error in order.
fn each<'a>(
    sites: &[(Site, Vec<Term<'a>>)],
    progress: &(dyn Fn(usize, usize) + Sync),
    work: impl Fn(Site, &[Term<'a>]) -> Result<MergedSite, MergeError> + Sync,
) -> Result<Vec<MergedSite>, MergeError> {
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run = || {
        let mut results = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((site, terms)) = sites.get(index) else { return results };
            results.push((index, work(*site, terms)));
            progress(finished.fetch_add(1, Ordering::Relaxed) + 1, sites.len());
        }
    };
    let n_threads = thread::available_parallelism().map_or(1, usize::from).min(sites.len());
    let mut results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(run)).collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.flat_map(|joined| joined.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The same adapter with a `lora_scale` of 1.
fn unscaled(mut site: SiteWeights) -> SiteWeights {
    let scale = std::mem::replace(&mut site.lora_scale, 1.0);
    for value in site.a.iter_mut().chain(site.bias.iter_mut().flatten()) {
        *value *= scale;
    }
    site
}

/// A negative scale goes into `A` alone: in both it would cancel.
fn linear(site: Site, terms: &[Term<'_>]) -> Result<SiteWeights, MergeError> {
    let rank = terms[0].weights.rank;
    if let Some(other) = terms.iter().find(|term| term.weights.rank != rank) {
        return Err(MergeError::RanksDiffer { site, one: rank, other: other.weights.rank });
    }
    let add = |of: fn(&SiteWeights) -> &[f32], share: fn(f64) -> f64| {
        let mut sum = vec![0.0; of(terms[0].weights).len()];
        for term in terms {
            let share = share(f64::from(term.scale));
            for (sum, &value) in sum.iter_mut().zip(of(term.weights)) {
                *sum += share * f64::from(value);
            }
        }
        sum.into_iter().map(round).collect::<Vec<f32>>()
    };
    let a = add(|weights| &weights.a, |scale| scale.abs().sqrt().copysign(scale));
    let b = add(|weights| &weights.b, |scale| scale.abs().sqrt());
    let bias = bias(terms, b.len() / rank, 1.0);
    Ok(SiteWeights { bias, ..SiteWeights::lora(site, rank, 1.0, a, b) })
}

fn svd(exact: &SiteWeights, rank_max: usize) -> (SiteWeights, SiteLoss) {
    let cut = truncate(&exact.a, &exact.b, exact.rank, rank_max);
    let scale = f64::from(exact.lora_scale);
    let SiteWeights { site, .. } = *exact;
    let a = cut.a.into_iter().map(round).collect();
    let b = cut.b.into_iter().map(|value| round(value * scale)).collect();
    let bias =
        exact.bias.as_ref().map(|bias| bias.iter().map(|value| value * exact.lora_scale).collect());
    let weights = SiteWeights { bias, ..SiteWeights::lora(site, cut.rank, 1.0, a, b) };
    (weights, SiteLoss { site, rank: cut.rank, relative_error: cut.relative_error })
}

/// Where one site has a bias, all have: PEFT's settings know nothing else.
fn spread_biases(sites: &mut [SiteWeights]) -> Result<(), MergeError> {
    if sites.iter().all(|site| site.bias.is_none()) {
        return Ok(());
    }
    for site in sites {
        if site.site == Site::EMBEDDING {
            return Err(MergeError::BiasWithEmbedding);
        }
        let n_out = site.b.len() / site.rank;
        site.bias.get_or_insert_with(|| vec![0.0; n_out]);
    }
    Ok(())
}
