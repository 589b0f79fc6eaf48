//! Means of rows that come in groups, and how sure they are.

use std::collections::BTreeMap;

use super::student_t::{upper_quantile, upper_tail};

/// The mean over groups of each group's mean, and its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupMean {
    /// The mean, in the unit of the values; NaN without values.
    pub mean: f64,
    /// Standard error of the mean, in the same unit; NaN with fewer than two groups.
    pub std_error: f64,
    /// Skewness of the groups' means, no unit (the adjusted coefficient of Fisher and Pearson): below 0 where some groups
    /// are far below the others; 0 with fewer than three groups.
    pub skewness: f64,
    /// Rows.
    pub n_rows: usize,
    /// Groups.
    pub n_groups: usize,
}

/// The mean of values `(group, value)`, each group one observation: the mean of its rows.
///
/// Rows of one group hang together, by how much is unknown, and groups are few and of unequal sizes. Sandwich estimators
/// need many groups of like sizes; Student's t over groups' means, with one degree of freedom less than there are groups,
/// does not. For normal means it is exact where their variances are equal, and errs to the safe side where they are not,
/// whatever rows of a group have in common, for one-sided levels up to 0.0416 (0.05 with at most 14 groups), and for
/// symmetric heavy tails (mixtures of normal ones) too: Bakirov and Székely, *J. Math. Sci.* 139 (2006); Ibragimov and
/// Müller, *t-statistic based correlation and heterogeneity robust inference*, *J. Bus. Econ. Stat.* 28 (2010).
///
/// It errs to the other side where a few groups lose much more than the others gain: such losses are missed as often as they
/// are not sampled. So where the means are skewed towards its side, a bound is that of Hall's transformation of t (*On the
/// removal of skewness by transformation*, *J. R. Stat. Soc. B* 54, 1992) if that is further away; it is never nearer than
/// Student's. What remains is in the tests `rare_large_losses_*`.
///
/// That rows are scored under the adapters of several folds changes nothing of this, as long as training is stable: Bayle,
/// Bayle, Janson and Mackey, arXiv 2007.12671.
///
/// It depends neither on the order of the values nor on the names of the groups.
pub fn mean_of_groups<G: Ord>(values: impl IntoIterator<Item = (G, f64)>) -> GroupMean {
    let mut groups: BTreeMap<G, Vec<f64>> = BTreeMap::new();
    for (group, value) in values {
        groups.entry(group).or_default().push(value);
    }
    let n_rows = groups.values().map(Vec::len).sum();
    let mut means: Vec<f64> = groups.into_values().map(mean).collect();
    // One order of summing, whatever the groups are called.
    means.sort_unstable_by(f64::total_cmp);
    let (n_groups, n) = (means.len(), means.len() as f64);
    let middle = means.iter().sum::<f64>() / n;
    let moment = |power| means.iter().map(|mean| (mean - middle).powi(power)).sum::<f64>() / n;
    let (variance, third) = (moment(2), moment(3));
    let std_error = if n_groups < 2 { f64::NAN } else { (variance / (n - 1.0)).sqrt() };
    let skewness = if n_groups > 2 && variance > 0.0 {
        third / variance.powf(1.5) * (n * (n - 1.0)).sqrt() / (n - 2.0)
    } else {
        0.0
    };
    GroupMean { mean: middle, std_error, skewness, n_rows, n_groups }
}

fn mean(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.iter().sum::<f64>() / values.len() as f64
}

impl GroupMean {
    fn df(&self) -> usize {
        self.n_groups.saturating_sub(1)
    }

    /// What the true mean is above with confidence `1 − alpha`; NaN with fewer than two groups, or if a value was not
    /// finite.
    pub fn lower_bound(&self, alpha: f64) -> f64 {
        self.mean - self.reach(alpha, -self.skewness) * self.std_error
    }

    /// What the true mean is below with confidence `1 − alpha`. With `alpha / 2` on either side it is the other end of an
    /// interval of confidence `1 − alpha`.
    pub fn upper_bound(&self, alpha: f64) -> f64 {
        self.mean + self.reach(alpha, self.skewness) * self.std_error
    }

    /// Standard errors from the mean to a bound, where the means are skewed by so much towards it: the inverse of
    /// [`Self::transformed`].
    fn reach(&self, alpha: f64, skewness: f64) -> f64 {
        let student = upper_quantile(alpha, self.df());
        let c = skewness / (self.n_groups as f64).sqrt();
        if c > 0.0 {
            // `(1 − (1 − c t / 3)³) / c − c / 6 = student`, solved for t.
            let hall = 3.0 / c * (1.0 - (1.0 - c * (student + c / 6.0)).cbrt());
            return student.max(hall);
        }
        student
    }

    /// Hall's transformation of a distance in standard errors towards which the means are skewed: what is left of it.
    fn transformed(&self, t: f64, skewness: f64) -> f64 {
        let c = skewness / (self.n_groups as f64).sqrt();
        if c > 0.0 { t.min((1.0 - (1.0 - c * t / 3.0).powi(3)) / c - c / 6.0) } else { t }
    }

    /// The smallest alpha at which the lower bound is above `null`: the one-sided p-value. NaN where bounds are, and for
    /// groups without any spread that equal `null`.
    pub fn p_value(&self, null: f64) -> f64 {
        let t = (self.mean - null) / self.std_error;
        upper_tail(self.transformed(t, -self.skewness), self.df())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(u32, f64)]) -> GroupMean {
        mean_of_groups(values.iter().copied())
    }

    #[test]
    fn a_group_is_one_observation() {
        // Means 2, 4 and 9: mean 5, variance 13, standard error √(13/3).
        let rows = [(1, 1.0), (2, 4.0), (1, 3.0), (3, 9.0), (1, 2.0)];
        let found = of(&rows);
        assert_eq!((found.n_rows, found.n_groups), (5, 3));
        assert!((found.mean - 5.0).abs() < 1e-12);
        assert!((found.std_error - (13.0f64 / 3.0).sqrt()).abs() < 1e-12);
        // t with 2 degrees of freedom at 0.05 is 2.919986.
        let bound = 5.0 - 2.919_985_580 * (13.0f64 / 3.0).sqrt();
        assert!((found.lower_bound(0.05) - bound).abs() < 1e-6);
        assert!((found.p_value(bound) - 0.05).abs() < 1e-9);
        // Skewed upwards: 12 / (26/3)^1.5 √6, so the bound there is further away.
        assert!((found.skewness - 1.152_07).abs() < 1e-4, "{}", found.skewness);
        assert!(found.upper_bound(0.05) > 10.0 - bound);
        // Repeating a row of a group adds no evidence.
        let again = of(&[&rows[..], &[(2, 4.0), (2, 4.0), (3, 9.0)]].concat());
        assert_eq!((again.mean, again.std_error), (found.mean, found.std_error));
        // Neither order nor names matter, to the bit.
        let mut renamed = rows.map(|(group, value)| (90 - group, value));
        renamed.reverse();
        assert_eq!(of(&renamed), found);
    }

    #[test]
    fn bounds_are_further_away_where_the_tail_is() {
        // One that loses what nine gain.
        let rows: Vec<(u32, f64)> =
            (0..10).map(|group| (group, if group == 0 { -5.0 } else { 1.0 })).collect();
        let found = of(&rows);
        let student = found.mean - upper_quantile(0.05, 9) * found.std_error;
        assert!(found.skewness < -3.0, "{}", found.skewness);
        assert!(found.lower_bound(0.05) < student - found.std_error);
        // The other way round it is the other bound; on the side without a tail they are Student's.
        let turned = of(&rows.iter().map(|(group, value)| (*group, -value)).collect::<Vec<_>>());
        assert!((turned.upper_bound(0.05) + found.lower_bound(0.05)).abs() < 1e-12);
        assert!((turned.lower_bound(0.05) + found.upper_bound(0.05)).abs() < 1e-12);
        let of_t = turned.mean - upper_quantile(0.05, 9) * turned.std_error;
        assert!((turned.lower_bound(0.05) - of_t).abs() < 1e-12);
        // The p-value is where the bound is.
        for alpha in [0.2, 0.05, 0.001] {
            let p = found.p_value(found.lower_bound(alpha));
            assert!((p - alpha).abs() < 1e-9, "{p} {alpha}");
        }
    }

    #[test]
    fn too_little_and_not_finite_have_no_bound() {
        for rows in [
            &[][..],
            &[(1, 1.0), (1, 2.0)],
            &[(1, 1.0), (2, f64::NAN)],
            &[(1, 1.0), (2, f64::INFINITY)],
        ] {
            assert!(of(rows).lower_bound(0.05).is_nan(), "{rows:?}");
        }
        assert!(of(&[(1, 0.0), (2, 1.0), (3, f64::NAN)]).p_value(0.0).is_nan());
        let equal = of(&[(1, 0.5), (2, 0.5)]);
        assert_eq!((equal.lower_bound(0.01), equal.p_value(0.0)), (0.5, 0.0));
    }
}
