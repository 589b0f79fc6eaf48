//! How often the gate errs, by simulation: seeded, without a model.

use pleach_trainer::gate::{
    Evidence, Footprint, GateSettings, ProbeAnswer, ProbeEvidence, RowEvidence, alpha_of_look,
    judge, mean_of_groups,
};

use crate::Random;

const ALPHA: f64 = 0.05;
/// Simulated lives of an adapter name: so many that a rate of 4.5 %, which the six looks may spend, is told from 5 %.
const RUNS: u32 = 10_000;
/// Candidates that each of them sees.
const LOOKS: u32 = 6;

/// Paired differences of the rows of one look: group and value.
type Draw = fn(&mut Random) -> Vec<(u32, f64)>;

/// Groups of 1 to 20 rows: users are not equally busy.
const SIZES: [u32; 12] = [20, 12, 9, 6, 4, 3, 3, 2, 2, 1, 1, 1];

/// Rows of groups of these sizes, each with an effect of its own of this spread, around `gain`.
fn clustered(random: &mut Random, sizes: &[u32], gain: f64, spread: f64) -> Vec<(u32, f64)> {
    let mut rows = Vec::new();
    for (group, &size) in (0..).zip(sizes) {
        let effect = gain + spread * random.normal();
        rows.extend((0..size).map(|_| (group, effect + random.normal())));
    }
    rows
}

fn apart(n: u32, mut value: impl FnMut() -> f64) -> Vec<(u32, f64)> {
    (0..n).map(|group| (group, value())).collect()
}

/// Share of the runs in which any look finds a gain where there is none.
fn false_promotions(draw: Draw, seed: u32) -> f64 {
    let mut promoted = 0;
    for run in 0..RUNS {
        let mut random = Random::new(seed, run);
        let mut finds = |look| {
            let gain = mean_of_groups(draw(&mut random));
            // The same as a lower bound above 0, and needs no quantile.
            gain.p_value(0.0) < alpha_of_look(ALPHA, look)
        };
        promoted += u32::from((1..=LOOKS).any(&mut finds));
    }
    f64::from(promoted) / f64::from(RUNS)
}

#[test]
fn equals_are_promoted_no_more_often_than_alpha() {
    let cases: [(&str, Draw); 9] = [
        ("64 rows", |random| apart(64, || random.normal())),
        ("16 rows", |random| apart(16, || random.normal())),
        ("two groups", |random| clustered(random, &[20, 12], 0.0, 1.0)),
        ("five groups", |random| clustered(random, &[20, 12, 9, 6, 4], 0.0, 1.0)),
        ("rows that hang together", |random| clustered(random, &SIZES, 0.0, 1.5)),
        ("rows that hang together a little", |random| clustered(random, &SIZES, 0.0, 0.2)),
        ("heavy tails", |random| apart(64, || random.student(2))),
        ("tails without a mean", |random| apart(64, || random.student(1))),
        ("groups of unequal noise", |random| {
            let rows = (0..24).map(|group| (group, f64::from(group + 1) * random.normal()));
            rows.collect()
        }),
    ];
    for (seed, (case, draw)) in (0..).zip(cases) {
        let rate = false_promotions(draw, seed);
        println!("{case}: {:.2} % of {RUNS} runs of {LOOKS} looks", 100.0 * rate);
        assert!(rate <= ALPHA, "{case}: {rate}");
        // Were it never to promote, it would prove nothing.
        assert!(rate > 0.0, "{case}: {rate}");
    }
}

/// Rows as if they were independent, though they hang together: what counting groups is for.
#[test]
fn without_groups_rows_that_hang_together_are_mistaken_for_evidence() {
    let ungrouped: Draw = |random| {
        let rows = clustered(random, &SIZES, 0.0, 1.5);
        (0..).zip(rows).map(|(row, (_, value))| (row, value)).collect()
    };
    let rate = false_promotions(ungrouped, 4);
    println!("ungrouped: {:.2} %", 100.0 * rate);
    assert!(rate > 3.0 * ALPHA, "{rate}");
}

/// The limit of the bound: losses that are rare and large, of a mean that is zero. With Student's t alone these would be
/// 20 and 12 % (exponential), 38 and 25 % (log-normal).
#[test]
fn rare_large_losses_are_missed_more_often_than_alpha() {
    let cases: [(&str, Draw, f64); 4] = [
        ("exponential, 16 groups", |random| apart(16, || 1.0 + random.uniform().ln()), 0.10),
        ("exponential, 64 groups", |random| apart(64, || 1.0 + random.uniform().ln()), 0.07),
        ("log-normal, 16 groups", |random| apart(16, || log_normal(random)), 0.20),
        ("log-normal, 64 groups", |random| apart(64, || log_normal(random)), 0.13),
    ];
    for (seed, (case, draw, at_most)) in (30..).zip(cases) {
        let rate = false_promotions(draw, seed);
        println!("{case}: {:.2} %", 100.0 * rate);
        assert!(rate <= at_most, "{case}: {rate}");
    }
}

/// Of mean 0 and skewness −6.
fn log_normal(random: &mut Random) -> f64 {
    0.5_f64.exp() - random.normal().exp()
}

/// Evidence of a candidate that gains as `differences` say and is good in all else.
fn evidence(differences: &[(u32, f64)], anchors: &[(u32, f64)]) -> Evidence {
    let row = |&(group, difference): &(u32, f64)| RowEvidence {
        group: group.to_string(),
        n_targets: 8,
        base: -2.5,
        current: -2.0,
        best: None,
        candidate: -2.0 + difference,
    };
    let answer = ProbeAnswer { n_tokens: 30, is_refusal: false };
    let probe = ProbeEvidence {
        candidate: answer,
        current: answer,
        candidate_logp: -30.0,
        base_logp: -33.0,
    };
    let footprint = Footprint { latency_p95_s: 0.2, adapter_bytes: 1_000_000 };
    Evidence {
        held_out: differences.iter().map(row).collect(),
        anchors: Some(anchors.iter().map(row).collect()),
        best_generation: None,
        probes: vec![probe; 8],
        candidate: footprint,
        current: footprint,
    }
}

/// Share of candidates that the whole gate lets pass at a look.
fn passes(look: u32, seed: u32, n: u32, draw: impl Fn(&mut Random) -> Evidence) -> f64 {
    let settings = GateSettings::default();
    let passed =
        (0..n).filter(|run| judge(&draw(&mut Random::new(seed, *run)), &settings, look).passed);
    passed.count() as f64 / f64::from(n)
}

#[test]
fn the_whole_gate_promotes_equals_no_more_often_than_alpha() {
    let equal = |random: &mut Random| {
        let rows: Vec<_> =
            clustered(random, &SIZES, 0.0, 0.5).into_iter().map(|(g, d)| (g, 0.1 * d)).collect();
        let anchors = apart(64, || 0.1 * random.normal());
        evidence(&rows, &anchors)
    };
    let by_look: Vec<f64> = (1..=LOOKS).map(|look| passes(look, 50 + look, 2_000, equal)).collect();
    println!("promoted at looks 1 to {LOOKS}: {by_look:?}");
    assert!(by_look[0] > 0.0 && by_look.iter().sum::<f64>() <= ALPHA, "{by_look:?}");
}

#[test]
fn plausible_gains_pass_and_harm_does_not() {
    let n = 500;
    // Gains of half a standard deviation of a row, as one epoch over 64 examples brings.
    let gain = |random: &mut Random| {
        let rows = apart(64, || 0.05 + 0.1 * random.normal());
        evidence(&rows, &apart(32, || 0.02 + 0.05 * random.normal()))
    };
    let (first, fifth) = (passes(1, 60, n, gain), passes(5, 61, n, gain));
    // Twelve users, whose gains differ as much as rows do.
    let users = |random: &mut Random| {
        let rows: Vec<_> =
            clustered(random, &SIZES, 1.5, 1.0).into_iter().map(|(g, d)| (g, 0.1 * d)).collect();
        evidence(&rows, &apart(32, || 0.02 + 0.05 * random.normal()))
    };
    let users = passes(1, 62, n, users);
    // What gains on rows that are wrong and loses on trusted ones.
    let poison = |random: &mut Random| {
        let rows = apart(64, || 0.3 + 0.1 * random.normal());
        evidence(&rows, &apart(32, || -0.1 + 0.1 * random.normal()))
    };
    let poison = passes(1, 63, n, poison);
    println!("gains: {first} at look 1, {fifth} at look 5, {users} of 12 users; poison {poison}");
    assert!(first > 0.95 && fifth > 0.7 && users > 0.9, "{first} {fifth} {users}");
    assert!(poison < 1e-9, "{poison}");
}
