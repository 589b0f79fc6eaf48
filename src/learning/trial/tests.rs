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
    let answered = RequestEnd { answers: 1, tokens: 8, between_tokens, ..RequestEnd::default() };
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
