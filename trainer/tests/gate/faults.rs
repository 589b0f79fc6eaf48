//! For every check a fault that it finds and no other does; what is not finite passes nothing.

use std::collections::BTreeSet;

use pleach_trainer::gate::{
    Bound, CheckName, Evidence, Footprint, GateSettings, ProbeAnswer, ProbeEvidence, RowEvidence,
    Verdict, judge,
};

use crate::Random;

/// Rows of `n_groups` groups, in which the candidate gains about 0.3 over the current generation, that 0.2 over the base,
/// and the best earlier one is about as good as the current.
fn rows(n_rows: usize, n_groups: usize, stream: u32) -> Vec<RowEvidence> {
    let mut random = Random::new(5, stream);
    let row = |index: usize| {
        let current = -2.0 + 0.5 * random.normal();
        RowEvidence {
            group: format!("user {}", index % n_groups),
            n_targets: 12,
            base: current - 0.2 + 0.05 * random.normal(),
            current,
            best: Some(current - 0.05 + 0.02 * random.normal()),
            candidate: current + 0.3 + 0.1 * random.normal(),
        }
    };
    (0..n_rows).map(row).collect()
}

/// Of a candidate that is good in every way.
fn good() -> Evidence {
    let probe = |index: usize| ProbeEvidence {
        candidate: ProbeAnswer { n_tokens: 20 + index % 5, is_refusal: false },
        current: ProbeAnswer { n_tokens: 22, is_refusal: index == 3 },
        candidate_logp: -10.0,
        base_logp: -14.0,
    };
    Evidence {
        held_out: rows(40, 10, 0),
        anchors: Some(rows(12, 12, 1)),
        best_generation: Some("a digest".to_owned()),
        probes: (0..20).map(probe).collect(),
        candidate: Footprint { latency_p95_s: 0.21, adapter_bytes: 3_000_000 },
        current: Footprint { latency_p95_s: 0.20, adapter_bytes: 2_000_000 },
    }
}

fn failed(verdict: &Verdict) -> BTreeSet<CheckName> {
    assert_eq!(verdict.passed, verdict.failed().next().is_none());
    let names: Vec<CheckName> = verdict.checks.iter().map(|check| check.name).collect();
    assert_eq!(names, CheckName::ALL, "every verdict has every check");
    verdict.failed().map(|check| check.name).collect()
}

/// What fails once the evidence and settings are changed so.
fn failed_after(change: impl FnOnce(&mut Evidence, &mut GateSettings)) -> BTreeSet<CheckName> {
    let (mut evidence, mut settings) = (good(), GateSettings::default());
    change(&mut evidence, &mut settings);
    settings.check().unwrap();
    failed(&judge(&evidence, &settings, 1))
}

type Change = fn(&mut Evidence, &mut GateSettings);

#[test]
fn a_good_candidate_passes() {
    let verdict = judge(&good(), &GateSettings::default(), 1);
    assert!(verdict.passed, "{}", verdict.summary());
    let gain = verdict.check(CheckName::GainOverCurrent).unwrap();
    assert!(gain.value.unwrap() > 0.2 && gain.value.unwrap() < 0.3, "{gain:?}");
    assert_eq!(gain.bound, Bound::Above(0.0));
    // The current generation is better than those, so the candidate has only not to lose to them.
    for name in [CheckName::GainOverBase, CheckName::GainOverBest] {
        assert_eq!(verdict.check(name).unwrap().bound, Bound::Above(-0.05));
    }
    assert_eq!(verdict.check(CheckName::Memory).unwrap().bound, Bound::None);
    assert!((verdict.alpha - 0.030_396).abs() < 1e-6);
}

#[test]
fn every_check_finds_its_fault_and_no_other_does() {
    let faults: [(CheckName, Change); 12] = [
        (CheckName::Enough, |evidence, _| evidence.held_out.truncate(15)),
        (CheckName::Enough, |_, settings| settings.groups_min = 11),
        (CheckName::GainOverCurrent, |evidence, _| {
            // Noise, and no gain.
            let mut random = Random::new(6, 0);
            for row in &mut evidence.held_out {
                row.candidate = row.current + 0.1 * random.normal();
            }
        }),
        (CheckName::GainOverCurrent, |_, settings| settings.margin = 0.4),
        (CheckName::GainOverBase, |evidence, _| {
            evidence.held_out.iter_mut().for_each(|row| row.base += 0.6);
        }),
        (CheckName::GainOverBest, |evidence, _| {
            evidence.held_out.iter_mut().for_each(|row| row.best = Some(row.candidate + 0.1));
        }),
        (CheckName::Anchors, |evidence, _| {
            for row in evidence.anchors.as_mut().unwrap() {
                row.candidate = row.current - 0.2;
            }
        }),
        (CheckName::Kl, |evidence, _| {
            evidence.probes.iter_mut().for_each(|probe| probe.base_logp = -30.0);
        }),
        (CheckName::Length, |evidence, _| {
            evidence.probes.iter_mut().for_each(|probe| probe.candidate.n_tokens *= 3);
        }),
        (CheckName::Refusals, |evidence, _| {
            evidence.probes[..4].iter_mut().for_each(|probe| probe.candidate.is_refusal = true);
        }),
        (CheckName::Latency, |evidence, _| evidence.candidate.latency_p95_s = 0.25),
        (CheckName::Memory, |_, settings| settings.bytes_max = Some(2_500_000)),
    ];
    for (expected, change) in faults {
        assert_eq!(failed_after(change), BTreeSet::from([expected]));
    }
    let found: BTreeSet<CheckName> = faults.iter().map(|fault| fault.0).collect();
    assert_eq!(found.len(), CheckName::ALL.len(), "a fault for every check");
}

#[test]
fn what_is_not_finite_fails_its_checks_and_no_others() {
    use CheckName::{Anchors, GainOverBase, GainOverBest, GainOverCurrent, Kl, Latency};
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let spoil = |change: &dyn Fn(&mut Evidence)| failed_after(|evidence, _| change(evidence));
        let row = |change: fn(&mut RowEvidence) -> &mut f64| {
            spoil(&move |evidence| *change(&mut evidence.held_out[7]) = value)
        };
        let all = BTreeSet::from([GainOverCurrent, GainOverBase, GainOverBest]);
        assert_eq!(row(|row| &mut row.candidate), all);
        assert_eq!(row(|row| &mut row.current), BTreeSet::from([GainOverCurrent]));
        assert_eq!(row(|row| &mut row.base), BTreeSet::from([GainOverBase]));
        let best = spoil(&|evidence| evidence.held_out[7].best = Some(value));
        assert_eq!(best, BTreeSet::from([GainOverBest]));
        let anchor = |change: fn(&mut RowEvidence) -> &mut f64| {
            spoil(&move |evidence| {
                *change(&mut evidence.anchors.as_mut().unwrap()[3]) = value;
            })
        };
        assert_eq!(anchor(|row| &mut row.candidate), BTreeSet::from([Anchors]));
        assert_eq!(anchor(|row| &mut row.current), BTreeSet::from([Anchors]));
        assert_eq!(anchor(|row| &mut row.base), BTreeSet::new(), "anchors are not held against it");
        let probe = |change: fn(&mut ProbeEvidence) -> &mut f64| {
            spoil(&move |evidence| *change(&mut evidence.probes[3]) = value)
        };
        assert_eq!(probe(|probe| &mut probe.candidate_logp), BTreeSet::from([Kl]));
        assert_eq!(probe(|probe| &mut probe.base_logp), BTreeSet::from([Kl]));
        for change in [
            (|evidence: &mut Evidence| &mut evidence.candidate) as fn(&mut Evidence) -> &mut _,
            |evidence| &mut evidence.current,
        ] {
            let found = spoil(&move |evidence| change(evidence).latency_p95_s = value);
            assert_eq!(found, BTreeSet::from([Latency]));
        }
    }
}

#[test]
fn what_is_missing_passes_nothing() {
    use CheckName::{
        Anchors, Enough, GainOverBase, GainOverBest, GainOverCurrent, Kl, Latency, Length, Refusals,
    };
    let missing_best = failed_after(|evidence, _| evidence.held_out[0].best = None);
    assert_eq!(missing_best, BTreeSet::from([GainOverBest]));
    let no_anchors = failed_after(|evidence, _| evidence.anchors = Some(Vec::new()));
    assert_eq!(no_anchors, BTreeSet::from([Anchors]));
    let no_probes = failed_after(|evidence, _| evidence.probes.clear());
    assert_eq!(no_probes, BTreeSet::from([Kl, Length, Refusals]));
    let no_times = failed_after(|evidence, _| evidence.current.latency_p95_s = 0.0);
    assert_eq!(no_times, BTreeSet::from([Latency]));
    let silent = failed_after(|evidence, _| {
        evidence.probes.iter_mut().for_each(|probe| probe.candidate.n_tokens = 0);
    });
    assert_eq!(silent, BTreeSet::from([Kl, Length]));
    let no_rows = failed_after(|evidence, _| evidence.held_out.clear());
    let of_rows = BTreeSet::from([Enough, GainOverCurrent, GainOverBase, GainOverBest]);
    assert_eq!(no_rows, of_rows);
    let one_group = failed_after(|evidence, _| {
        evidence.held_out.iter_mut().for_each(|row| "one".clone_into(&mut row.group));
    });
    assert_eq!(one_group, of_rows);
    // What the owner or the name does not have is no fault.
    let without = failed_after(|evidence, _| {
        evidence.anchors = None;
        evidence.best_generation = None;
        evidence.held_out.iter_mut().for_each(|row| row.best = None);
    });
    assert_eq!(without, BTreeSet::new());
}

#[test]
fn equals_are_refused_and_messages_say_why() {
    let mut evidence = good();
    for row in &mut evidence.held_out {
        row.candidate = row.current;
    }
    let verdict = judge(&evidence, &GateSettings::default(), 1);
    assert_eq!(failed(&verdict), BTreeSet::from([CheckName::GainOverCurrent]));
    assert_eq!(
        verdict.summary(),
        "refused: gain_over_current: mean gain over the current generation 0 nats over 40 rows of 10 groups; above 0 \
         with confidence 96.9604 %"
    );
    evidence.held_out[4].current = f64::NAN;
    let verdict = judge(&evidence, &GateSettings::default(), 1);
    let gain = verdict.check(CheckName::GainOverCurrent).unwrap();
    assert_eq!((gain.passed, gain.value), (false, None));
    assert_eq!(
        gain.message,
        "row 4 has no finite score under the candidate or the current generation; of 40 rows 1 are so"
    );
}

#[test]
fn later_looks_ask_for_more_and_the_order_of_rows_does_not_matter() {
    let settings = GateSettings::default();
    let bound = |look| {
        judge(&good(), &settings, look).check(CheckName::GainOverCurrent).unwrap().value.unwrap()
    };
    assert!(bound(1) > bound(2) && bound(2) > bound(20), "{} {}", bound(1), bound(20));
    assert_eq!(judge(&good(), &settings, 0), judge(&good(), &settings, 1));
    let mut reversed = good();
    reversed.held_out.reverse();
    reversed.anchors.as_mut().unwrap().reverse();
    assert_eq!(judge(&reversed, &settings, 3), judge(&good(), &settings, 3));
    // As it was kept and read again: to the last digit but one, as JSON numbers are read.
    let kept = serde_json::to_string(&good()).unwrap();
    let read = judge(&serde_json::from_str::<Evidence>(&kept).unwrap(), &settings, 3);
    for (found, expected) in read.checks.iter().zip(judge(&good(), &settings, 3).checks) {
        assert_eq!((found.passed, &found.message), (expected.passed, &expected.message));
        assert!((found.value.unwrap() - expected.value.unwrap()).abs() < 1e-12);
    }
}
