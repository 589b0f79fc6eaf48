//! Whose rows are contradicted by what all others teach.

use std::collections::BTreeMap;

/// Groups at least: among fewer, nobody can be told from the usual.
const GROUPS_MIN: usize = 8;
/// How many standard deviations below the usual score is too far. Of normal scores 3 in 100,000 are.
const DEVIATIONS: f64 = 4.0;
/// A median absolute deviation, times this, estimates the standard deviation of normal values.
const MAD_TO_DEVIATION: f64 = 1.4826;
/// What is not further below the usual score than this, in nats, is near it: where all are told nearly surely, a doubt is
/// no contradiction.
const DISTANCE_MIN: f64 = 1.0;
/// A fold of fewer groups has the usual score of all: a median of so few is what one of them makes it.
const FOLD_GROUPS_MIN: usize = 4;
/// Whose rows lose more than this share of what they lacked is explained by others, however far away it still is.
const EXPLAINED: f64 = 2.0 / 3.0;

/// Scores of a row that was held out, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutScore {
    /// The [fold](crate::folds()) that it was held out of, as are all rows of its group.
    pub fold: usize,
    /// Under what training went on from.
    pub before: f64,
    /// Under an adapter that learned from rows of other groups only: that of its fold.
    pub after: f64,
}

/// A group that is contradicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Contradicted {
    /// Which.
    pub group: String,
    /// Its rows.
    pub n_rows: usize,
    /// Median scores of its rows.
    pub score: HeldOutScore,
    /// What its score after training is below.
    pub bound: f64,
}

impl Contradicted {
    /// Whether it was below the bound before the training, too. Then it is not the training that took it there, and what
    /// its rows gain and lose, about which all others agree, says nothing of a candidate.
    pub fn was_so_before(&self) -> bool {
        self.score.before < self.bound
    }
}

/// The groups whose rows remain far less likely than is usual, whatever others taught, the least likely first.
///
/// `rows` has a row each: its group and its scores. Those that are not finite are left out.
///
/// Where many say what is right, each of them is told by what the others say. Whoever wants the model to answer otherwise
/// has to contradict them: his rows stay unlikely. So a group is contradicted if the median score of its rows after training
/// is a nat and four standard deviations below that of the median group of its fold, and the training took away less than
/// two thirds of what they lacked before. One row that nobody could tell moves a mean, but not a median. Medians and
/// deviation (of the median absolute deviation: Hampel, *J. Am. Stat. Assoc.* 69, 1974) are the majority's, whatever the
/// others do, and of fewer than eight groups none is contradicted. Folds are told apart as one may have learned better than
/// another; deviations from their medians are those of all.
///
/// It sees nothing of a lie that looks like what all others say, of one where answers differ as much anyway, nor of one
/// that a majority tells.
pub fn contradicted<G: AsRef<str>>(
    rows: impl IntoIterator<Item = (G, HeldOutScore)>,
) -> Vec<Contradicted> {
    let mut groups: BTreeMap<String, Vec<HeldOutScore>> = BTreeMap::new();
    for (group, score) in rows {
        if score.before.is_finite() && score.after.is_finite() {
            groups.entry(group.as_ref().to_owned()).or_default().push(score);
        }
    }
    if groups.len() < GROUPS_MIN {
        return Vec::new();
    }
    let scores: Vec<HeldOutScore> = groups.values().map(|rows| usual_row(rows)).collect();
    let usual = usual_of_folds(&scores);
    let distance = |score: &HeldOutScore| score.after - usual[&score.fold];
    let deviation = median(scores.iter().map(|score| distance(score).abs()).collect());
    let far = (DEVIATIONS * MAD_TO_DEVIATION * deviation).max(DISTANCE_MIN);
    let is_explained = |score: &HeldOutScore| {
        score.after - score.before >= EXPLAINED * (usual[&score.fold] - score.before)
    };
    let mut found: Vec<_> = groups
        .into_iter()
        .zip(scores)
        .filter(|(_, score)| distance(score) < -far && !is_explained(score))
        .map(|((group, rows), score)| {
            let bound = usual[&score.fold] - far;
            Contradicted { group, n_rows: rows.len(), score, bound }
        })
        .collect();
    found.sort_by(|a, b| a.score.after.total_cmp(&b.score.after));
    found
}

/// By fold, the usual score after training.
fn usual_of_folds(scores: &[HeldOutScore]) -> BTreeMap<usize, f64> {
    let of_all = median(scores.iter().map(|score| score.after).collect());
    let mut of_folds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for score in scores {
        of_folds.entry(score.fold).or_default().push(score.after);
    }
    let usual = |scores: Vec<f64>| {
        if scores.len() < FOLD_GROUPS_MIN { of_all } else { median(scores) }
    };
    of_folds.into_iter().map(|(fold, scores)| (fold, usual(scores))).collect()
}

/// The median scores of a group's rows; there is one at least.
fn usual_row(rows: &[HeldOutScore]) -> HeldOutScore {
    let before = median(rows.iter().map(|score| score.before).collect());
    let after = median(rows.iter().map(|score| score.after).collect());
    HeldOutScore { fold: rows[0].fold, before, after }
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
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn score(before: f64, after: f64) -> HeldOutScore {
        HeldOutScore { fold: 0, before, after }
    }

    /// Rows of so many groups, three each, that others tell well.
    fn usual(n_groups: u32) -> Vec<(String, HeldOutScore)> {
        let row = |group: u32, row: u32| {
            let spread = f64::from((group * 7 + row * 3) % 11) / 10.0;
            (format!("u{group:02}"), score(-2.0, -0.1 - 0.2 * spread))
        };
        (0..n_groups).flat_map(|group| (0..3).map(move |r| row(group, r))).collect()
    }

    fn with(
        mut rows: Vec<(String, HeldOutScore)>,
        group: &str,
        own: &[HeldOutScore],
    ) -> Vec<(String, HeldOutScore)> {
        rows.extend(own.iter().map(|score| (group.to_owned(), *score)));
        rows
    }

    #[test]
    fn who_stays_unlikely_whatever_others_teach_is_found() {
        let lies = [score(-3.0, -4.0), score(-2.0, -3.0)];
        let found = contradicted(with(usual(19), "liar", &lies));
        let [liar] = &found[..] else { panic!("{found:?}") };
        assert_eq!((liar.group.as_str(), liar.n_rows), ("liar", 2));
        assert_eq!(liar.score, score(-2.5, -3.5));
        assert!(liar.bound < -1.0 && liar.bound > -2.0, "{liar:?}");
        assert!(liar.was_so_before());
        // Also where there is nothing to learn any more, and if form is learned and not what is said.
        let known: Vec<_> = usual(19)
            .into_iter()
            .map(|(group, known)| (group, score(known.after, -0.05)))
            .collect();
        assert_eq!(contradicted(with(known, "liar", &[score(-5.0, -4.0)])).len(), 1);
        // Two of them, the worse one first.
        let two = with(with(usual(18), "b", &[score(-2.0, -2.1)]), "a", &[score(-1.0, -3.0)]);
        let names: Vec<_> = contradicted(two).into_iter().map(|found| found.group).collect();
        assert_eq!(names, ["a", "b"]);
        // Whoever was told well before.
        let [changed] = &contradicted(with(usual(19), "c", &[score(-0.5, -4.0)]))[..] else {
            panic!("it is not found")
        };
        assert!(!changed.was_so_before(), "{changed:?}");
    }

    #[test]
    fn who_is_only_harder_to_tell_stays() {
        // A nat is not far, and whoever was far away and comes near is explained.
        assert_eq!(contradicted(with(usual(19), "odd", &[score(-1.0, -1.1)])), []);
        assert_eq!(contradicted(with(usual(19), "odd", &[score(-9.0, -3.0)])), []);
        // One row of three that nobody could tell.
        let one = [score(-2.0, -9.0), score(-2.0, -0.2), score(-2.0, -0.3)];
        assert_eq!(contradicted(with(usual(19), "odd", &one)), []);
        // Among answers that differ much, one that differs as much.
        let spread =
            (0..20).map(|group| (format!("u{group}"), score(-3.0, f64::from(group) * -0.2)));
        assert_eq!(contradicted(with(spread.collect(), "odd", &[score(-4.0, -5.0)])), []);
    }

    /// Two folds, of which one learned far less: what is unusual there is measured there.
    #[test]
    fn a_fold_that_learned_less_hides_nobody_and_accuses_nobody() {
        let mut rows = usual(10);
        rows.extend(usual(9).into_iter().map(|(group, score)| {
            (format!("w{group}"), HeldOutScore { fold: 1, before: -4.0, after: score.after - 2.0 })
        }));
        assert_eq!(contradicted(rows.clone()), []);
        for (fold, after) in [(0, -2.0), (1, -4.0)] {
            let lie = HeldOutScore { fold, before: after, after };
            let found = contradicted(with(rows.clone(), "liar", &[lie]));
            assert_eq!(found.len(), 1, "fold {fold}");
            assert_eq!((found[0].group.as_str(), found[0].score), ("liar", lie));
        }
    }

    #[test]
    fn nobody_is_told_from_few() {
        let lie = [score(-9.0, -9.0)];
        assert_eq!(contradicted(with(usual(6), "liar", &lie)), []);
        assert_eq!(contradicted(with(usual(7), "liar", &lie)).len(), 1);
        // What is not finite counts for nothing.
        let odd = [score(f64::NAN, -9.0), score(-9.0, f64::NEG_INFINITY)];
        assert_eq!(contradicted(with(usual(19), "liar", &odd)), []);
        assert_eq!(contradicted(Vec::<(String, HeldOutScore)>::new()), []);
    }

    proptest! {
        /// Never half of the groups or more, none that is near, and the same whatever the order.
        #[test]
        fn a_majority_is_never_left_out(
            mut rows in prop::collection::vec((0_u8..30, -9.0..0.0_f64, -9.0..0.0_f64), 0..120),
            n_folds in 1_usize..6,
            turn in 0_usize..120,
        ) {
            let named = |rows: &[(u8, f64, f64)]| {
                contradicted(rows.iter().map(|&(group, before, after)| {
                    let fold = usize::from(group) % n_folds;
                    (group.to_string(), HeldOutScore { fold, before, after })
                }))
            };
            let found = named(&rows);
            let groups: BTreeSet<_> = rows.iter().map(|row| row.0).collect();
            prop_assert!(found.is_empty() || 2 * found.len() < groups.len());
            prop_assert!(found.iter().all(|found| found.score.after < found.bound));
            let n = rows.len().max(1);
            rows.rotate_left(turn % n);
            prop_assert_eq!(named(&rows), found);
        }
    }
}
