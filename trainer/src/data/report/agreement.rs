//! Agreement between raters, corrected for chance.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Agreement;

/// Collects ratings.
#[derive(Clone, Debug, Default)]
pub(super) struct Ratings {
    /// By what was rated: rater and category.
    items: HashMap<[u8; 32], Vec<(u32, u32)>>,
    raters: HashMap<String, u32>,
    categories: HashMap<String, u32>,
    /// Times that somebody rated.
    n_all: u64,
}

impl Ratings {
    /// Somebody put a thing into a category. Who rates the same thing again changes the rating.
    pub(super) fn add(&mut self, item: [u8; 32], rater: &str, category: &str) {
        let (rater, category) =
            (number(&mut self.raters, rater), number(&mut self.categories, category));
        self.n_all += 1;
        let ratings = self.items.entry(item).or_default();
        match ratings.iter_mut().find(|(by, _)| *by == rater) {
            Some(rating) => rating.1 = category,
            None => ratings.push((rater, category)),
        }
    }

    /// The agreement; `None` if nothing was rated twice.
    pub(super) fn agreement(&self) -> Option<Agreement> {
        let shared: Vec<&Vec<(u32, u32)>> =
            self.items.values().filter(|ratings| ratings.len() >= 2).collect();
        let (mut n_pairs, mut n_equal) = (0_u64, 0_u64);
        let mut raters = BTreeSet::new();
        for ratings in &shared {
            let mut of_category: BTreeMap<u32, u64> = BTreeMap::new();
            for (rater, category) in *ratings {
                *of_category.entry(*category).or_default() += 1;
                raters.insert(*rater);
            }
            let n = ratings.len() as u64;
            n_pairs += n * (n - 1) / 2;
            n_equal += of_category.values().map(|n| n * (n - 1) / 2).sum::<u64>();
        }
        if n_pairs == 0 {
            return None;
        }
        let observed = n_equal as f64 / n_pairs as f64;
        let expected = if raters.len() == 2 { by_rater(&shared) } else { pooled(&shared) };
        let kappa = if expected < 1.0 { (observed - expected) / (1.0 - expected) } else { 1.0 };
        Some(Agreement {
            ratings: self.n_all,
            raters: self.raters.len() as u64,
            items: shared.len() as u64,
            observed,
            expected,
            kappa,
        })
    }
}

/// The number of a name: 0 for the first, and so on.
pub(super) fn number(numbers: &mut HashMap<String, u32>, name: &str) -> u32 {
    if let Some(number) = numbers.get(name) {
        return *number;
    }
    let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    numbers.insert(name.to_owned(), next);
    next
}

/// Cohen 1960: each of two raters has frequencies of its own.
fn by_rater(shared: &[&Vec<(u32, u32)>]) -> f64 {
    let mut frequencies: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
    for (rater, category) in shared.iter().copied().flatten() {
        *frequencies.entry(*rater).or_default().entry(*category).or_default() += 1;
    }
    let mut both = frequencies.into_values();
    let (Some(first), Some(second)) = (both.next(), both.next()) else { return 0.0 };
    let n_items = shared.len() as f64;
    let together = |(category, n): (&u32, &u64)| {
        *n as f64 / n_items * second.get(category).copied().unwrap_or(0) as f64 / n_items
    };
    first.iter().map(together).sum()
}

/// Fleiss 1971: all raters have the same frequencies.
fn pooled(shared: &[&Vec<(u32, u32)>]) -> f64 {
    let mut frequencies: BTreeMap<u32, u64> = BTreeMap::new();
    for (_, category) in shared.iter().copied().flatten() {
        *frequencies.entry(*category).or_default() += 1;
    }
    let n_ratings: u64 = frequencies.values().sum();
    frequencies.values().map(|n| (*n as f64 / n_ratings as f64).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreement(ratings: &[(u8, &str, &str)]) -> Option<Agreement> {
        let mut all = Ratings::default();
        for (item, rater, category) in ratings {
            all.add([*item; 32], rater, category);
        }
        all.agreement()
    }

    #[test]
    fn two_raters_are_compared_by_cohen() {
        // The usual textbook example: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: kappa 0.4.
        let table = [(20, "yes", "yes"), (5, "yes", "no"), (10, "no", "yes"), (15, "no", "no")];
        let mut ratings = Vec::new();
        let mut item = 0;
        for (n, first, second) in table {
            for _ in 0..n {
                ratings.extend([(item, "a", first), (item, "b", second)]);
                item += 1;
            }
        }
        let found = agreement(&ratings).unwrap();
        assert!((found.observed - 0.7).abs() < 1e-12 && (found.expected - 0.5).abs() < 1e-12);
        assert!((found.kappa - 0.4).abs() < 1e-12);
        assert_eq!((found.items, found.raters, found.ratings), (50, 2, 100));
    }

    #[test]
    fn more_raters_are_compared_by_fleiss() {
        // Three raters, two things: by hand P = (1 + 1/3) / 2, P_e = (4/6)^2 + (2/6)^2.
        let ratings = [
            (0, "a", "x"),
            (0, "b", "x"),
            (0, "c", "x"),
            (1, "a", "x"),
            (1, "b", "y"),
            (1, "c", "y"),
        ];
        let found = agreement(&ratings).unwrap();
        let (observed, expected) = (2.0 / 3.0, 5.0 / 9.0);
        assert!((found.observed - observed).abs() < 1e-12);
        assert!((found.kappa - (observed - expected) / (1.0 - expected)).abs() < 1e-12);
    }

    #[test]
    fn one_rating_of_each_thing_says_nothing() {
        assert_eq!(agreement(&[(0, "a", "x"), (1, "b", "y")]), None);
        // A changed mind is not another rater.
        assert_eq!(agreement(&[(0, "a", "x"), (0, "a", "y")]), None);
        let all_equal = agreement(&[(0, "a", "x"), (0, "b", "x")]).unwrap();
        assert!((all_equal.kappa - 1.0).abs() < 1e-12);
    }
}
