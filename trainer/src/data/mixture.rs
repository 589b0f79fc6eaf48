//! Which rows a run learns from: no user more than a share, trusted anchors always, old rows replayed.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::counter_rng::CounterRng;

/// Streams of the seed.
const STREAM_REPLAY: u64 = 0x7265_706c_6179;
const STREAM_MIX: u64 = 0x6d69_7800;
/// An anchor is seen at most so often in one pass, however few there are.
const ANCHOR_REPEATS_MAX: usize = 32;

/// Why rows cannot be mixed as asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MixtureError {
    /// With so few users, one of them has a larger share whatever is left out.
    #[error(
        "no user may have more than {share_max} of the rows, but there are only {n_users} users and {n_trusted} trusted rows"
    )]
    TooFewUsers {
        /// The cap.
        share_max: f64,
        /// Users; all rows without one count as one user's.
        n_users: usize,
        /// Trusted rows.
        n_trusted: usize,
    },
    /// Rows are to be replayed, but there are none.
    #[error("a replay ratio of {ratio} needs rows to replay")]
    NothingToReplay {
        /// Replayed rows for each new one.
        ratio: f64,
    },
}

/// What a cap needs to know of a row.
#[derive(Clone, Copy, Debug)]
pub struct CapRow<'a> {
    /// Whose it is; rows without a user are all taken for one user's, as they may be.
    pub user: Option<&'a str>,
    /// SHA-256 of the row.
    pub digest: [u8; 32],
    /// An anchor, which always stays.
    pub trusted: bool,
}

/// What a cap left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capped {
    /// Indices of the rows that stay, ascending.
    pub kept: Vec<u32>,
    /// Indices of those left out, ascending.
    pub left_out: Vec<u32>,
    /// Rows that a user may have.
    pub rows_per_user_max: usize,
}

/// Keeps as many rows as possible so that no user has more than `share_max` of what is kept. Which of a user's rows
/// stay is decided by their SHA-256 and the seed.
///
/// # Errors
/// [`MixtureError::TooFewUsers`].
///
/// # Panics
/// If `share_max` is not above 0.
pub fn cap_users(rows: &[CapRow<'_>], share_max: f64, seed: u64) -> Result<Capped, MixtureError> {
    assert!(share_max > 0.0, "share_max must be above 0");
    let mut of_user: HashMap<Option<&str>, Vec<u32>> = HashMap::new();
    let mut kept = Vec::new();
    for (index, row) in (0_u32..).zip(rows) {
        if row.trusted {
            kept.push(index);
        } else {
            of_user.entry(row.user).or_default().push(index);
        }
    }
    let n_trusted = kept.len();
    let most = of_user.values().map(Vec::len).max().unwrap_or(0);
    // The share of the largest user falls as the cap does, so the largest cap that holds is found by halving.
    let holds = |cap: usize| {
        let n_kept = n_trusted + of_user.values().map(|rows| rows.len().min(cap)).sum::<usize>();
        cap as f64 <= share_max * n_kept as f64
    };
    let (mut cap, mut too_many) = (0, most + 1);
    while too_many - cap > 1 {
        let middle = usize::midpoint(cap, too_many);
        *(if holds(middle) { &mut cap } else { &mut too_many }) = middle;
    }
    if cap == 0 && most > 0 {
        return Err(MixtureError::TooFewUsers { share_max, n_users: of_user.len(), n_trusted });
    }
    let mut left_out = Vec::new();
    for mut of_one in of_user.into_values() {
        of_one.sort_by_cached_key(|&index| {
            let hash = Sha256::new_with_prefix(rows[index as usize].digest);
            <[u8; 32]>::from(hash.chain_update(seed.to_le_bytes()).finalize())
        });
        left_out.extend(of_one.drain(cap.min(of_one.len())..));
        kept.extend(of_one);
    }
    kept.sort_unstable();
    left_out.sort_unstable();
    Ok(Capped { kept, left_out, rows_per_user_max: cap })
}

/// Chooses rows to replay: `ratio` of them for each of `n_new` rows, rounded, out of `n_pool`. None comes twice before
/// all have come once.
///
/// # Errors
/// [`MixtureError::NothingToReplay`].
///
/// # Panics
/// If `ratio` is negative or not finite.
pub fn replay(n_new: u32, n_pool: u32, ratio: f64, seed: u64) -> Result<Vec<u32>, MixtureError> {
    assert!(ratio >= 0.0 && ratio.is_finite(), "ratio must be finite and not negative");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; saturates"
    )]
    let n_wanted = (f64::from(n_new) * ratio).round() as usize;
    if n_wanted > 0 && n_pool == 0 {
        return Err(MixtureError::NothingToReplay { ratio });
    }
    let rounds =
        (0_u64..).map(|round| CounterRng::new(seed, STREAM_REPLAY + round).permutation(n_pool));
    Ok(rounds.flatten().take(n_wanted).collect())
}

/// Where a row of a mixture comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What there is to learn.
    New,
    /// Trusted rows.
    Anchor,
    /// What was learned before and should not be forgotten.
    Replay,
}

/// A row of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MixedRow {
    /// Which list it is from.
    pub source: Source,
    /// Its index there.
    pub index: u32,
}

/// One pass over new rows with anchors and replayed rows between, in a random order. Anchors are repeated (up to 32
/// times) until they are at least `anchor_share` of it; `replayed` is a choice of [`replay`].
///
/// # Panics
/// If `anchor_share` is not in `0..1`.
pub fn mix(
    n_new: u32,
    n_anchors: u32,
    replayed: &[u32],
    anchor_share: f64,
    seed: u64,
) -> Vec<MixedRow> {
    assert!((0.0..1.0).contains(&anchor_share), "anchor_share must be from 0 to below 1");
    let others = f64::from(n_new) + replayed.len() as f64;
    let wanted = others * anchor_share / (1.0 - anchor_share);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; saturates"
    )]
    let repeats = (wanted / f64::from(n_anchors.max(1))).ceil() as usize;
    let row = |source| move |index| MixedRow { source, index };
    let mut rows: Vec<MixedRow> = (0..n_new).map(row(Source::New)).collect();
    for _ in 0..repeats.clamp(1, ANCHOR_REPEATS_MAX) {
        rows.extend((0..n_anchors).map(row(Source::Anchor)));
    }
    rows.extend(replayed.iter().copied().map(row(Source::Replay)));
    let n_rows = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    let order = CounterRng::new(seed, STREAM_MIX).permutation(n_rows);
    order.into_iter().map(|index| rows[index as usize]).collect()
}
