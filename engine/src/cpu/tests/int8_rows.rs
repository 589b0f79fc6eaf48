//! Quantized activations equal their definition bit for bit, on every instruction set, in any row of a panel.

use crate::{
    cpu::{
        Isa,
        int8_rows::{Int8Rows, PANEL, QuantizeRow},
        packed::BLOCK,
    },
    reference::matmul::Int8Row,
};

use super::{Random, UNTOUCHED, is_untouched, isas, random::case_seed};

/// Rows quantized by a kernel; values never written are marked.
pub(super) fn quantize(isa: Isa, rows: &[&[f32]], n_in: usize) -> Int8Rows {
    let mut quantized = Int8Rows::new(rows.len(), n_in);
    for values in [
        &mut quantized.d,
        &mut quantized.sum32,
        &mut quantized.sum32_d,
        &mut quantized.sum16,
        &mut quantized.sum16_d,
    ] {
        values.fill(UNTOUCHED);
    }
    quantized.q.fill(-128);
    let writer = quantized.writer(n_in);
    for (row, x) in rows.iter().enumerate() {
        isa.run(QuantizeRow { writer: &writer, row, x });
    }
    quantized
}

/// Rows of every kind: spikes, zeros, the smallest and the largest numbers.
fn inputs(random: &mut Random, n_in: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = (0..5).map(|_| random.spiky(n_in)).collect();
    rows.push(vec![0.0; n_in]);
    rows.push(random.units(n_in).iter().map(|v| v * 1e38).collect());
    rows.push(random.units(n_in).iter().map(|v| v * 1e-30).collect());
    rows.push(random.units(n_in).iter().map(|v| v * 1e-38).collect());
    rows.push(random.units(n_in).iter().map(|v| v * 1e-42).collect());
    let mut spike = vec![1e-3; n_in];
    spike[n_in / 2] = 3e4;
    rows.push(spike);
    rows
}

#[test]
#[expect(clippy::float_cmp, reason = "sums of small integers are exact")]
fn rows_equal_the_definition() {
    let mut random = Random::new(case_seed(10));
    for n_in in [32, 64, 160, 576] {
        let inputs = inputs(&mut random, n_in);
        for isa in isas() {
            let rows: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let found = quantize(isa, &rows, n_in);
            for (row, x) in inputs.iter().enumerate() {
                let expected = Int8Row::quantize(x);
                for block in 0..n_in / BLOCK {
                    let what = format!("{isa} width {n_in} row {row} block {block}");
                    let panel = (row / PANEL * (n_in / BLOCK) + block) * PANEL;
                    let (at, at16) = (panel + row % PANEL, 2 * panel + row % PANEL);
                    let q = &expected.q[block * BLOCK..][..BLOCK];
                    assert_eq!(&found.q[at * BLOCK..][..BLOCK], q, "{what}");
                    assert_eq!(found.d[at].to_bits(), expected.d[block].to_bits(), "{what}");
                    let sum = |q: &[i8]| q.iter().copied().map(f32::from).sum::<f32>();
                    let (low, high) = q.split_at(BLOCK / 2);
                    for (name, value, expected) in [
                        ("sum32", found.sum32[at], sum(q)),
                        ("sum32_d", found.sum32_d[at], expected.d[block] * sum(q)),
                        ("sum16", found.sum16[at16], sum(low)),
                        ("sum16, high", found.sum16[at16 + PANEL], sum(high)),
                        ("sum16_d", found.sum16_d[at16], expected.d[block] * sum(low)),
                        (
                            "sum16_d, high",
                            found.sum16_d[at16 + PANEL],
                            expected.d[block] * sum(high),
                        ),
                    ] {
                        assert_eq!(value, expected, "{what}: {name}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_writes_nothing_of_its_neighbours() {
    let x = [1.5; 64];
    for isa in isas() {
        let mut quantized = quantize(isa, &[], 64);
        let mut room = Int8Rows::new(PANEL, 64);
        std::mem::swap(&mut quantized, &mut room);
        quantized.d.fill(UNTOUCHED);
        quantized.sum16.fill(UNTOUCHED);
        quantized.q.fill(-128);
        let writer = quantized.writer(64);
        isa.run(QuantizeRow { writer: &writer, row: 3, x: &x });
        let written = |values: &[f32]| values.iter().filter(|value| !is_untouched(**value)).count();
        assert_eq!(written(&quantized.d), 2, "{isa}: one scale for each block");
        assert_eq!(written(&quantized.sum16), 4, "{isa}: two sums for each block");
        assert_eq!(quantized.q.iter().filter(|q| **q != -128).count(), 64, "{isa}");
    }
}
