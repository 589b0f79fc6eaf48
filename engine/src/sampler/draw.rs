//! Choosing one token at random from what `min_p`, `top_k` and `top_p` leave.
//!
//! Weights are `e^((x - max) / temperature)`: not normalized, the likeliest has 1. They are counted in units of 2⁻⁴⁰, so
//! every sum is exact and does not depend on its order. What is kept is walked in the order of the vocabulary, up to the
//! token at which the running sum passes a random share of the whole. `cuda/sample.cu` does the same arithmetic and
//! gives the same token for the same logits: keep the two alike.

use std::cmp::Ordering;

use crate::step_batch::SampleRow;

use super::{TEMPERATURE_MIN, philox, softmax};

/// Up to this many candidates are kept in a sorted list while scanning; more are selected from all indices.
const SHORT_LIST_MAX: usize = 128;

/// Classes of values by their distance to the largest, for `top_p`.
const BINS: usize = 2048;

/// For a distance of 1 in the exponent. All that weigh something are less than 28 away, and so not in the last class.
const BINS_PER_UNIT: f32 = 64.0;

/// Weights summed at once when everything may be drawn.
const DRAW_CHUNK: usize = 256;

/// Units of the weight 1, as a power of two: 2²⁴ tokens of this weight can be summed.
const UNIT_BITS: u32 = 40;

/// What a row's draw depends on, beside its logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) inverse_temperature: f32,
    /// `min_p`: the likeliest has weight 1, so it is a bound for the weight itself.
    pub(crate) weight_min: f32,
    /// 0: everything.
    pub(crate) top_k: u32,
    /// Times 2⁶⁴.
    pub(crate) top_p: u64,
    /// The random number, in `[0, 1)`, times 2⁶⁴.
    pub(crate) uniform: u64,
}

impl Draw {
    /// `top_p` of 1.
    pub(crate) const EVERYTHING: u64 = u64::MAX;

    /// `None` for a row that takes the likeliest token.
    pub(crate) fn of(row: &SampleRow) -> Option<Self> {
        let params = &*row.params;
        if params.temperature < TEMPERATURE_MIN || params.temperature.is_nan() {
            return None;
        }
        Some(Self {
            inverse_temperature: 1.0 / params.temperature,
            // Capped: the likeliest always stays.
            weight_min: params.min_p.min(1.0),
            top_k: params.top_k,
            top_p: if params.top_p < 1.0 { fixed_point(params.top_p) } else { Self::EVERYTHING },
            uniform: philox::uniform(params.seed, row.sample_index),
        })
    }

    /// Of a value whose distance to the largest, not above 0, is given.
    fn weight(&self, distance: f32) -> f32 {
        let weight = softmax::exp_nonpositive(distance * self.inverse_temperature);
        if weight < self.weight_min { 0.0 } else { weight }
    }

    /// Units that the kept tokens must have at least, out of `total`.
    fn goal(&self, total: u64) -> u64 {
        let product = u128::from(total) * u128::from(self.top_p);
        high_half(product + u128::from(u64::MAX)).max(1)
    }

    /// The first at which the running sum passes `uniform` of `total`, the sum of all.
    fn walk(&self, units: impl Iterator<Item = (usize, u64)>, total: u64) -> usize {
        let target = high_half(u128::from(total) * u128::from(self.uniform));
        walk(units, target)
    }
}

/// The token that is drawn. `max` is the largest of `values` and finite.
pub(super) fn draw(values: &[f32], max: f32, draw: &Draw) -> usize {
    let top_k = draw.top_k as usize;
    let mut kept: Vec<(usize, u64)>;
    if top_k > 0 && top_k < values.len() {
        let listed = largest(values, top_k).into_iter();
        kept = listed.map(|index| (index, units(draw.weight(values[index] - max)))).collect();
        let goal = draw.goal(sum(&kept));
        keep_head(&mut kept, goal);
    } else {
        let weights: Vec<f32> = values.iter().map(|&value| draw.weight(value - max)).collect();
        if draw.top_p == Draw::EVERYTHING {
            return draw_from_all(&weights, draw);
        }
        kept = nucleus(values, &weights, max, draw);
    }
    kept.sort_unstable();
    draw.walk(kept.iter().copied(), sum(&kept))
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

/// Shortens what is sorted to the shortest head that has at least `goal` units.
fn keep_head(ranked: &mut Vec<(usize, u64)>, goal: u64) {
    let mut sum = 0;
    let passes = |&(_, units): &(usize, u64)| {
        sum += units;
        sum >= goal
    };
    if let Some(last) = ranked.iter().position(passes) {
        ranked.truncate(last + 1);
    }
}

/// The smallest set of likeliest tokens that has at least `top_p` of all weight.
///
/// Nothing but the class in which the set ends needs to be sorted: nearer ones are in it as a whole.
fn nucleus(values: &[f32], weights: &[f32], max: f32, draw: &Draw) -> Vec<(usize, u64)> {
    let scale = BINS_PER_UNIT * draw.inverse_temperature;
    let mut mass = [0u64; BINS];
    for (&value, &weight) in values.iter().zip(weights) {
        mass[bin(max - value, scale)] += units(weight);
    }
    let goal = draw.goal(mass.iter().sum());
    let mut above = 0;
    let mut edge_bin = 0;
    while edge_bin + 1 < BINS && above + mass[edge_bin] < goal {
        above += mass[edge_bin];
        edge_bin += 1;
    }
    let (mut kept, mut edge) = (Vec::new(), Vec::new());
    for (index, (&value, &weight)) in values.iter().zip(weights).enumerate() {
        match bin(max - value, scale).cmp(&edge_bin) {
            Ordering::Less => kept.push((index, units(weight))),
            Ordering::Equal => edge.push((index, units(weight))),
            Ordering::Greater => {}
        }
    }
    edge.sort_unstable_by(|a, b| compare(values[b.0], values[a.0]).then(a.0.cmp(&b.0)));
    keep_head(&mut edge, goal - above);
    kept.extend(edge);
    kept
}

/// It rises with the distance.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and a cast ends at the largest integer"
)]
fn bin(distance: f32, scale: f32) -> usize {
    ((distance * scale) as usize).min(BINS - 1)
}

/// Draws from everything.
fn draw_from_all(weights: &[f32], draw: &Draw) -> usize {
    let sum = |chunk: &[f32]| chunk.iter().map(|&weight| units(weight)).sum::<u64>();
    let sums: Vec<u64> = weights.chunks(DRAW_CHUNK).map(sum).collect();
    let total: u64 = sums.iter().sum();
    let mut target = high_half(u128::from(total) * u128::from(draw.uniform));
    for (chunk_idx, (chunk, &sum)) in weights.chunks(DRAW_CHUNK).zip(&sums).enumerate() {
        if target < sum {
            let start = chunk_idx * DRAW_CHUNK;
            let placed = chunk.iter().enumerate().map(|(i, &weight)| (start + i, units(weight)));
            return walk(placed, target);
        }
        target -= sum;
    }
    unreachable!("the target is below the sum of all")
}

/// The first index at which the running sum passes `target`, which is below the sum of all.
fn walk(units: impl Iterator<Item = (usize, u64)>, target: u64) -> usize {
    let mut sum = 0;
    for (index, units) in units {
        sum += units;
        if sum > target {
            return index;
        }
    }
    unreachable!("the target is below the sum of all")
}

fn sum(kept: &[(usize, u64)]) -> u64 {
    kept.iter().map(|&(_, units)| units).sum()
}

/// A weight of at most 1 in units, rounded to the nearest.
fn units(weight: f32) -> u64 {
    /// The last bit of a number from this one on is a unit.
    const SHIFT: f64 = (1u64 << (52 - UNIT_BITS)) as f64;
    (f64::from(weight) + SHIFT).to_bits() - SHIFT.to_bits()
}

/// A number in `[0, 1)`, times 2⁶⁴.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what is below 0 becomes 0"
)]
fn fixed_point(share: f32) -> u64 {
    (f64::from(share) * 2f64.powi(64)) as u64
}

fn high_half(product: u128) -> u64 {
    (product >> 64) as u64
}

/// A total order in which the two zeros are equal, as they are for the greedy choice.
fn compare(a: f32, b: f32) -> Ordering {
    (a + 0.0).total_cmp(&(b + 0.0))
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
    fn units_are_the_weight_rounded() {
        for weight in [1.0f32, 0.999_999_94, 0.75, 0.1, 1e-3, 3e-9, 1e-12, 9e-13, 1e-20, 1e-38, 0.0]
        {
            assert_eq!(
                units(weight) as f64,
                (f64::from(weight) * 2f64.powi(40)).round_ties_even(),
                "{weight}"
            );
        }
    }

    /// The definition: everything sorted, cut, and put back into the order of the vocabulary.
    fn by_sorting(values: &[f32], max: f32, draw: &Draw) -> usize {
        let units = |index: usize| units(draw.weight(values[index] - max));
        let mut kept = largest(values, values.len());
        if draw.top_k > 0 {
            kept.truncate(draw.top_k as usize);
        }
        let total: u64 = kept.iter().map(|&index| units(index)).sum();
        // `sum / total < top_p`, exactly.
        let fails = |sum: u64| {
            draw.top_p != Draw::EVERYTHING
                && (u128::from(sum) << 64) < u128::from(total) * u128::from(draw.top_p)
        };
        let mut n_kept = 0;
        let mut sum = 0;
        while n_kept < kept.len() && (n_kept == 0 || draw.top_p == Draw::EVERYTHING || fails(sum)) {
            sum += units(kept[n_kept]);
            n_kept += 1;
        }
        kept.truncate(n_kept);
        kept.sort_unstable();
        let target = high_half(u128::from(sum) * u128::from(draw.uniform));
        let mut running = 0;
        for index in kept {
            running += units(index);
            if running > target {
                return index;
            }
        }
        unreachable!("the target is below the sum")
    }

    #[test]
    fn every_setting_agrees_with_sorting() {
        let mut state = 1u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state
        };
        for n in [1usize, 2, 40, 700] {
            for _ in 0..300 {
                let steps = [4.0, 1e6][(random() >> 40) as usize % 2];
                let spread = [0.5, 8.0, 60.0][(random() >> 40) as usize % 3];
                let values: Vec<f32> = (0..n)
                    .map(|_| {
                        let value = (random() >> 40) as f32 / (1 << 24) as f32 * spread;
                        (value * steps).round() / steps
                    })
                    .collect();
                let max = values.iter().copied().fold(f32::MIN, f32::max);
                let pick = |choices: &[f32], at: u64| choices[(at >> 40) as usize % choices.len()];
                let draw_of = Draw {
                    inverse_temperature: pick(&[1.0, 0.5, 3.0, 0.01, 100.0, 0.0], random()),
                    weight_min: pick(&[0.0, 0.0, 0.05, 0.5, 1.0], random()),
                    top_k: [0, 0, 1, 2, 17, 300][(random() >> 40) as usize % 6],
                    top_p: match pick(&[1.0, 1.0, 0.999_999, 0.9, 0.5, 1e-3, 1e-30], random()) {
                        1.0 => Draw::EVERYTHING,
                        top_p => fixed_point(top_p),
                    },
                    uniform: random(),
                };
                let expected = by_sorting(&values, max, &draw_of);
                assert_eq!(draw(&values, max, &draw_of), expected, "{n} values, {draw_of:?}");
            }
        }
    }

    #[test]
    fn a_share_that_is_met_exactly_keeps_no_more() {
        let values = [2.0f32; 4];
        for (top_p, last) in [(0.5, 1), (0.500_001, 2), (0.25, 0), (0.999_999, 3)] {
            let draw_of = Draw {
                inverse_temperature: 1.0,
                weight_min: 0.0,
                top_k: 0,
                top_p: fixed_point(top_p),
                uniform: u64::MAX,
            };
            assert_eq!(draw(&values, 2.0, &draw_of), last, "{top_p}");
        }
    }
}
