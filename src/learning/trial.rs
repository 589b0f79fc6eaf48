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
mod tests {
    use super::*;
    use crate::learning::policy::Stage;

    fn in_shadow(share: f64, requests: u64) -> Trial {
        let shadow = Some(Stage { share, requests });
        Trial::new("salt".to_owned(), Rollout { shadow, ..rollout(&[(1.0, 5)], 0) }, 0, 0)
    }

    #[test]
    fn shadows_are_even_and_end_before_the_canary() {
        let mut trial = in_shadow(0.25, 10);
        let between_tokens = Some(0.125);
        let answered =
            RequestEnd { answers: 1, tokens: 8, between_tokens, ..RequestEnd::default() };
        let mut n = 0;
        for request in 1..=39 {
            assert_eq!(trial.side("anybody"), Side::Current);
            let has_shadow = trial.has_shadow();
            assert_eq!(has_shadow, request % 4 == 0, "{request}");
            trial.ended(Side::Current, answered);
            if has_shadow {
                trial.shadow_ended(answered);
                n += 1;
            }
        }
        assert_eq!((n, trial.phase, trial.in_phase), (9, TrialPhase::Shadow, 9));
        assert!(trial.has_shadow());
        trial.shadow_ended(answered);
        assert_eq!((trial.phase, trial.in_phase), (TrialPhase::Stage(0), 0));
        // What comes late is of no stage, and the canary has none.
        trial.shadow_ended(answered);
        assert_eq!((trial.in_phase, trial.candidate.requests), (0, 10));
        assert!(!trial.has_shadow() && trial.side("anybody") == Side::Candidate);
    }

    #[test]
    fn guardrails_hold_for_shadows() {
        let between_tokens = Some(0.1);
        let answered =
            |tokens| RequestEnd { answers: 1, tokens, between_tokens, ..RequestEnd::default() };
        let mut failing = in_shadow(1.0, 40);
        failing.shadow_ended(RequestEnd { failed: true, ..RequestEnd::default() });
        assert_eq!(failing.breach.unwrap().guardrail, "error_share_max");
        for (end, guardrail) in [
            (answered(100), "length_ratio"),
            (RequestEnd { refusals: 1, ..answered(10) }, "refusals_more_max"),
            (RequestEnd { between_tokens: Some(0.9), ..answered(10) }, "latency_ratio_max"),
        ] {
            let mut trial = in_shadow(1.0, 1000);
            for _ in 0..ANSWERS_MIN {
                assert_eq!(trial.breach, None);
                trial.ended(Side::Current, answered(10));
                trial.shadow_ended(end);
            }
            assert_eq!(trial.breach.as_ref().unwrap().guardrail, guardrail);
            assert!(!trial.wants_shadows() && !trial.has_shadow());
        }
    }

    fn rollout(stages: &[(f64, u64)], watch_requests: u64) -> Rollout {
        let canary = stages.iter().map(|&(share, requests)| Stage { share, requests }).collect();
        Rollout { canary, watch_requests, ..Rollout::default() }
    }

    fn trial(stages: &[(f64, u64)]) -> Trial {
        Trial::new("salt".to_owned(), rollout(stages, 3), 0, 0)
    }

    fn good() -> RequestEnd {
        let between_tokens = Some(0.1);
        RequestEnd { answers: 1, tokens: 10, between_tokens, ..RequestEnd::default() }
    }

    fn failed() -> RequestEnd {
        RequestEnd { failed: true, ..RequestEnd::default() }
    }

    #[test]
    fn shares_are_kept_and_sticky_and_only_grow() {
        let mut trial = trial(&[(0.05, 1), (0.5, 1)]);
        let units: Vec<String> = (0..20_000).map(|unit| format!("user {unit}")).collect();
        let of_stage = |trial: &Trial| -> Vec<bool> {
            units.iter().map(|unit| trial.side(unit) == Side::Candidate).collect()
        };
        let few = of_stage(&trial);
        let n_few = few.iter().filter(|is| **is).count();
        // Six standard deviations.
        assert!(n_few.abs_diff(1000) < 185, "{n_few}");
        assert_eq!(few, of_stage(&trial), "the same again");
        trial.ended(Side::Candidate, good());
        assert_eq!(trial.phase, TrialPhase::Stage(1));
        let half = of_stage(&trial);
        assert!(half.iter().filter(|is| **is).count().abs_diff(10_000) < 425);
        assert!(few.iter().zip(&half).all(|(few, half)| *half || !few), "nobody is sent back");
        let other = Trial { salt: "other".to_owned(), ..trial.clone() };
        assert_ne!(of_stage(&other), half, "another trial is on others");
        trial.watch();
        assert!(of_stage(&trial).iter().all(|is| *is));
    }

    #[test]
    fn phases_follow_the_candidates_requests_alone() {
        let mut trial = trial(&[(0.05, 2), (0.5, 1)]);
        for _ in 0..100 {
            trial.ended(Side::Current, good());
        }
        assert_eq!((trial.phase, trial.in_phase), (TrialPhase::Stage(0), 0));
        trial.ended(Side::Candidate, good());
        assert_eq!((trial.phase, trial.in_phase), (TrialPhase::Stage(0), 1));
        trial.ended(Side::Candidate, good());
        assert_eq!((trial.phase, trial.in_phase), (TrialPhase::Stage(1), 0));
        trial.ended(Side::Candidate, good());
        assert_eq!(trial.phase, TrialPhase::Done);
        trial.ended(Side::Candidate, good());
        assert_eq!(trial.phase, TrialPhase::Done, "until the name is moved");
        trial.watch();
        for phase in [TrialPhase::Watched, TrialPhase::Watched, TrialPhase::Settled] {
            trial.ended(Side::Candidate, good());
            assert_eq!(trial.phase, phase);
        }
        assert_eq!(trial.breach, None);
    }

    #[test]
    fn the_first_failure_too_many_takes_it_back() {
        // Two of a hundred may fail.
        let mut trial = trial(&[(1.0, 100)]);
        for end in [failed(), good(), failed(), good()] {
            trial.ended(Side::Candidate, end);
            assert_eq!(trial.breach, None);
            assert_eq!(trial.side("anybody"), Side::Candidate);
        }
        // Those of the current generation are not its fault.
        trial.ended(Side::Current, failed());
        assert_eq!(trial.breach, None);
        trial.ended(Side::Candidate, failed());
        assert_eq!(trial.breach.as_ref().unwrap().guardrail, "error_share_max");
        assert_eq!(trial.side("anybody"), Side::Current, "from the next request on");
        let breach = trial.breach.clone();
        for _ in 0..200 {
            trial.ended(Side::Candidate, good());
        }
        assert_eq!((trial.breach, trial.phase), (breach, TrialPhase::Stage(0)), "for good");
    }

    #[test]
    fn every_shift_has_its_guardrail() {
        let cases: [(&str, RequestEnd); 4] = [
            ("latency_ratio_max", RequestEnd { between_tokens: Some(0.16), ..good() }),
            ("length_ratio", RequestEnd { tokens: 26, ..good() }),
            ("length_ratio", RequestEnd { tokens: 3, ..good() }),
            ("refusals_more_max", RequestEnd { refusals: 1, ..good() }),
        ];
        for (guardrail, end) in cases {
            let mut trial = trial(&[(1.0, 1000)]);
            for n in 1..=ANSWERS_MIN {
                trial.ended(Side::Current, good());
                trial.ended(Side::Candidate, end);
                assert_eq!(trial.breach.is_some(), n == ANSWERS_MIN, "{guardrail} after {n}");
            }
            assert_eq!(trial.breach.unwrap().guardrail, guardrail);
        }
        let mut same = trial(&[(1.0, 1000)]);
        for _ in 0..100 {
            same.ended(Side::Current, good());
            same.ended(Side::Candidate, good());
        }
        assert_eq!(same.breach, None);
    }

    #[test]
    fn negative_feedback_is_compared_with_what_is_usual() {
        // A fifth is usual.
        let mut trial = Trial::new("salt".to_owned(), rollout(&[(1.0, 1000)], 3), 100, 20);
        for is_negative in [false, false, false, true] {
            trial.judged(Side::Candidate, is_negative);
            assert_eq!(trial.breach, None, "too few to tell");
        }
        trial.judged(Side::Candidate, false);
        assert_eq!(trial.breach, None, "a fifth");
        for n in 6..=8 {
            assert_eq!(trial.breach, None, "no look before the eighth: {n}");
            trial.judged(Side::Candidate, true);
        }
        assert_eq!(trial.breach, None, "half of eight may be chance");
        for n in 9..=12 {
            assert_eq!(trial.breach, None, "{n}");
            trial.judged(Side::Candidate, true);
        }
        assert_eq!(trial.breach.as_ref().unwrap().guardrail, "negative_share_more_max");
        // Watched, it is compared with the same.
        let mut trial = Trial::new("salt".to_owned(), rollout(&[], 10), 100, 20);
        assert_eq!((trial.phase, trial.side("a")), (TrialPhase::Done, Side::Current));
        trial.watch();
        (0..5).for_each(|_| trial.judged(Side::Candidate, true));
        assert!(trial.breach.is_some());
    }

    /// After promotion nobody has the generation before any more: a busy hour is nobody's fault.
    #[test]
    fn times_are_not_compared_with_those_of_another_hour() {
        let mut trial = trial(&[(1.0, 200)]);
        for _ in 0..200 {
            trial.ended(Side::Current, good());
            trial.ended(Side::Candidate, good());
        }
        trial.rollout.watch_requests = 1000;
        trial.watch();
        for _ in 0..100 {
            let slow = RequestEnd { between_tokens: Some(0.9), ..good() };
            trial.ended(Side::Candidate, slow);
        }
        assert_eq!((trial.breach.clone(), trial.phase), (None, TrialPhase::Watched));
        for _ in 0..300 {
            trial.ended(Side::Candidate, RequestEnd { refusals: 1, ..good() });
        }
        assert_eq!(trial.breach.unwrap().guardrail, "refusals_more_max");
    }

    /// An answer of one token has no time between tokens.
    #[test]
    fn times_are_compared_of_what_has_some() {
        let mut trial = trial(&[(1.0, 1000)]);
        let short = RequestEnd { tokens: 1, between_tokens: None, ..good() };
        let slow = RequestEnd { tokens: 1, between_tokens: Some(9.0), ..good() };
        for _ in 0..ANSWERS_MIN {
            trial.ended(Side::Current, RequestEnd { tokens: 1, ..good() });
            trial.ended(Side::Candidate, short);
        }
        for n in 1..=ANSWERS_MIN {
            assert_eq!((trial.breach.as_ref(), trial.candidate.timed), (None, n - 1));
            trial.ended(Side::Candidate, slow);
        }
        assert_eq!(trial.breach.unwrap().guardrail, "latency_ratio_max");
    }

    #[test]
    fn it_goes_on_from_what_was_kept() {
        let mut trial = trial(&[(0.5, 10), (1.0, 10)]);
        for _ in 0..13 {
            trial.ended(Side::Candidate, good());
            trial.ended(Side::Current, good());
        }
        let kept = serde_json::to_string(&trial).unwrap();
        assert_eq!(serde_json::from_str::<Trial>(&kept).unwrap(), trial);
    }
}
