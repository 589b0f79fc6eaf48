//! Splits: no group straddles, the order of rows doesn't matter, shares are reached.

use std::collections::HashMap;

use pleach_trainer::data::{Assignment, Placement, SplitItem, SplitSettings, components, split};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

const STRATA: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
struct Item {
    group: u32,
    stratum: usize,
    digest: [u8; 32],
}

fn item(index: usize, group: u32, stratum: usize) -> Item {
    Item { group, stratum, digest: Sha256::digest(index.to_le_bytes()).into() }
}

fn split_of(items: &[Item], settings: &SplitSettings) -> Assignment {
    let items: Vec<SplitItem<'_>> = items
        .iter()
        .map(|item| SplitItem {
            group: item.group,
            digest: item.digest,
            stratum: STRATA[item.stratum],
        })
        .collect();
    split(&items, settings)
}

fn settings(placement: Placement, seed: u64) -> SplitSettings {
    SplitSettings { shares: vec![0.8, 0.1, 0.1], seed, placement }
}

fn parts_by_digest(items: &[Item], assignment: &Assignment) -> HashMap<[u8; 32], u16> {
    items.iter().map(|item| item.digest).zip(assignment.parts.iter().copied()).collect()
}

proptest! {
    #[test]
    fn groups_stay_whole_and_the_order_of_rows_does_not_matter(
        rows in prop::collection::vec((0_u32..60, 0_usize..4), 1..300),
        seed in 0_u64..100,
        by_hash in any::<bool>(),
        rotate in 0_usize..300,
    ) {
        let placement = if by_hash { Placement::ByHash } else { Placement::Balanced };
        let settings = settings(placement, seed);
        let items: Vec<Item> =
            rows.iter().enumerate().map(|(index, (group, stratum))| item(index, *group, *stratum)).collect();
        let assignment = split_of(&items, &settings);
        let mut part_of: HashMap<u32, u16> = HashMap::new();
        for (item, part) in items.iter().zip(&assignment.parts) {
            prop_assert_eq!(*part_of.entry(item.group).or_insert(*part), *part);
        }
        prop_assert_eq!(part_of.len(), assignment.n_groups);
        prop_assert!((assignment.reached.iter().sum::<f64>() - 1.0).abs() < 1e-9);

        let mut moved = items.clone();
        moved.rotate_left(rotate % items.len());
        moved.reverse();
        // The numbers of groups are names only.
        for item in &mut moved {
            item.group = 1000 - item.group;
        }
        let again = split_of(&moved, &settings);
        prop_assert_eq!(parts_by_digest(&items, &assignment), parts_by_digest(&moved, &again));
        prop_assert_eq!(&assignment.reached, &again.reached);
    }

    #[test]
    fn by_hash_a_group_stays_where_it_is_when_others_come(
        rows in prop::collection::vec(0_u32..60, 2..200),
        seed in 0_u64..100,
    ) {
        let items: Vec<Item> = rows.iter().enumerate().map(|(index, group)| item(index, *group, 0)).collect();
        let settings = settings(Placement::ByHash, seed);
        let all = parts_by_digest(&items, &split_of(&items, &settings));
        let some: Vec<Item> = items.iter().filter(|item| item.group % 2 == 0).cloned().collect();
        for (digest, part) in parts_by_digest(&some, &split_of(&some, &settings)) {
            prop_assert_eq!(all[&digest], part);
        }
    }

    #[test]
    fn rows_with_a_common_key_are_one_component(
        keys in prop::collection::vec(prop::collection::vec(0_u32..40, 0..3), 1..60),
    ) {
        let n_rows = u32::try_from(keys.len()).unwrap();
        let pairs = (0_u32..).zip(&keys).flat_map(|(row, keys)| keys.iter().map(move |key| (row, *key)));
        let found = components(n_rows, pairs);
        // By walking: all rows that are reached from a row over common keys.
        for start in 0..keys.len() {
            let mut reached = vec![false; keys.len()];
            let mut next = vec![start];
            while let Some(row) = next.pop() {
                if !std::mem::replace(&mut reached[row], true) {
                    next.extend((0..keys.len()).filter(|other| keys[*other].iter().any(|key| keys[row].contains(key))));
                }
            }
            for other in 0..keys.len() {
                prop_assert_eq!(found[start] == found[other], reached[other]);
            }
        }
    }
}

#[test]
fn every_stratum_reaches_its_shares() {
    // 1,000 rows of single groups, strata of 600, 300, 90 and 10 rows.
    let stratum = |index| match index {
        0..600 => 0,
        600..900 => 1,
        900..990 => 2,
        _ => 3,
    };
    let items: Vec<Item> =
        (0..1000).zip(0..).map(|(index, group)| item(index, group, stratum(index))).collect();
    for seed in 0..20 {
        let assignment = split_of(&items, &settings(Placement::Balanced, seed));
        assert!(assignment.error_max < 1e-9, "{:?}", assignment.reached);
        for (name, reached) in &assignment.strata {
            for (reached, share) in reached.iter().zip([0.8, 0.1, 0.1]) {
                assert!((reached - share).abs() < 0.02, "{name}: {reached} instead of {share}");
            }
        }
        let by_hash = split_of(&items, &settings(Placement::ByHash, seed));
        assert!(by_hash.error_max < 0.05, "{:?}", by_hash.reached);
    }
    let other = |seed| split_of(&items, &settings(Placement::Balanced, seed)).parts;
    assert_ne!(other(1), other(2));
}

#[test]
fn large_groups_are_placed_near_the_shares() {
    // A few users have most rows: sizes 100, 50, 33, 25 …
    let mut items = Vec::new();
    for user in 1..=100_u32 {
        for _ in 0..(100 / user) {
            items.push(item(items.len(), user, (user % 4) as usize));
        }
    }
    for seed in 0..20 {
        let assignment = split_of(&items, &settings(Placement::Balanced, seed));
        assert!(assignment.error_max < 0.02, "{seed}: {:?}", assignment.reached);
        assert_eq!(assignment.group_rows_max, 100);
    }
}

#[test]
fn folds_are_equal_parts() {
    let items: Vec<Item> =
        (0..103).zip(0..).map(|(index, group)| item(index, group / 2, index % 4)).collect();
    let assignment = split_of(&items, &SplitSettings::folds(5, 9));
    let mut sizes = [0; 5];
    assignment.parts.iter().for_each(|part| sizes[usize::from(*part)] += 1);
    assert!(sizes.iter().all(|n| (18..=24).contains(n)), "{sizes:?}");
    // One group that is everything is in one fold, and the report says how far off that is.
    let one: Vec<Item> = (0..10).map(|index| item(index, 7, 0)).collect();
    let assignment = split_of(&one, &SplitSettings::folds(5, 9));
    assert!(assignment.parts.windows(2).all(|pair| pair[0] == pair[1]));
    assert!((assignment.error_max - 0.8).abs() < 1e-9);
}
