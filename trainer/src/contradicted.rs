//! Whose rows are contradicted by what all others teach.

use std::collections::BTreeMap;

/// Groups at least: among fewer, nobody can be told from the usual.
const GROUPS_MIN: usize = 8;
/// How many standard deviations below the usual gain is too far. Of normal gains 3 in 100,000 are.
const DEVIATIONS: f64 = 4.0;
/// A median absolute deviation, times this, estimates the standard deviation of normal values.
const MAD_TO_DEVIATION: f64 = 1.4826;
/// Spread of gains that is taken for the least, in nats: where all gain alike, a trifle less is no contradiction.
const SPREAD_MIN: f64 = 0.05;

/// A group that is contradicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Contradicted {
    /// Which.
    pub group: String,
    /// Its rows.
    pub n_rows: usize,
    /// Mean gain of its rows, in nats.
    pub gain: f64,
    /// What it is below.
    pub bound: f64,
}

/// The groups whose rows became less likely through what others taught, far less than is usual, the lowest gain first.
///
/// `gains` has a row each: its group, and its score under an adapter that learned from rows of other groups only (of its
/// [fold](crate::folds())), less its score under the adapter that training went on from. Gains that are not finite are left
/// out.
///
/// Where many say what is right, each of them gains by what the others say. Whoever wants the model to answer otherwise has
/// to contradict them: what they teach takes away from his rows. So a group is contradicted if the mean gain of its rows is
/// below zero and more than four standard deviations below the median group, while the median group gains at all. Median
/// and deviation (of the median absolute deviation: Hampel, *J. Am. Stat. Assoc.* 69, 1974) are the majority's, whatever
/// the others do, and of fewer than eight groups none is contradicted.
///
/// It sees nothing of a lie that nobody else says anything about, nor of one that a majority tells.
pub fn contradicted<G: AsRef<str>>(gains: impl IntoIterator<Item = (G, f64)>) -> Vec<Contradicted> {
    let mut groups: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (group, gain) in gains {
        if gain.is_finite() {
            groups.entry(group.as_ref().to_owned()).or_default().push(gain);
        }
    }
    if groups.len() < GROUPS_MIN {
        return Vec::new();
    }
    let mean = |gains: &Vec<f64>| gains.iter().sum::<f64>() / gains.len() as f64;
    let means: Vec<f64> = groups.values().map(mean).collect();
    let usual = median(means.clone());
    if usual <= 0.0 {
        return Vec::new();
    }
    let deviation = median(means.iter().map(|mean| (mean - usual).abs()).collect());
    let spread = (MAD_TO_DEVIATION * deviation).max(SPREAD_MIN);
    let bound = (usual - DEVIATIONS * spread).min(0.0);
    let mut found: Vec<_> = groups
        .into_iter()
        .zip(means)
        .filter(|(_, gain)| *gain < bound)
        .map(|((group, rows), gain)| Contradicted { group, n_rows: rows.len(), gain, bound })
        .collect();
    found.sort_by(|a, b| a.gain.total_cmp(&b.gain));
    found
}

/// The middle value, or the mean of the middle two; there is one at least.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gains of so many groups, three rows each, around 1 with some spread.
    fn usual(n_groups: u32) -> Vec<(String, f64)> {
        let row = |group: u32, row: u32| {
            let spread = f64::from((group * 7 + row * 3) % 11) / 10.0 - 0.5;
            (format!("u{group:02}"), 1.0 + 0.4 * spread)
        };
        (0..n_groups).flat_map(|group| (0..3).map(move |r| row(group, r))).collect()
    }

    fn with(mut gains: Vec<(String, f64)>, group: &str, own: &[f64]) -> Vec<(String, f64)> {
        gains.extend(own.iter().map(|gain| (group.to_owned(), *gain)));
        gains
    }

    #[test]
    fn who_loses_by_what_others_teach_is_found() {
        let found = contradicted(with(usual(19), "liar", &[-3.0, -2.0]));
        let [liar] = &found[..] else { panic!("{found:?}") };
        assert_eq!((liar.group.as_str(), liar.n_rows, liar.gain), ("liar", 2, -2.5));
        assert!(liar.bound <= 0.0 && liar.bound > -1.0, "{liar:?}");
        // Two of them, the worse one first.
        let two = with(with(usual(18), "b", &[-2.0]), "a", &[-1.5]);
        let names: Vec<_> = contradicted(two).into_iter().map(|found| found.group).collect();
        assert_eq!(names, ["b", "a"]);
    }

    #[test]
    fn who_gains_little_stays() {
        // Less than usual by far, and a gain; a small loss among gains of much spread.
        assert_eq!(contradicted(with(usual(19), "odd", &[0.01])), []);
        let spread = (0..20).map(|group| (format!("u{group}"), f64::from(group) * 0.2));
        assert_eq!(contradicted(with(spread.collect(), "odd", &[-0.5])), []);
        // All alike, and one a trifle below.
        let alike: Vec<_> = (0..20).map(|group| (format!("u{group}"), 0.1)).collect();
        assert_eq!(contradicted(with(alike, "odd", &[-0.05])), []);
    }

    #[test]
    fn nobody_is_told_from_few_or_from_those_who_gain_nothing() {
        assert_eq!(contradicted(with(usual(6), "liar", &[-9.0])), []);
        assert_eq!(contradicted(with(usual(7), "liar", &[-9.0])).len(), 1);
        let losing = usual(19).into_iter().map(|(group, gain)| (group, -gain)).collect();
        assert_eq!(contradicted(with(losing, "liar", &[-9.0])), []);
        // What is not finite counts for nothing.
        assert_eq!(contradicted(with(usual(19), "liar", &[f64::NAN, f64::NEG_INFINITY])), []);
        assert_eq!(contradicted(Vec::<(String, f64)>::new()), []);
    }

    proptest! {
        /// Never half of the groups or more, none that gains, and the same whatever the order.
        #[test]
        fn a_majority_is_never_left_out(mut gains in prop::collection::vec((0_u8..30, -5.0..5.0_f64), 0..120), turn in 0_usize..120) {
            let named = |gains: &[(u8, f64)]| contradicted(gains.iter().map(|(group, gain)| (group.to_string(), *gain)));
            let found = named(&gains);
            let groups: std::collections::BTreeSet<_> = gains.iter().map(|(group, _)| *group).collect();
            prop_assert!(found.is_empty() || 2 * found.len() < groups.len());
            prop_assert!(found.iter().all(|found| found.gain < 0.0 && found.gain < found.bound));
            let n = gains.len().max(1);
            gains.rotate_left(turn % n);
            let names = |found: Vec<Contradicted>| {
                let names: std::collections::BTreeSet<_> = found.into_iter().map(|found| found.group).collect();
                names
            };
            // Sums of rows in another order may differ in the last bit, which no bound is so near to.
            prop_assert_eq!(names(named(&gains)), names(found));
        }
    }
}
