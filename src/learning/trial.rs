//! A candidate on trial: who gets it, what came of that, and whether it may go on. Decides only; nothing here waits, reads
//! a clock or knows of adapters.
//!
//! ```text
//! (shadow) ──> stage 0 ──> stage 1 ──> … ──> done ── the name is moved ──> watched ──> settled
//!    └────────────┴────────────┴──── a guardrail is breached ────────────────┘└──> taken back
//! ```

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    more_often::{Counted, is_more_often, look_between},
    policy::{Guardrails, Rollout},
};

/// Answers of each side from which shares and means are compared.
const ANSWERS_MIN: u64 = 20;
/// Judgements of each side from which their shares are compared.
const JUDGEMENTS_MIN: u64 = 5;

/// Which side of a trial a request is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The generation that serves.
    Current,
    /// The one on trial.
    Candidate,
}

/// What is counted of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SideCounts {
    /// Requests that were answered or failed.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Answers; a request may have several.
    pub answers: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Requests of which there is a time between tokens: an answer has two.
    pub timed: u64,
    /// Sum over these of the mean time between two tokens of an answer, seconds.
    pub between_tokens_seconds: f64,
    /// Answers that refuse.
    pub refusals: u64,
    /// Judgements of answers by people.
    pub judged: u64,
    /// Those that were negative.
    pub negative: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestEnd {
    /// The server failed it.
    pub failed: bool,
    /// Answers.
    pub answers: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Mean time between two tokens of an answer, seconds; `None` if no answer has two.
    pub between_tokens: Option<f64>,
    /// Answers that refuse.
    pub refusals: u64,
}

/// Why a candidate is taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breach {
    /// Name of the field of the policy.
    pub guardrail: String,
    /// What was measured.
    pub value: f64,
    /// What it may be.
    pub bound: f64,
    /// In words.
    pub message: String,
}

/// Where a trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialPhase {
    /// Requests are run on the candidate too, for nobody to see.
    Shadow,
    /// In a stage of the canary, from 0.
    Stage(usize),
    /// All stages are over.
    Done,
    /// The candidate serves all, and is watched.
    Watched,
    /// It has been watched long enough.
    Settled,
}

/// A trial, as it is kept with its round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Random, so that every trial is on other users.
    pub salt: String,
    /// How it goes.
    pub rollout: Rollout,
    /// Where it is.
    pub phase: TrialPhase,
    /// Requests of the candidate in this phase.
    pub in_phase: u64,
    /// Those that failed.
    pub errors_in_phase: u64,
    /// Counts of the current generation, since the trial began.
    pub current: SideCounts,
    /// Counts of the candidate.
    pub candidate: SideCounts,
    /// Of shadows.
    #[serde(default)]
    pub shadows: ShadowCounts,
    /// Why it was taken back.
    #[serde(default)]
    pub breach: Option<Breach>,
}

/// What is counted of shadows, beside what became of those that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShadowCounts {
    /// Requests that could have had one.
    pub requests: u64,
    /// Shadows for which there was no room.
    pub dropped: u64,
}

impl Trial {
    /// A trial that begins. `judged` and `negative` are what was said of earlier answers: what is usual.
    pub fn new(salt: String, rollout: Rollout, judged: u64, negative: u64) -> Self {
        let phase =
            if rollout.shadow.is_some() { TrialPhase::Shadow } else { Self::first_stage(&rollout) };
        Self {
            salt,
            rollout,
            phase,
            in_phase: 0,
            errors_in_phase: 0,
            current: SideCounts { judged, negative, ..SideCounts::default() },
            candidate: SideCounts::default(),
            shadows: ShadowCounts::default(),
            breach: None,
        }
    }

    fn first_stage(rollout: &Rollout) -> TrialPhase {
        if rollout.canary.is_empty() { TrialPhase::Done } else { TrialPhase::Stage(0) }
    }

    /// Whether shadows are wanted now.
    pub fn wants_shadows(&self) -> bool {
        self.phase == TrialPhase::Shadow && self.breach.is_none()
    }

    /// Whether a request that the current generation answers is to have a shadow: evenly, as many as the share says.
    pub fn has_shadow(&mut self) -> bool {
        let Some(stage) = self.rollout.shadow.filter(|_| self.wants_shadows()) else {
            return false;
        };
        let before = (self.shadows.requests as f64 * stage.share).floor();
        self.shadows.requests += 1;
        (self.shadows.requests as f64 * stage.share).floor() > before
    }

    /// There was no room for a shadow.
    pub fn shadow_dropped(&mut self) {
        self.shadows.dropped += 1;
    }

    /// Takes in what became of a shadow. One that comes too late says nothing any more.
    pub fn shadow_ended(&mut self, end: RequestEnd) {
        if self.wants_shadows() {
            self.ended(Side::Candidate, end);
        }
    }

    /// Which side gets a request of this unit: always the same one while the share stays, and once the candidate for all
    /// larger shares.
    pub fn side(&self, unit: &str) -> Side {
        let share = match self.phase {
            _ if self.breach.is_some() => 0.0,
            TrialPhase::Shadow => 0.0,
            TrialPhase::Stage(index) => self.share(index),
            TrialPhase::Done => self.share(self.rollout.canary.len().saturating_sub(1)),
            TrialPhase::Watched | TrialPhase::Settled => 1.0,
        };
        if place(&self.salt, unit) < share { Side::Candidate } else { Side::Current }
    }

    fn share(&self, stage: usize) -> f64 {
        self.rollout.canary.get(stage).map_or(0.0, |stage| stage.share)
    }

    /// The candidate serves all from now on.
    pub fn watch(&mut self) {
        let is_over = self.rollout.watch_requests == 0;
        self.enter(if is_over { TrialPhase::Settled } else { TrialPhase::Watched });
    }

    fn enter(&mut self, phase: TrialPhase) {
        self.phase = phase;
        self.in_phase = 0;
        self.errors_in_phase = 0;
    }

    /// Takes in what became of a request. What follows is in `phase` and `breach`.
    pub fn ended(&mut self, side: Side, end: RequestEnd) {
        let before = self.candidate.answers;
        let counts = match side {
            Side::Current => &mut self.current,
            Side::Candidate => &mut self.candidate,
        };
        counts.requests += 1;
        counts.errors += u64::from(end.failed);
        if !end.failed {
            counts.answers += end.answers;
            counts.tokens += end.tokens;
            counts.timed += u64::from(end.between_tokens.is_some());
            counts.between_tokens_seconds += end.between_tokens.unwrap_or_default();
            counts.refusals += end.refusals;
        }
        if side == Side::Candidate && !matches!(self.phase, TrialPhase::Done | TrialPhase::Settled)
        {
            self.in_phase += 1;
            self.errors_in_phase += u64::from(end.failed);
        }
        let look = look_between(before, self.candidate.answers, ANSWERS_MIN);
        self.look(|trial| trial.shifts(look));
    }

    /// Takes in what somebody said of an answer.
    pub fn judged(&mut self, side: Side, is_negative: bool) {
        let before = self.candidate.judged;
        let counts = match side {
            Side::Current => &mut self.current,
            Side::Candidate => &mut self.candidate,
        };
        counts.judged += 1;
        counts.negative += u64::from(is_negative);
        let look = look_between(before, self.candidate.judged, JUDGEMENTS_MIN);
        self.look(|trial| trial.disliked(look));
    }

    fn look(&mut self, others: impl FnOnce(&Self) -> Option<Breach>) {
        if self.breach.is_some() || self.phase == TrialPhase::Settled {
            return;
        }
        let n_requests = match self.phase {
            TrialPhase::Stage(index) => {
                self.rollout.canary.get(index).map_or(0, |stage| stage.requests)
            }
            TrialPhase::Shadow => self.rollout.shadow.map_or(0, |stage| stage.requests),
            TrialPhase::Watched => self.rollout.watch_requests,
            TrialPhase::Done | TrialPhase::Settled => u64::MAX,
        };
        self.breach = self.failures(n_requests).or_else(|| others(self));
        if self.breach.is_some() || self.in_phase < n_requests {
            return;
        }
        match self.phase {
            TrialPhase::Stage(index) if index + 1 < self.rollout.canary.len() => {
                self.enter(TrialPhase::Stage(index + 1));
            }
            TrialPhase::Stage(_) => self.enter(TrialPhase::Done),
            TrialPhase::Shadow => self.enter(Self::first_stage(&self.rollout)),
            TrialPhase::Watched => self.enter(TrialPhase::Settled),
            TrialPhase::Done | TrialPhase::Settled => {}
        }
    }

    /// More failed requests than the whole phase may have: known as soon as the first one too many has failed.
    fn failures(&self, n_requests: u64) -> Option<Breach> {
        let bound = self.rollout.guardrails.error_share_max;
        if n_requests == u64::MAX || self.errors_in_phase as f64 <= bound * n_requests as f64 {
            return None;
        }
        let message = format!("{} of {n_requests} requests have failed", self.errors_in_phase);
        let value = self.errors_in_phase as f64 / n_requests as f64;
        Some(Breach { guardrail: "error_share_max".to_owned(), value, bound, message })
    }

    /// Answers that are less liked than what is usual: by more than the bound, and by more than chance.
    fn disliked(&self, look: Option<u32>) -> Option<Breach> {
        let of = |side: &SideCounts| Counted { part: side.negative, whole: side.judged };
        let (current, candidate) = (of(&self.current), of(&self.candidate));
        if current.whole < JUDGEMENTS_MIN || candidate.whole < JUDGEMENTS_MIN {
            return None;
        }
        let bound = self.rollout.guardrails.negative_share_more_max;
        let more = candidate.share() - current.share();
        if more <= bound || !is_more_often(candidate, current, look?) {
            return None;
        }
        let what = "the share of negative feedback above the usual";
        Some(Breach::new("negative_share_more_max", what, more, bound))
    }

    /// Answers that are slower, longer, shorter, or refuse more often than the current generation's.
    fn shifts(&self, look: Option<u32>) -> Option<Breach> {
        let Guardrails {
            latency_ratio_max,
            refusals_more_max,
            length_ratio: [shortest, longest],
            negative_share_more_max: _,
            error_share_max: _,
        } = self.rollout.guardrails;
        let (current, candidate) = (&self.current, &self.candidate);
        if current.answers < ANSWERS_MIN || candidate.answers < ANSWERS_MIN {
            return None;
        }
        let refusing = |side: &SideCounts| Counted { part: side.refusals, whole: side.answers };
        let more = refusing(candidate).share() - refusing(current).share();
        if more > refusals_more_max
            && look.is_some_and(|look| is_more_often(refusing(candidate), refusing(current), look))
        {
            let what = "the share of refusals above the current generation's";
            return Some(Breach::new("refusals_more_max", what, more, refusals_more_max));
        }
        let length = |counts: &SideCounts| share(counts.tokens, counts.answers).max(1.0);
        let ratio = length(candidate) / length(current);
        if ratio < shortest || ratio > longest {
            let bound = if ratio < shortest { shortest } else { longest };
            let what = "the length of answers in terms of the current generation's";
            return Some(Breach::new("length_ratio", what, ratio, bound));
        }
        if self.phase == TrialPhase::Watched {
            // The current generation serves nobody any more: its times are those of another hour.
            return None;
        }
        if current.timed < ANSWERS_MIN || candidate.timed < ANSWERS_MIN {
            return None;
        }
        let time = |counts: &SideCounts| counts.between_tokens_seconds / counts.timed as f64;
        let ratio = time(candidate) / time(current);
        // Of no time at all there is no ratio.
        if ratio.is_finite() && ratio > latency_ratio_max {
            let what = "the time between tokens in terms of the current generation's";
            return Some(Breach::new("latency_ratio_max", what, ratio, latency_ratio_max));
        }
        None
    }
}

impl Breach {
    fn new(guardrail: &str, what: &str, value: f64, bound: f64) -> Self {
        let message = format!("{what} is {value:.3}, the bound {bound:.3}");
        Self { guardrail: guardrail.to_owned(), value, bound, message }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Where a unit stands between 0 and 1.
fn place(salt: &str, unit: &str) -> f64 {
    let hash = Sha256::new().chain_update(salt).chain_update([0]).chain_update(unit).finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    // 53 bits, so that it is below 1.
    (u64::from_be_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
