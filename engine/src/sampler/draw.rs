//! Choosing one token at random from what `min_p`, `top_k` and `top_p` leave.
//!
//! Weights are `e^((x - max) / temperature)`: not normalized, the likeliest has 1. Every sum runs in a fixed order, so a
//! row of logits and a number in `[0, 1)` always give the same token.

use std::cmp::Ordering;

use super::{SamplingParams, softmax};

/// Up to this many candidates are kept in a sorted list while scanning; more are selected from all indices.
const SHORT_LIST_MAX: usize = 128;

/// Weights between two powers of 2 share a class; a positive weight is at most 1 and at least `e^-87 > 2^-126`.
const WEIGHT_CLASSES: usize = 127;

/// Weights summed at once when everything may be drawn.
const DRAW_CHUNK: usize = 256;

/// The token at `uniform` in `[0, 1)`. `max` is the largest of `values` and finite; the temperature is not zero.
pub(super) fn draw(values: &[f32], max: f32, params: &SamplingParams, uniform: f64) -> usize {
    let inverse_temperature = 1.0 / params.temperature;
    // The likeliest has weight 1, so `min_p` is a bound for the weight itself. (Capped: the likeliest always stays.)
    let weight_min = params.min_p.min(1.0);
    let weight = |value: f32| {
        let weight = softmax::exp_nonpositive((value - max) * inverse_temperature);
        if weight < weight_min { 0.0 } else { weight }
    };
    let top_p = f64::from(params.top_p);
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < values.len() {
        let listed = largest(values, top_k);
        let weights: Vec<f32> = listed.iter().map(|&index| weight(values[index])).collect();
        return listed[draw_from_head(&weights, top_p, uniform)];
    }
    let weights: Vec<f32> = values.iter().map(|&value| weight(value)).collect();
    if top_p < 1.0 {
        draw_from_nucleus(values, &weights, top_p, uniform)
    } else {
        draw_from_all(&weights, uniform)
    }
}

/// Indices of the `k` largest values, largest first, the lower index first among equals.
pub(super) fn largest(values: &[f32], k: usize) -> Vec<usize> {
    let by_rank = |&a: &usize, &b: &usize| compare(values[b], values[a]).then(a.cmp(&b));
    if k >= SHORT_LIST_MAX {
        let mut indices: Vec<usize> = (0..values.len()).collect();
        if k < indices.len() {
            indices.select_nth_unstable_by(k, by_rank);
            indices.truncate(k);
        }
        indices.sort_unstable_by(by_rank);
        return indices;
    }
    let mut listed: Vec<usize> = Vec::with_capacity(k + 1);
    if k == 0 {
        return listed;
    }
    for (index, value) in values.iter().enumerate() {
        if listed.len() == k && compare(values[listed[k - 1]], *value).is_ge() {
            continue;
        }
        let place = listed.partition_point(|&other| compare(values[other], *value).is_ge());
        listed.insert(place, index);
        listed.truncate(k);
    }
    listed
}

/// Draws from the shortest head of `weights`, which fall, that has at least `top_p` of their sum.
fn draw_from_head(weights: &[f32], top_p: f64, uniform: f64) -> usize {
    let goal = top_p * weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    let mut kept = 0.0;
    let mut n_kept = 0;
    for &weight in weights {
        if n_kept > 0 && (kept >= goal || weight == 0.0) {
            break;
        }
        kept += f64::from(weight);
        n_kept += 1;
    }
    walk(weights[..n_kept].iter().copied().enumerate(), uniform * kept).unwrap_or(0)
}

/// Draws from the smallest set of likeliest tokens that has at least `top_p` of all weight.
///
/// Nothing but the class of weights in which the set ends needs to be sorted: heavier classes are in it as a whole.
fn draw_from_nucleus(values: &[f32], weights: &[f32], top_p: f64, uniform: f64) -> usize {
    let mut mass = [0.0f64; WEIGHT_CLASSES];
    for &weight in weights.iter().filter(|&&weight| weight > 0.0) {
        mass[weight_class(weight)] += f64::from(weight);
    }
    let goal = top_p * mass.iter().sum::<f64>();
    let mut above = 0.0;
    let mut edge_class = 0;
    while edge_class + 1 < WEIGHT_CLASSES && above + mass[edge_class] < goal {
        above += mass[edge_class];
        edge_class += 1;
    }
    let positive = || weights.iter().copied().enumerate().filter(|&(_, weight)| weight > 0.0);
    let mut edge: Vec<(usize, f32)> =
        positive().filter(|&(_, weight)| weight_class(weight) == edge_class).collect();
    edge.sort_unstable_by(|a, b| compare(values[b.0], values[a.0]).then(a.0.cmp(&b.0)));
    let mut kept = above;
    let mut n_kept = 0;
    for &(_, weight) in &edge {
        if n_kept > 0 && kept >= goal {
            break;
        }
        kept += f64::from(weight);
        n_kept += 1;
    }
    let whole = positive().filter(|&(_, weight)| weight_class(weight) < edge_class);
    walk(whole.chain(edge[..n_kept].iter().copied()), uniform * kept).unwrap_or(0)
}

/// Draws from everything, in the order of the vocabulary.
fn draw_from_all(weights: &[f32], uniform: f64) -> usize {
    let sums: Vec<f64> = weights.chunks(DRAW_CHUNK).map(softmax::sum).collect();
    let mut target = uniform * sums.iter().sum::<f64>();
    let mut last = 0;
    for (chunk_idx, (chunk, &sum)) in weights.chunks(DRAW_CHUNK).zip(&sums).enumerate() {
        let start = chunk_idx * DRAW_CHUNK;
        if sum > target {
            let placed = chunk.iter().copied().enumerate().map(|(i, weight)| (start + i, weight));
            return walk(placed, target).unwrap_or(last);
        }
        target -= sum;
        if sum > 0.0 {
            last = start + chunk.iter().rposition(|&weight| weight > 0.0).unwrap_or(0);
        }
    }
    last
}

/// The first index at which the running sum passes `target`; the last positive one when rounding keeps it below.
fn walk(weights: impl Iterator<Item = (usize, f32)>, target: f64) -> Option<usize> {
    let mut sum = 0.0;
    let mut last = None;
    for (index, weight) in weights.filter(|&(_, weight)| weight > 0.0) {
        sum += f64::from(weight);
        last = Some(index);
        if sum > target {
            break;
        }
    }
    last
}

/// A total order in which the two zeros are equal, as they are for the greedy choice.
fn compare(a: f32, b: f32) -> Ordering {
    (a + 0.0).total_cmp(&(b + 0.0))
}

/// 0 for a weight of 1, `c` for one in `[2^-c, 2^(1-c))`.
fn weight_class(weight: f32) -> usize {
    127usize.saturating_sub((weight.to_bits() >> 23) as usize).min(WEIGHT_CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_agrees_with_sorting() {
        let values: Vec<f32> =
            (0u32..1000).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32).collect();
        let mut sorted: Vec<usize> = (0..values.len()).collect();
        sorted.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        for k in [0, 1, 2, 7, 127, 128, 129, 999, 1000, 5000] {
            assert_eq!(largest(&values, k), sorted[..k.min(1000)], "k {k}");
        }
    }

    #[test]
    fn weight_classes_are_powers_of_two() {
        for (weight, class) in [(1.0, 0), (0.999, 1), (0.5, 1), (0.4999, 2), (1e-37, 123)] {
            assert_eq!(weight_class(weight), class, "{weight}");
        }
    }

    #[test]
    fn nucleus_and_head_keep_the_same_set() {
        let values: Vec<f32> =
            (0u32..40).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 16_000.0).collect();
        let max = values.iter().copied().fold(f32::MIN, f32::max);
        let ranked = largest(&values, values.len());
        let weights: Vec<f32> = values.iter().map(|&v| softmax::exp_nonpositive(v - max)).collect();
        let falling: Vec<f32> = ranked.iter().map(|&i| weights[i]).collect();
        for top_p in [1e-9, 0.1, 0.5, 0.9, 0.99, 0.999_999] {
            let mut by_nucleus: Vec<usize> = (0..20_000)
                .map(|i| draw_from_nucleus(&values, &weights, top_p, f64::from(i) / 20_000.0))
                .collect();
            let mut by_head: Vec<usize> = (0..20_000)
                .map(|i| ranked[draw_from_head(&falling, top_p, f64::from(i) / 20_000.0)])
                .collect();
            for drawn in [&mut by_nucleus, &mut by_head] {
                drawn.sort_unstable();
                drawn.dedup();
            }
            assert_eq!(by_nucleus, by_head, "top_p {top_p}");
        }
    }
}
