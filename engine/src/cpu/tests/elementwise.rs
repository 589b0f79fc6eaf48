//! Norms, rotary embedding, the gate, and the exponential.
#![expect(unsafe_code, reason = "a test kernel over the vectors")]
#![expect(
    clippy::inline_always,
    clippy::multiple_unsafe_ops_per_block,
    reason = "as for every kernel: vectors stay in registers of the caller's features"
)]

use crate::{
    cpu::{
        elementwise::{HeadNorm, RmsNorm, Rope, SwiGlu},
        simd::{Kernel, LANES, Simd},
    },
    reference::{norm::rms_norm, rope, swiglu::swiglu},
    rope::RopeTable,
    spec::{Architecture, ModelSpec, RopeScaling},
};

use super::{Guarded, Random, assert_close, bits, isas, random::case_seed, widen};

/// Relative error of a norm: a sum, a root, a division and two products in f32.
const NORM_TOLERANCE: f64 = 1e-6;
/// Relative error of the gate: an exponential, a division and a product in f32.
const SWIGLU_TOLERANCE: f64 = 1e-6;
/// Relative error of the exponential, about 2 ulp.
const EXP_TOLERANCE: f64 = 2.5e-7;
/// Error of a rotation as a share of the pair's magnitude.
const ROPE_TOLERANCE: f64 = 3e-7;

#[test]
fn rms_norm_equals_the_reference() {
    let mut random = Random::new(case_seed(30));
    for isa in isas() {
        for n in [1, 15, 16, 17, 31, 64, 133, 576] {
            for scale in [1.0, 1e-15, 1e15] {
                let x: Vec<f32> = random.spiky(n + 3).iter().map(|v| v * scale).collect();
                let weight = random.units(n);
                let mut out = Guarded::new(n + 5);
                isa.run(RmsNorm { x: &x, weight: &weight, eps: 1e-5, out: out.values() });
                let out = out.checked("rms norm");
                assert!(
                    out[n..].iter().copied().all(super::is_untouched),
                    "{isa} {n}: wrote beyond its width"
                );
                let expected = rms_norm(&widen(&x[..n]), &widen(&weight), f64::from(1e-5f32));
                let magnitude: Vec<f64> = expected.iter().map(|v| v.abs()).collect();
                assert_close(
                    &format!("{isa} {n} {scale}"),
                    &out[..n],
                    &expected,
                    &magnitude,
                    NORM_TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn head_norms_are_norms_of_each_head() {
    let mut random = Random::new(case_seed(31));
    for isa in isas() {
        for dim in [16, 64, 128] {
            let weight = random.units(dim);
            let x = random.spiky(3 * dim);
            let mut found = Guarded::new(3 * dim);
            found.values().copy_from_slice(&x);
            isa.run(HeadNorm { x: found.values(), weight: &weight, eps: 1e-6 });
            let found = found.checked("head norm");
            for (found, x) in found.chunks_exact(dim).zip(x.chunks_exact(dim)) {
                let expected = rms_norm(&widen(x), &widen(&weight), f64::from(1e-6f32));
                let magnitude: Vec<f64> = expected.iter().map(|v| v.abs()).collect();
                assert_close(&format!("{isa} {dim}"), found, &expected, &magnitude, NORM_TOLERANCE);
            }
        }
    }
}

#[test]
fn the_gate_takes_extreme_inputs() {
    let mut random = Random::new(case_seed(32));
    let mut gate = vec![
        0.0, -0.0, 1e-40, -1e-40, 20.0, -20.0, 80.0, -80.0, 1e4, -1e4, 3e38, -1e20, 1e-20, -86.9,
        87.5, 88.5,
    ];
    let mut up = vec![1.0; gate.len()];
    for _ in 0..16 {
        gate.extend(random.units(LANES).iter().map(|v| v * 90.0));
        up.extend(random.spiky(LANES));
    }
    for isa in isas() {
        let mut out = Guarded::new(gate.len());
        isa.run(SwiGlu { gate: &gate, up: &up, out: out.values() });
        let out = out.checked("gate");
        let expected: Vec<f64> =
            gate.iter().zip(&up).map(|(&g, &u)| swiglu(f64::from(g), f64::from(u))).collect();
        // Below −87 the exponential is held at e^88, so the result is tiny instead of exactly nothing.
        let magnitude: Vec<f64> = expected
            .iter()
            .zip(&gate)
            .map(|(v, &g)| v.abs() + f64::from(g.abs()) * 1e-31)
            .collect();
        assert_close(&format!("{isa}"), &out, &expected, &magnitude, SWIGLU_TOLERANCE);
    }
}

struct Exp<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Exp<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (chunks, _) = self.x.as_chunks::<LANES>();
        let (outs, _) = self.out.as_chunks_mut::<LANES>();
        for (x, out) in chunks.iter().zip(outs) {
            // SAFETY: both arrays have 16 values; the instruction set is the caller's.
            unsafe { S::store(out.as_mut_ptr(), S::exp(S::load(x.as_ptr()))) };
        }
    }
}

#[test]
fn exp_is_accurate() {
    for isa in isas() {
        let steps = 1_750_000;
        let x: Vec<f32> = (0..steps).map(|i| -87.0 + i as f32 * 1e-4).collect();
        let mut out = vec![f32::NAN; steps];
        isa.run(Exp { x: &x, out: &mut out });
        for (&x, &found) in x.iter().zip(&out) {
            let exact = f64::from(x).exp();
            let error = (f64::from(found) - exact).abs() / exact;
            assert!(error < EXP_TOLERANCE, "{isa}: e^{x} is {found}, off by {error}");
        }
        let mut x = [0.0; LANES];
        x[1..6].copy_from_slice(&[-87.001, -1e4, f32::NEG_INFINITY, f32::MIN, 88.0]);
        let mut out = [f32::NAN; LANES];
        isa.run(Exp { x: &x, out: &mut out });
        assert_eq!(bits(&out[..5]), bits(&[1.0, 0.0, 0.0, 0.0, 0.0]), "{isa}");
        assert!(out[5].is_finite() && out[5] > 1.6e38, "{isa}");
    }
}

fn spec(head_dim: usize, rope_theta: f32, rope_scaling: RopeScaling) -> ModelSpec {
    ModelSpec {
        architecture: Architecture::Llama,
        name: String::new(),
        n_layers: 1,
        hidden: 64,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim,
        ffn: 64,
        vocab: 32,
        context: 4096,
        rms_eps: 1e-5,
        rope_theta,
        rope_scaling,
    }
}

#[test]
fn rotations_of_every_scaling() {
    let yarn = |factor, original_context, beta_fast, beta_slow, attention_factor| {
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor }
    };
    let divisors =
        |half: usize| RopeScaling::Divisors((0..half).map(|i| 1.0 + i as f32 * 0.37).collect());
    let mut random = Random::new(case_seed(33));
    for (head_dim, theta) in [(16, 1e4), (64, 1e5), (128, 5e5), (256, 1e6)] {
        for scaling in [
            RopeScaling::None,
            RopeScaling::Linear { factor: 4.0 },
            divisors(head_dim / 2),
            yarn(4.0, 16, 32.0, 1.0, 1.138_629_4),
            yarn(2.5, 32, 16.0, 2.0, 1.3),
            yarn(40.0, 4096, 32.0, 1.0, 1.0),
            // Borders that coincide.
            yarn(8.0, 8192, 1.0, 1.0, 1.2),
        ] {
            let table = RopeTable::new(&spec(head_dim, theta, scaling.clone()));
            let half = head_dim / 2;
            assert_eq!(table.frequencies.len(), half);
            for (i, &found) in table.frequencies.iter().enumerate() {
                let expected = rope::frequency(&scaling, f64::from(theta), head_dim, i);
                let error = (f64::from(found) / expected - 1.0).abs();
                assert!(error < 1e-7, "{scaling:?} frequency {i}: {found}, expected {expected}");
            }
            for position in [0, 1, 17, 4095] {
                let (mut cos, mut sin) = (vec![f32::NAN; half], vec![f32::NAN; half]);
                table.angles(position, &mut cos, &mut sin);
                let factor = rope::attention_factor(&scaling);
                // Frameworks round the angle itself to f32, and so does the definition of this engine.
                let angles: Vec<f64> =
                    table.frequencies.iter().map(|f| f64::from(position as f32 * f)).collect();
                let x = random.spiky(2 * head_dim);
                for isa in isas() {
                    let mut found = Guarded::new(2 * head_dim);
                    found.values().copy_from_slice(&x);
                    isa.run(Rope { x: found.values(), cos: &cos, sin: &sin, factor: 0.125 });
                    let found = found.checked("rope");
                    for (found, x) in found.chunks_exact(head_dim).zip(x.chunks_exact(head_dim)) {
                        let expected = rope::rope(&widen(x), &angles, 0.125 * factor);
                        let pair =
                            |i: usize| f64::from(x[i % half].abs() + x[i % half + half].abs());
                        let magnitude: Vec<f64> =
                            (0..head_dim).map(|i| pair(i) * 0.125 * factor).collect();
                        let what =
                            format!("{isa} {scaling:?} head of {head_dim}, position {position}");
                        assert_close(&what, found, &expected, &magnitude, ROPE_TOLERANCE);
                    }
                }
            }
        }
    }
}
