//! Folds of a cross-fit.

use std::collections::{BTreeMap, BTreeSet};

use pleach_trainer::folds;
use proptest::prelude::*;

/// The fold of every group, if groups are whole.
fn of_groups(groups: &[String], of_rows: &[usize]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (group, fold) in groups.iter().zip(of_rows) {
        assert_eq!(*found.entry(group.clone()).or_insert(*fold), *fold, "{group} is in two folds");
    }
    found
}

proptest! {
    #[test]
    fn groups_are_whole_folds_balanced_and_the_order_of_rows_does_not_matter(
        rows in prop::collection::vec(0_u8..40, 0..200),
        k in 0_usize..9,
        seed: u64,
        by in 0_usize..200,
    ) {
        let mut groups: Vec<String> = rows.iter().map(|group| format!("user {group}")).collect();
        let found = folds(&groups, k, seed);
        let placed = of_groups(&groups, &found.of_rows);
        prop_assert_eq!(found.n_folds, k.max(1).min(placed.len()));
        let used: BTreeSet<usize> = found.of_rows.iter().copied().collect();
        prop_assert_eq!(used, (0..found.n_folds).collect::<BTreeSet<_>>(), "no fold is empty");
        let sizes: Vec<usize> = (0..found.n_folds).map(|fold| found.held_out(fold).count()).collect();
        let largest = placed.keys().map(|name| groups.iter().filter(|group| *group == name).count());
        if let (Some(most), Some(least), Some(largest)) =
            (sizes.iter().max(), sizes.iter().min(), largest.max())
        {
            prop_assert!(most - least <= largest, "{:?}", sizes);
        }
        for fold in 0..found.n_folds {
            let mut all: Vec<usize> = found.held_out(fold).chain(found.learned(fold)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..groups.len()).collect::<Vec<_>>());
        }
        if !groups.is_empty() {
            let middle = by % groups.len();
            groups.rotate_left(middle);
            groups.reverse();
        }
        let again = folds(&groups, k, seed);
        prop_assert_eq!(of_groups(&groups, &again.of_rows), placed);
    }
}

#[test]
fn fewer_groups_than_folds_are_fewer_folds() {
    let found = folds(&["a", "b", "a", "a"], 4, 1);
    assert_eq!(found.n_folds, 2);
    // The larger group is placed first.
    assert_eq!(found.of_rows, [0, 1, 0, 0]);
    assert_eq!(found.held_out(1).collect::<Vec<_>>(), [1]);
    assert_eq!(found.learned(1).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(folds::<&str>(&[], 4, 1).n_folds, 0);
}

#[test]
fn another_seed_is_another_division() {
    let groups: Vec<String> = (0..40).map(|group| group.to_string()).collect();
    let found = folds(&groups, 4, 1);
    assert_eq!(found, folds(&groups, 4, 1));
    assert_ne!(found, folds(&groups, 4, 2));
    let sizes: Vec<usize> = (0..4).map(|fold| found.held_out(fold).count()).collect();
    assert_eq!(sizes, [10; 4]);
}
