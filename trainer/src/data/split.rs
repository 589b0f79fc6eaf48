//! Parts of a data set (train, validation, test, or the folds of a cross-fit) that no group straddles.
//!
//! A group is placed by the SHA-256 of its name and the seed, so where it goes depends neither on the order of the
//! rows nor on anything but what is stated.

use std::{cmp::Reverse, collections::BTreeMap, collections::HashMap, hash::Hash};

use sha2::{Digest as _, Sha256};

use super::union_find::UnionFind;

/// Scores that differ by less are a tie, which the hash decides.
const TIE: f64 = 1e-9;

/// How groups find their part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Every part gets its share of every stratum, as near as whole groups allow. New rows may move old groups.
    #[default]
    Balanced,
    /// By the hash alone: a group stays where it is whatever rows come or go, and shares are reached on average.
    ByHash,
}

/// How a data set is divided.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SplitSettings {
    /// Relative size of each part; they need not sum to 1.
    pub shares: Vec<f64>,
    /// Another seed is another split.
    pub seed: u64,
    /// How groups find their part.
    pub placement: Placement,
}

impl SplitSettings {
    /// `k` equal parts: each is held out once, and what is trained on the others is measured on it.
    pub fn folds(k: usize, seed: u64) -> Self {
        Self { shares: vec![1.0; k], seed, placement: Placement::Balanced }
    }
}

/// What a split needs to know of a row.
#[derive(Clone, Copy, Debug)]
pub struct SplitItem<'a> {
    /// Rows of equal numbers stay together; see [`components`].
    pub group: u32,
    /// SHA-256 of the row. A group's name is the least of its rows', whatever the order of the rows.
    pub digest: [u8; 32],
    /// Label, or range of lengths: what every part should have its share of.
    pub stratum: &'a str,
}

/// Where the rows went.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Assignment {
    /// The part of each row.
    #[serde(skip)]
    pub parts: Vec<u16>,
    /// Share of the rows that each part got.
    pub reached: Vec<f64>,
    /// Largest difference between a reached share and the one asked for.
    pub error_max: f64,
    /// For each stratum the share of its rows that each part got.
    pub strata: BTreeMap<String, Vec<f64>>,
    /// Number of groups.
    pub n_groups: usize,
    /// Rows of the largest group.
    pub group_rows_max: usize,
}

/// Joins rows that have any key in common: returns a number for each of `n_rows` rows, equal for those that belong
/// together, directly or over others.
pub fn components<K: Eq + Hash>(n_rows: u32, keys: impl IntoIterator<Item = (u32, K)>) -> Vec<u32> {
    let mut groups = UnionFind::new(n_rows);
    let mut first_with: HashMap<K, u32> = HashMap::new();
    for (row, key) in keys {
        groups.join(*first_with.entry(key).or_insert(row), row);
    }
    groups.names()
}

/// Divides rows into parts.
///
/// # Panics
/// If there are no shares, more than 65 535, or one is not above 0.
pub fn split(items: &[SplitItem<'_>], settings: &SplitSettings) -> Assignment {
    let total: f64 = settings.shares.iter().sum();
    assert!(!settings.shares.is_empty(), "no parts to split into");
    assert!(
        settings.shares.iter().all(|share| *share > 0.0) && total.is_finite(),
        "shares must be above 0"
    );
    let shares: Vec<f64> = settings.shares.iter().map(|share| share / total).collect();

    let strata: BTreeMap<&str, u32> = items.iter().map(|item| (item.stratum, 0)).collect();
    let strata: BTreeMap<&str, u32> = strata.into_keys().zip(0..).collect();
    let mut groups = groups_of(items, &strata, settings.seed);
    let mut n_rows = vec![0_u32; strata.len()];
    for group in &groups {
        group.rows.iter().for_each(|(stratum, n)| n_rows[*stratum as usize] += n);
    }
    // Large groups first, as the small ones then fill what they leave; of one size as the hash has it.
    groups.sort_unstable_by(|a, b| {
        (Reverse(a.n_rows.ilog2()), a.hash, &a.rows).cmp(&(
            Reverse(b.n_rows.ilog2()),
            b.hash,
            &b.rows,
        ))
    });
    let mut parts = Parts::new(&shares, &n_rows);
    let mut part_of_group: HashMap<u32, u16> = HashMap::with_capacity(groups.len());
    for group in &groups {
        let part = match settings.placement {
            Placement::ByHash => pick(&shares, group.uniform()),
            Placement::Balanced => parts.best(group),
        };
        parts.add(part, group);
        part_of_group.insert(group.id, u16::try_from(part).unwrap_or(u16::MAX));
    }
    let reached = parts.reached();
    let difference = |(reached, share): (&f64, &f64)| (reached - share).abs();
    Assignment {
        parts: items.iter().map(|item| part_of_group[&item.group]).collect(),
        error_max: reached.iter().zip(&shares).map(difference).fold(0.0, f64::max),
        reached,
        strata: strata
            .iter()
            .map(|(name, &stratum)| ((*name).to_owned(), parts.of(stratum)))
            .collect(),
        n_groups: groups.len(),
        group_rows_max: groups.iter().map(|group| group.n_rows as usize).max().unwrap_or(0),
    }
}

/// Rows that stay together.
struct Group {
    id: u32,
    hash: [u8; 32],
    n_rows: u32,
    /// Rows of each stratum that it has, sorted.
    rows: Vec<(u32, u32)>,
}

impl Group {
    /// A number from 0 to 1 that the hash is as good as random in.
    fn uniform(&self) -> f64 {
        let [a, b, c, d, ..] = self.hash;
        f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
    }
}

fn groups_of(items: &[SplitItem<'_>], strata: &BTreeMap<&str, u32>, seed: u64) -> Vec<Group> {
    let mut groups: HashMap<u32, ([u8; 32], BTreeMap<u32, u32>)> = HashMap::new();
    for item in items {
        let (name, rows) =
            groups.entry(item.group).or_insert_with(|| (item.digest, BTreeMap::new()));
        *name = item.digest.min(*name);
        *rows.entry(strata[item.stratum]).or_default() += 1;
    }
    let group = |(id, (name, rows)): (u32, ([u8; 32], BTreeMap<u32, u32>))| {
        let hash = Sha256::new_with_prefix(name).chain_update(seed.to_le_bytes()).finalize().into();
        Group { id, hash, n_rows: rows.values().sum(), rows: rows.into_iter().collect() }
    };
    groups.into_iter().map(group).collect()
}

/// Index of the share that `uniform` falls into.
fn pick(shares: &[f64], uniform: f64) -> usize {
    let total: f64 = shares.iter().sum();
    let mut below = 0.0;
    let over = |share: &f64| {
        below += share / total;
        uniform < below
    };
    shares.iter().position(over).unwrap_or(shares.len() - 1)
}

/// Rows wanted and had by each part, `[part][stratum]`.
struct Parts<'a> {
    shares: &'a [f64],
    wanted: Vec<Vec<f64>>,
    had: Vec<Vec<f64>>,
    n_rows: f64,
}

impl<'a> Parts<'a> {
    fn new(shares: &'a [f64], n_rows: &[u32]) -> Self {
        let wanted = |share: &f64| n_rows.iter().map(|n| share * f64::from(*n)).collect();
        Self {
            shares,
            wanted: shares.iter().map(wanted).collect(),
            had: vec![vec![0.0; n_rows.len()]; shares.len()],
            n_rows: n_rows.iter().map(|n| f64::from(*n)).sum(),
        }
    }

    /// The part that lacks most of what the group has, relative to what it wants; where the group fits into none, the
    /// one that lacks most rows.
    fn best(&self, group: &Group) -> usize {
        let room =
            |part: usize| self.shares[part] * self.n_rows - self.had[part].iter().sum::<f64>();
        let fits = |part: &usize| room(*part) + 0.5 >= f64::from(group.n_rows);
        let parts: Vec<usize> = (0..self.shares.len()).filter(fits).collect();
        let lacks = |part: &usize| {
            let (wanted, had) = (&self.wanted[*part], &self.had[*part]);
            let relative = |&(stratum, n): &(u32, u32)| {
                let stratum = stratum as usize;
                f64::from(n) * (wanted[stratum] - had[stratum]) / wanted[stratum]
            };
            group.rows.iter().map(relative).sum::<f64>()
        };
        let all: Vec<usize> = (0..self.shares.len()).collect();
        let (among, scores): (&[usize], Vec<f64>) = if parts.is_empty() {
            (&all, all.iter().map(|part| room(*part)).collect())
        } else {
            (&parts, parts.iter().map(lacks).collect())
        };
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let tied: Vec<usize> = among
            .iter()
            .zip(&scores)
            .filter(|(_, score)| **score >= most - TIE)
            .map(|(part, _)| *part)
            .collect();
        let shares: Vec<f64> = tied.iter().map(|part| self.shares[*part]).collect();
        tied[pick(&shares, group.uniform())]
    }

    fn add(&mut self, part: usize, group: &Group) {
        for &(stratum, n) in &group.rows {
            self.had[part][stratum as usize] += f64::from(n);
        }
    }

    fn reached(&self) -> Vec<f64> {
        let share = |had: &Vec<f64>| had.iter().sum::<f64>() / self.n_rows.max(1.0);
        self.had.iter().map(share).collect()
    }

    /// Shares of one stratum.
    fn of(&self, stratum: u32) -> Vec<f64> {
        let stratum = stratum as usize;
        let n_rows: f64 = self.had.iter().map(|had| had[stratum]).sum();
        self.had.iter().map(|had| had[stratum] / n_rows).collect()
    }
}
