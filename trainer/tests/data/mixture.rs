//! Caps, anchors and replay.

use std::collections::HashMap;

use pleach_trainer::data::{CapRow, MixtureError, Source, cap_users, mix, replay};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

fn row(index: usize, user: Option<&str>, trusted: bool) -> CapRow<'_> {
    CapRow { user, digest: Sha256::digest(index.to_le_bytes()).into(), trusted }
}

fn counts(rows: &[CapRow<'_>], kept: &[u32]) -> HashMap<Option<String>, usize> {
    let mut counts = HashMap::new();
    for row in kept.iter().map(|index| rows[*index as usize]).filter(|row| !row.trusted) {
        *counts.entry(row.user.map(str::to_owned)).or_default() += 1;
    }
    counts
}

proptest! {
    #[test]
    fn no_user_has_more_than_the_share_and_no_more_is_left_out_than_needed(
        users in prop::collection::vec(prop::option::of(0_usize..12), 1..200),
        trusted in prop::collection::vec(any::<bool>(), 200),
        share in 0.05_f64..1.0,
        seed in any::<u64>(),
    ) {
        let names: Vec<String> = (0..12).map(|user| format!("u{user}")).collect();
        let rows: Vec<CapRow<'_>> = users
            .iter()
            .enumerate()
            .map(|(index, user)| row(index, user.map(|user| names[user].as_str()), trusted[index] && index % 4 == 0))
            .collect();
        match cap_users(&rows, share, seed) {
            Ok(capped) => {
                let cap = capped.rows_per_user_max;
                let counts = counts(&rows, &capped.kept);
                prop_assert!(counts.values().all(|n| *n <= cap && *n as f64 <= share * capped.kept.len() as f64));
                prop_assert_eq!(capped.kept.len() + capped.left_out.len(), rows.len());
                prop_assert!(capped.left_out.iter().all(|index| !rows[*index as usize].trusted));
                if !capped.left_out.is_empty() {
                    // One row more for everybody would be too much.
                    let mut all: HashMap<Option<&str>, usize> = HashMap::new();
                    rows.iter().filter(|row| !row.trusted).for_each(|row| *all.entry(row.user).or_default() += 1);
                    let n_trusted = rows.iter().filter(|row| row.trusted).count();
                    let kept = n_trusted + all.values().map(|n| (*n).min(cap + 1)).sum::<usize>();
                    prop_assert!((cap + 1) as f64 > share * kept as f64);
                }
                // The choice is the rows', not their order's.
                let mut reversed = rows.clone();
                reversed.reverse();
                let again = cap_users(&reversed, share, seed).unwrap();
                let last = u32::try_from(rows.len() - 1).unwrap();
                let mut kept: Vec<u32> = again.kept.iter().map(|index| last - index).collect();
                kept.sort_unstable();
                prop_assert_eq!(kept, capped.kept);
            }
            Err(MixtureError::TooFewUsers { n_users, n_trusted, .. }) => {
                prop_assert!(((n_users + n_trusted) as f64) * share < 1.0);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn a_loud_user_is_cut_down() {
    let rows: Vec<CapRow<'_>> = (0..100)
        .map(|index| {
            row(
                index,
                Some(if index < 80 { "loud" } else { ["a", "b", "c", "d"][index % 4] }),
                false,
            )
        })
        .collect();
    let capped = cap_users(&rows, 0.25, 1).unwrap();
    assert_eq!(capped.rows_per_user_max, 6);
    assert_eq!(capped.kept.len(), 26);
    let other = cap_users(&rows, 0.25, 2).unwrap();
    assert_ne!(capped.kept, other.kept);
    let error = cap_users(&rows[..80], 0.25, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no user may have more than 0.25 of the rows, but there are only 1 users and 0 trusted rows"
    );
    assert!(cap_users(&rows[..80], 1.0, 1).unwrap().left_out.is_empty());
    assert!(cap_users(&[], 0.1, 1).unwrap().kept.is_empty());
}

#[test]
fn replay_is_a_choice_without_repetition() {
    let chosen = replay(40, 100, 0.5, 3).unwrap();
    assert_eq!(chosen.len(), 20);
    let mut sorted = chosen.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 20);
    assert_eq!(replay(40, 100, 0.5, 3).unwrap(), chosen);
    assert_ne!(replay(40, 100, 0.5, 4).unwrap(), chosen);
    // More than there are: each as often as any other, or once more.
    let many = replay(10, 4, 1.0, 3).unwrap();
    let times = |row| many.iter().filter(|chosen| **chosen == row).count();
    assert_eq!(many.len(), 10);
    assert!((0..4).all(|row| (2..=3).contains(&times(row))));
    assert!(replay(10, 0, 0.0, 3).unwrap().is_empty());
    assert_eq!(replay(10, 0, 0.2, 3), Err(MixtureError::NothingToReplay { ratio: 0.2 }));
}

#[test]
fn a_mixture_has_every_row_and_the_stated_shares() {
    let replayed = replay(50, 200, 0.4, 5).unwrap();
    let mixed = mix(50, 3, &replayed, 0.2, 5);
    let of = |source| mixed.iter().filter(|row| row.source == source).count();
    assert_eq!((of(Source::New), of(Source::Replay)), (50, 20));
    // 70 other rows: 17.5 anchors are a fifth, so each of the three comes six times.
    assert_eq!(of(Source::Anchor), 18);
    let mut new: Vec<u32> =
        mixed.iter().filter(|row| row.source == Source::New).map(|row| row.index).collect();
    assert!(!new.is_sorted());
    new.sort_unstable();
    assert!(new.into_iter().eq(0..50));
    assert_eq!(mix(50, 3, &replayed, 0.2, 5), mixed);
    assert_eq!(mix(2, 0, &[], 0.5, 5).len(), 2);
    // One anchor cannot be half of a thousand rows.
    assert_eq!(mix(1000, 1, &[], 0.5, 5).len(), 1032);
}
