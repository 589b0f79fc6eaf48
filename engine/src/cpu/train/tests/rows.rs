//! Row-wise derivatives, the head's sums, and dropout masks.

use crate::{
    cpu::{
        tests::{Guarded, Random, assert_close, is_untouched, isas, random::case_seed, widen},
        train::{
            dropout::Masks,
            elementwise::{HeadNormBack, RmsNormBack, SwiGluBack},
            head::{FoldRow, LogitsBackRow},
        },
    },
    reference::backward,
    site::{Site, TargetModule},
    train::Dropout,
};

/// Share of the largest term by which a derivative may differ.
const TOLERANCE: f64 = 2e-6;

/// The same for all values: rounding is of the terms, which may cancel.
fn largest(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    vec![largest; values.len()]
}

#[test]
fn norms_backward() {
    let mut random = Random::new(case_seed(210));
    for isa in isas() {
        for n in [1, 15, 16, 64, 133, 576] {
            let (x, weight, dy) = (random.spiky(n + 2), random.units(n), random.units(n + 1));
            let before = random.units(n);
            let mut dx = Guarded::new(n + 4);
            dx.values()[..n].copy_from_slice(&before);
            isa.run(RmsNormBack { x: &x, weight: &weight, eps: 1e-5, dy: &dy, dx: dx.values() });
            let dx = dx.checked("norm");
            assert!(dx[n..].iter().copied().all(is_untouched));
            let eps = f64::from(1e-5f32);
            let mut expected =
                backward::rms_norm(&widen(&x[..n]), &widen(&weight), eps, &widen(&dy[..n]));
            expected.iter_mut().zip(widen(&before)).for_each(|(e, b)| *e += b);
            let magnitude = largest(&expected);
            assert_close(&format!("{isa} {n}"), &dx[..n], &expected, &magnitude, TOLERANCE);
        }
        let (x, weight, dy) = (random.spiky(3 * 32), random.units(32), random.units(3 * 32));
        let mut d = dy.clone();
        isa.run(HeadNormBack { x: &x, weight: &weight, eps: 1e-6, d: &mut d });
        for ((d, x), dy) in d.chunks_exact(32).zip(x.chunks_exact(32)).zip(dy.chunks_exact(32)) {
            let eps = f64::from(1e-6f32);
            let expected = backward::rms_norm(&widen(x), &widen(&weight), eps, &widen(dy));
            assert_close(&format!("{isa} head"), d, &expected, &largest(&expected), TOLERANCE);
        }
    }
}

#[test]
fn the_gate_backward() {
    let mut random = Random::new(case_seed(211));
    for isa in isas() {
        let scaled = |values: Vec<f32>, by: f32| -> Vec<f32> {
            values.into_iter().map(|value| value * by).collect()
        };
        let mut gate = scaled(random.units(160), 12.0);
        gate[..4].copy_from_slice(&[0.0, -100.0, 100.0, -30.0]);
        let (up, dy) = (random.units(160), random.units(160));
        let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
        isa.run(SwiGluBack { gate: &mut d_gate, up: &mut d_up, dy: &dy });
        for i in 0..gate.len() {
            let [g, u, d] = [gate[i], up[i], dy[i]].map(f64::from);
            let (expected_gate, expected_up) = backward::swiglu(g, u, d);
            let what = format!("{isa} gate {g} up {u}");
            let close = |found: f32, expected: f64, size: f64| {
                assert_close(&what, &[found], &[expected], &[size], TOLERANCE);
            };
            close(d_gate[i], expected_gate, (u * d).abs());
            close(d_up[i], expected_up, (g * d).abs());
        }
    }
}

#[test]
fn log_probabilities_chunk_by_chunk_and_their_gradients() {
    let mut random = Random::new(case_seed(212));
    for isa in isas() {
        for (vocab, chunk) in [(5, 16), (64, 64), (101, 32), (1000, 512)] {
            let logits: Vec<f32> =
                random.spiky(vocab).into_iter().map(|value| value * 0.4).collect();
            let target = random.below(vocab);
            let (mut top, mut sum) = (f32::NEG_INFINITY, 0.0);
            let padded = |chunk_logits: &[f32]| {
                // Padding that must not count.
                let mut values = chunk_logits.to_vec();
                values.resize(chunk, 1e30);
                values
            };
            for part in logits.chunks(chunk) {
                let logits = &padded(part);
                isa.run(FoldRow { logits, n: part.len(), largest: &mut top, sum: &mut sum });
            }
            let lse = top + sum.ln();
            let wide = widen(&logits);
            let exact = wide.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            assert!((f64::from(lse) - exact).abs() < 4e-6, "{isa} {vocab}: {lse} {exact}");

            let weight = -0.7;
            let expected: Vec<f64> = backward::log_probability(&wide, target)
                .into_iter()
                .map(|slope| slope * f64::from(weight))
                .collect();
            let mut found = Vec::new();
            for (index, part) in logits.chunks(chunk).enumerate() {
                let mut logits = padded(part);
                let first = index * chunk;
                let inside = (first..first + part.len()).contains(&target);
                let target = inside.then(|| target - first);
                let n = part.len();
                isa.run(LogitsBackRow { logits: &mut logits, n, lse, weight, target });
                let whole = n.next_multiple_of(16);
                assert!(logits[n..whole].iter().all(|value| value.abs() < f32::MIN_POSITIVE));
                found.extend_from_slice(&logits[..n]);
            }
            // `1 − p` of the target is a difference of numbers near 1.
            let mut magnitude: Vec<f64> = expected.iter().map(|v| v.abs().max(1e-3)).collect();
            magnitude[target] = 0.1;
            assert_close(&format!("{isa} {vocab}"), &found, &expected, &magnitude, 1e-5);
        }
    }
}

#[test]
fn dropout_masks_have_their_share_and_depend_on_every_coordinate() {
    let site = |layer, module| Site { layer, module };
    let dropout = |probability, seed| Masks::new(Dropout { probability, seed });
    assert!(dropout(0.0, 1).is_none());
    let masks = dropout(0.25, 1).unwrap();
    let row = |masks: &Masks, place, site, first| {
        let mut factors = vec![f32::NAN; 4096];
        masks.factors(place, site, first, &mut factors);
        factors
    };
    let place = (3, 4);
    let query = site(1, TargetModule::QProj);
    let expected = row(&masks, place, query, 0);
    let dropped = expected.iter().filter(|factor| **factor == 0.0).count();
    // 1024 expected, with a deviation of 28.
    assert!((900..1150).contains(&dropped), "{dropped} of 4096 dropped");
    let kept = 4.0 / 3.0;
    assert!(expected.iter().all(|f| *f == 0.0 || (f - kept).abs() < 1e-6));
    for other in [
        row(&dropout(0.25, 2).unwrap(), place, query, 0),
        row(&masks, (2, 4), query, 0),
        row(&masks, (3, 5), query, 0),
        row(&masks, place, site(0, TargetModule::QProj), 0),
        row(&masks, place, site(1, TargetModule::KProj), 0),
        row(&masks, place, query, 8),
    ] {
        assert_ne!(other, expected);
    }
    // A part of a row is a part of its mask.
    assert_eq!(row(&masks, place, query, 64)[..64], expected[64..128]);
}
