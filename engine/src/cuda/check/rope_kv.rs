use half::f16;

use crate::{
    cuda::{DevicePtr, ops::RopeStoreParams},
    kv::KV_BLOCK_TOKENS,
    reference,
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F16_ROUNDED, Tolerance, is_fill_half},
    header, to_u32, widen,
};

const EPS: f32 = 1e-6;

/// Rotations are differences: the error is proportional to the pair, not to the result.
const F16_ROTATED: Tolerance = Tolerance { abs: 2e-6, rel: F16_ROUNDED.rel };

#[derive(Clone, Copy)]
struct Shape {
    n_rows: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    has_norms: bool,
}

const SHAPES: &[Shape] = &[
    Shape { n_rows: 1, n_heads: 1, n_kv_heads: 1, head_dim: 16, has_norms: false },
    Shape { n_rows: 5, n_heads: 9, n_kv_heads: 3, head_dim: 64, has_norms: false },
    Shape { n_rows: 7, n_heads: 4, n_kv_heads: 2, head_dim: 80, has_norms: true },
    Shape { n_rows: 3, n_heads: 8, n_kv_heads: 2, head_dim: 128, has_norms: true },
    Shape { n_rows: 2, n_heads: 2, n_kv_heads: 1, head_dim: 256, has_norms: true },
];
const SHAPES_FULL: &[Shape] = &[
    Shape { n_rows: 64, n_heads: 32, n_kv_heads: 8, head_dim: 128, has_norms: false },
    Shape { n_rows: 300, n_heads: 16, n_kv_heads: 8, head_dim: 128, has_norms: true },
];

/// Head sizes, norms, positions that cross blocks, shuffled block tables; the whole pool is compared.
pub(super) fn rope_store(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let full = if sizes == Sizes::Full { SHAPES_FULL } else { &[] };
    SHAPES.iter().chain(full).map(|&shape| one(bench, shape)).collect()
}

/// Rows of both sequences in turn, over shuffled blocks.
struct Step {
    row_sequence: Vec<u32>,
    positions: Vec<u32>,
    /// `[N_SEQUENCES][max_blocks]`.
    block_tables: Vec<u32>,
    n_blocks: usize,
    max_blocks: usize,
    /// `[max_blocks * 16][head_dim / 2]`.
    angles: Vec<f64>,
}

const N_SEQUENCES: usize = 2;
/// Position of each sequence's first row: the end of a block, and within one.
const FIRST: [usize; N_SEQUENCES] = [KV_BLOCK_TOKENS - 1, 3];

impl Step {
    fn new(bench: &mut Bench<'_>, n_rows: usize, head_dim: usize) -> Self {
        let max_blocks = n_rows.div_ceil(KV_BLOCK_TOKENS) + 2;
        let n_blocks = N_SEQUENCES * max_blocks + 1;
        let mut block_tables = bench.random.permutation(n_blocks);
        block_tables.truncate(N_SEQUENCES * max_blocks);
        let position = |t: usize| to_u32(FIRST[t % N_SEQUENCES] + t / N_SEQUENCES);
        let frequency = |i: usize| 10_000_f64.powf(-2.0 * i as f64 / head_dim as f64);
        let angles =
            |position: usize| (0..head_dim / 2).map(move |i| position as f64 * frequency(i));
        Self {
            row_sequence: (0..n_rows).map(|t| to_u32(t % N_SEQUENCES)).collect(),
            positions: (0..n_rows).map(position).collect(),
            block_tables,
            n_blocks,
            max_blocks,
            angles: (0..max_blocks * KV_BLOCK_TOKENS).flat_map(angles).collect(),
        }
    }
}

fn one(bench: &mut Bench<'_>, shape: Shape) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let Shape { n_rows, n_heads, n_kv_heads, head_dim, has_norms } = shape;
    let words =
        format!("{n_rows} rows, {n_heads}/{n_kv_heads} heads of {head_dim}, norms {has_norms}");
    let mut compare = Comparison::new("rope_store", words);
    let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
    let (k_column, v_column) = (q_width + 16, q_width + kv_width + 32);
    let (in_stride, q_stride) = (v_column + kv_width, q_width.next_multiple_of(64));
    let qkv = bench.random.values(n_rows * in_stride, 2.0);
    let (q_norm, k_norm) = (bench.random.values(head_dim, 1.0), bench.random.values(head_dim, 1.0));

    let step = Step::new(bench, n_rows, head_dim);
    let Step { row_sequence, positions, block_tables, n_blocks, max_blocks, angles } = &step;
    let (n_blocks, max_blocks) = (*n_blocks, *max_blocks);
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    let (cos, sin): (Vec<f32>, Vec<f32>) =
        angles.iter().map(|a| (a.cos() as f32, a.sin() as f32)).unzip();

    let max_rows = n_rows + ROWS_BEYOND;
    let q = bench.output::<f16>(max_rows * q_stride)?;
    let kv = bench.output::<f16>(n_blocks * n_kv_heads * 2 * KV_BLOCK_TOKENS * head_dim)?;
    let q_scale = 0.18_f32;
    let params = RopeStoreParams {
        step: bench.input(&[header(n_rows, 0)])?,
        qkv: bench.input(&qkv)?,
        q_norm: if has_norms { bench.input(&q_norm)? } else { DevicePtr::NULL },
        k_norm: if has_norms { bench.input(&k_norm)? } else { DevicePtr::NULL },
        cos: bench.input(&cos)?,
        sin: bench.input(&sin)?,
        positions: bench.input(positions)?,
        row_sequence: bench.input(row_sequence)?,
        block_tables: bench.input(block_tables)?,
        q: q.ptr,
        kv: kv.ptr,
        saturations: bench.input(&[0_u32])?,
        in_stride: to_u32(in_stride),
        q_column: 0,
        k_column: to_u32(k_column),
        v_column: to_u32(v_column),
        q_stride: to_u32(q_stride),
        n_heads: to_u32(n_heads),
        n_kv_heads: to_u32(n_kv_heads),
        head_dim: to_u32(head_dim),
        max_blocks: to_u32(max_blocks),
        max_positions: to_u32(max_blocks * KV_BLOCK_TOKENS),
        eps: EPS,
        q_scale,
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found_q, whole) = bench.read(&q, f16::ZERO)?;
    compare.guards(whole);
    let (mut found_kv, whole) = bench.read(&kv, f16::ZERO)?;
    compare.guards(whole);
    for t in 0..n_rows {
        let position = positions[t] as usize;
        let angles = &angles[position * head_dim / 2..][..head_dim / 2];
        let block =
            block_tables[t % N_SEQUENCES * max_blocks + position / KV_BLOCK_TOKENS] as usize;
        let head_at = |column: usize, head: usize| {
            widen(&qkv[t * in_stride + column + head * head_dim..][..head_dim])
        };
        let norm = |norm| has_norms.then_some(norm);
        for head in 0..n_heads {
            let (expected, magnitude) = rotated(&head_at(0, head), norm(&q_norm), angles, q_scale);
            for d in 0..head_dim {
                let found = found_q[t * q_stride + head * head_dim + d].to_f64();
                compare.near(
                    || format!("q of row {t}, head {head}, {d}"),
                    found,
                    expected[d],
                    magnitude[d],
                    F16_ROTATED,
                );
            }
        }
        for head in 0..n_kv_heads {
            let (k, k_magnitude) = rotated(&head_at(k_column, head), norm(&k_norm), angles, 1.0);
            let v = head_at(v_column, head);
            for (which, expected, magnitude) in [(0, &k, &k_magnitude), (1, &v, &v)] {
                let begin_plane = (block * n_kv_heads + head) * 2 + which;
                let begin = (begin_plane * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS) * head_dim;
                for d in 0..head_dim {
                    let found =
                        std::mem::replace(&mut found_kv[begin + d], f16::from_bits(u16::MAX))
                            .to_f64();
                    let place = || format!("kv {which} of row {t}, head {head}, {d}");
                    compare.near(place, found, expected[d], magnitude[d], F16_ROTATED);
                }
            }
        }
    }
    for row in found_q.chunks_exact(q_stride) {
        compare.untouched("the padding of q", &row[q_width..], is_fill_half);
    }
    compare.untouched("q of a row beyond the step", &found_q[n_rows * q_stride..], is_fill_half);
    compare.untouched("other tokens of the pool", &found_kv, is_fill_half);
    Ok(compare.row())
}

/// A head after norm and rotation, and the magnitude of each of its pairs.
fn rotated(
    x: &[f64],
    norm: Option<&Vec<f32>>,
    angles: &[f64],
    factor: f32,
) -> (Vec<f64>, Vec<f64>) {
    let normed = norm.map_or_else(
        || x.to_vec(),
        |norm| reference::norm::rms_norm(x, &widen(norm), f64::from(EPS)),
    );
    let half = x.len() / 2;
    let pair = |i: usize| f64::from(factor) * normed[i % half].hypot(normed[i % half + half]);
    let magnitudes = (0..x.len()).map(pair).collect();
    (reference::rope::rope(&normed, angles, f64::from(factor)), magnitudes)
}
