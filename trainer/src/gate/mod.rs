//! Whether a candidate may replace the generation that serves: a pure judgement over evidence that others gathered.
//!
//! ```text
//! scores of held-out rows and anchors, answers to probes, latency, bytes ── Evidence ──┐
//! GateSettings, look ───────────────────────────────────────────────────────── judge ──┴──> Verdict: checks, each with
//!                                                                                           value, bound and words
//! ```
//! **What a candidate has to show.** It passes if every check passes, so a candidate that is no better than the current
//! generation passes at most as often as [`CheckName::GainOverCurrent`] alone lets it: no check's share of alpha depends
//! on how many others there are.
//!
//! **Gains** are paired: of every row, the score under the candidate less that under another generation. Rows of one group
//! (a user, an episode) are not independent, so a group counts as one observation, the mean of its rows, and the lower
//! bound is Student's over groups, further away where some lose far more than others; see [`mean_of_groups`].
//!
//! **Looks.** Whoever looks often enough finds a gain in noise. Look `k` at candidates for one name gets
//! [`alpha_of_look`], and all looks together no more than alpha.
//!
//! **What is not finite passes nothing**: a score, length or time that is missing, NaN or infinite fails the checks that
//! read it, by name, and no other.

mod alpha;
mod evidence;
mod judge;
mod settings;
mod statistics;
mod student_t;
mod verdict;

pub use alpha::alpha_of_look;
pub use evidence::{Evidence, Footprint, ProbeAnswer, ProbeEvidence, RowEvidence};
pub use judge::judge;
pub use settings::GateSettings;
pub use statistics::{GroupMean, mean_of_groups};
pub use student_t::{upper_quantile, upper_tail};
pub use verdict::{Bound, CheckName, CheckResult, Verdict};
