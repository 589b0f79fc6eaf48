//! Attention over packed sequences, forward and backward.

use crate::{
    cpu::{
        Isa,
        tests::{Guarded, Random, assert_close, bits, isas, random::case_seed, widen},
        threads::Parts,
        train::{
            attention::{Attend, AttendBackKeys, AttendBackRows, HeadView, QUERY_ROWS, QueryTile},
            elementwise::Transpose,
            product::{Rows, Target},
        },
    },
    reference::{attention::attention, backward},
};

/// Share of the largest magnitude of a result.
const TOLERANCE: f64 = 5e-6;
const DIM: usize = 32;

/// One head's vectors of all rows, `[T, DIM]`, and what attention makes of them.
struct Head {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

#[derive(Debug, PartialEq)]
struct Results {
    out: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

fn turned(isa: Isa, rows: &[f32]) -> (Vec<f32>, usize) {
    let n_rows = rows.len() / DIM;
    let out_stride = n_rows.next_multiple_of(16) + 16;
    // What lies beyond the rows must not count.
    let mut out = vec![1e3; DIM * out_stride];
    let parts = Parts::new(&mut out);
    isa.run(Transpose {
        rows,
        stride: DIM,
        n_rows,
        n_columns: DIM,
        out: &parts,
        out_start: 0,
        out_stride,
    });
    (out, out_stride)
}

fn run(isa: Isa, head: &Head, lengths: &[usize], keys_at_once: usize) -> Results {
    let n_rows = head.q.len() / DIM;
    let ((k_turned, stride), (v_turned, _)) = (turned(isa, &head.k), turned(isa, &head.v));
    let view = HeadView {
        dim: DIM,
        q: Rows::new(&head.q, DIM),
        k: Rows::new(&head.k, DIM),
        v: Rows::new(&head.v, DIM),
        k_turned: Rows::new(&k_turned, stride),
        v_turned: Rows::new(&v_turned, stride),
    };
    let [mut out, mut dq] = [0, 1].map(|_| Guarded::new(n_rows * DIM));
    let (mut dk, mut dv) = (vec![0.0; n_rows * DIM], vec![0.0; n_rows * DIM]);
    let mut lse = vec![f32::NAN; n_rows];
    let mut tiles = Vec::new();
    let mut first = 0;
    for length in lengths {
        for start in (first..first + length).step_by(QUERY_ROWS) {
            let n_rows = QUERY_ROWS.min(first + length - start);
            tiles.push(QueryTile { start, n_rows, sequence_start: first });
        }
        first += length;
    }
    {
        let parts = Parts::new(out.values());
        for tile in &tiles {
            isa.run(Attend {
                tile: *tile,
                head: view,
                out: Target { parts: &parts, start: 0, stride: DIM },
                lse: &mut lse[tile.start..][..tile.n_rows],
                scratch: &mut vec![f32::NAN; tile.n_rows * tile.span()],
            });
        }
    }
    let out = out.checked("attention");
    {
        let (dq_parts, dk_parts) = (Parts::new(dq.values()), Parts::new(&mut dk));
        let dv_parts = Parts::new(&mut dv);
        let target = |parts| Target { parts, start: 0, stride: DIM };
        for tile in &tiles {
            let mut weights = [0, 1].map(|_| vec![f32::NAN; tile.n_rows * tile.span()]);
            let [p, ds] = &mut weights;
            isa.run(AttendBackRows {
                tile: *tile,
                head: view,
                out: Rows::new(&out, DIM),
                d_out: Rows::new(&head.d_out, DIM),
                lse: &lse[tile.start..][..tile.n_rows],
                p,
                ds,
                dq: target(&dq_parts),
            });
            let end = tile.start + tile.n_rows;
            for start in (tile.sequence_start..end).step_by(keys_at_once) {
                isa.run(AttendBackKeys {
                    tile: *tile,
                    dim: DIM,
                    keys: start..end.min(start + keys_at_once),
                    q: view.q,
                    d_out: Rows::new(&head.d_out, DIM),
                    p: &weights[0],
                    ds: &weights[1],
                    dk: target(&dk_parts),
                    dv: target(&dv_parts),
                });
            }
        }
    }
    Results { out, dq: dq.checked("queries"), dk, dv }
}

#[test]
fn forward_and_backward_equal_the_reference_sequence_by_sequence() {
    let mut random = Random::new(case_seed(220));
    for isa in isas() {
        let lengths = [1, 24, 61, 2, 17];
        let n = lengths.iter().sum::<usize>() * DIM;
        let head = Head {
            q: random.units(n).into_iter().map(|value| value * 2.0).collect(),
            k: random.units(n),
            v: random.spiky(n),
            d_out: random.units(n),
        };
        let found = run(isa, &head, &lengths, 48);
        assert_eq!(found, run(isa, &head, &lengths, 7), "{isa}: keys in other chunks");
        let mut first = 0;
        for length in lengths {
            let rows = first * DIM..(first + length) * DIM;
            let part = |values: &[f32]| values[rows.clone()].to_vec();
            let alone = Head {
                q: part(&head.q),
                k: part(&head.k),
                v: part(&head.v),
                d_out: part(&head.d_out),
            };
            let results = run(isa, &alone, &[length], 48);
            for (alone, packed, what) in [
                (&results.out, &found.out, "output"),
                (&results.dq, &found.dq, "queries"),
                (&results.dk, &found.dk, "keys"),
                (&results.dv, &found.dv, "values"),
            ] {
                assert_eq!(bits(alone), bits(&packed[rows.clone()]), "{isa} {length} {what}");
            }
            check(isa, &alone, &results);
            first += length;
        }
    }
}

fn check(isa: Isa, head: &Head, found: &Results) {
    let [q, k, v, d_out] = [&head.q, &head.k, &head.v, &head.d_out].map(|values| widen(values));
    let n = q.len();
    let (mut out, mut dq) = (Vec::new(), Vec::new());
    let (mut dk, mut dv) = (vec![0.0; n], vec![0.0; n]);
    for (row, (q, d_out)) in q.chunks_exact(DIM).zip(d_out.chunks_exact(DIM)).enumerate() {
        let seen = (row + 1) * DIM;
        out.extend(attention(q, &k[..seen], &v[..seen], 1.0));
        let gradients = backward::attention(q, &k[..seen], &v[..seen], 1.0, d_out);
        dq.extend(gradients.q);
        dk.iter_mut().zip(gradients.k).for_each(|(sum, d)| *sum += d);
        dv.iter_mut().zip(gradients.v).for_each(|(sum, d)| *sum += d);
    }
    for (what, found, expected) in [
        ("output", &found.out, out),
        ("queries", &found.dq, dq),
        ("keys", &found.dk, dk),
        ("values", &found.dv, dv),
    ] {
        // Differences of large terms: `do · (v_j − o)`, with values up to 50.
        let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
        let what = format!("{isa}, {} rows, {what}", n / DIM);
        assert_close(&what, found, &expected, &vec![largest.max(50.0); n], TOLERANCE);
    }
}
