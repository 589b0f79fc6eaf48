//! Folds of a cross-fit: every row is held out once, from an adapter that learned from no row of its group.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use sha2::{Digest as _, Sha256};

/// Which fold each row belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folds {
    /// The fold of each row, below [`Self::n_folds`].
    pub of_rows: Vec<usize>,
    /// Folds, none of them empty.
    pub n_folds: usize,
}

impl Folds {
    /// Places of the rows that are held out with fold `fold`, ascending.
    pub fn held_out(&self, fold: usize) -> impl Iterator<Item = usize> {
        let of_rows = self.of_rows.iter().enumerate();
        of_rows.filter(move |(_, of_row)| **of_row == fold).map(|(row, _)| row)
    }

    /// Places of the rows that the adapter of fold `fold` learns from, ascending.
    pub fn learned(&self, fold: usize) -> impl Iterator<Item = usize> {
        let of_rows = self.of_rows.iter().enumerate();
        of_rows.filter(move |(_, of_row)| **of_row != fold).map(|(row, _)| row)
    }
}

/// Divides rows, each given by its group's name, into `k` folds, or as many as there are groups if these are fewer. Groups
/// stay whole; folds have about the same number of rows.
///
/// The largest group goes first, always into the fold with the fewest rows (of several, the first), so that no fold has
/// more rows than another by more than a group has. Of groups of one size, the SHA-256 of seed and name says who is first:
/// what comes out depends neither on the order of the rows nor on anything but names, sizes, `k` and seed.
pub fn folds<S: AsRef<str>>(groups: &[S], k: usize, seed: u64) -> Folds {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for group in groups {
        *sizes.entry(group.as_ref()).or_default() += 1;
    }
    let hash = |name: &str| -> [u8; 32] {
        Sha256::new_with_prefix(seed.to_le_bytes()).chain_update(name).finalize().into()
    };
    let mut largest_first: Vec<_> =
        sizes.iter().map(|(&name, &size)| (Reverse(size), hash(name), name)).collect();
    largest_first.sort_unstable();
    let n_folds = k.max(1).min(sizes.len());
    // Folds by rows that they have, the emptiest first.
    let mut emptiest: BTreeSet<(usize, usize)> = (0..n_folds).map(|fold| (0, fold)).collect();
    let mut of_groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (Reverse(size), _, name) in largest_first {
        let Some((rows, fold)) = emptiest.pop_first() else { break };
        emptiest.insert((rows + size, fold));
        of_groups.insert(name, fold);
    }
    let of_rows = groups.iter().map(|group| of_groups[group.as_ref()]).collect();
    Folds { of_rows, n_folds }
}
