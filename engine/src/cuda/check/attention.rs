use half::f16;

use crate::{
    cuda::{
        DevicePtr,
        ops::{AttentionParams, AttentionRows, AttentionTile, StepHeader, rows_of_tile},
    },
    kv::KV_BLOCK_TOKENS,
    reference,
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F16_ATTENTION, is_fill_half},
    to_u32, widen_halves,
};

/// Heads, and how many there are.
#[derive(Clone, Copy)]
struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

const fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { n_heads, n_kv_heads, head_dim }
}

/// Rows of a sequence: the last `n_rows` of its `n_tokens`.
type Sequence = (usize, usize);

/// Lengths around blocks and chunks, groups of 1 to 16 query heads, all head sizes. Blocks that no row may see, and what
/// lies behind a row's position in its last block, are NaN.
pub(super) fn single_rows(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let lengths: &[Sequence] =
        &[(1, 1), (1, 15), (1, 16), (1, 17), (1, 63), (1, 64), (1, 65), (1, 130), (3, 71)];
    let mut cases = vec![
        (heads(3, 3, 16), 64, lengths),
        (heads(9, 3, 64), 64, lengths),
        (heads(2, 1, 80), 1000, &[(1, 33), (1, 90)]),
        (heads(4, 1, 128), 48, &[(1, 40), (2, 200)]),
        (heads(7, 1, 96), 64, &[(1, 40), (1, 129)]),
        (heads(16, 1, 64), 64, &[(1, 5), (1, 70)]),
        (heads(2, 2, 256), 32, &[(1, 20), (1, 33)]),
    ];
    if sizes == Sizes::Full {
        cases.extend([
            (
                heads(32, 8, 128),
                512,
                &[(1, 1), (1, 511), (1, 512), (1, 513), (1, 2048), (1, 4097)][..],
            ),
            (heads(32, 8, 128), 512, &[(1, 320); 64][..]),
            (heads(14, 2, 64), 512, &[(1, 700), (40, 900)][..]),
            (heads(16, 8, 256), 512, &[(1, 700), (1, 900)][..]),
        ]);
    }
    cases
        .into_iter()
        .map(|(heads, chunk, sequences)| one(bench, heads, sequences, Some(chunk)))
        .collect()
}

/// Tiles: whole and partial, at the begin and in the middle of a sequence, several sequences at once.
pub(super) fn tiles(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let mut cases: Vec<(Heads, &[Sequence])> = vec![
        (heads(3, 3, 16), &[(5, 5), (3, 40)]),
        (heads(9, 3, 64), &[(23, 23), (1, 1), (30, 95)]),
        (heads(4, 1, 80), &[(17, 66)]),
        (heads(8, 2, 128), &[(20, 65)]),
        (heads(7, 1, 96), &[(10, 10), (9, 64)]),
        (heads(2, 1, 256), &[(33, 33)]),
    ];
    if sizes == Sizes::Full {
        cases.extend([
            (heads(32, 8, 128), &[(512, 512), (100, 1000), (256, 256)][..]),
            (heads(9, 3, 64), &[(700, 700), (63, 2000)][..]),
            (heads(16, 8, 256), &[(130, 300)][..]),
            (heads(64, 1, 64), &[(9, 77)][..]),
        ]);
    }
    cases.into_iter().map(|(heads, sequences)| one(bench, heads, sequences, None)).collect()
}

/// With `chunk` all rows are single rows, else all are in tiles.
fn one(
    bench: &mut Bench<'_>,
    heads: Heads,
    sequences: &[Sequence],
    chunk: Option<usize>,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let shown = &sequences[..sequences.len().min(9)];
    let words = format!(
        "{n_heads}/{n_kv_heads} heads of {head_dim}, chunks {chunk:?}, (rows, tokens) {shown:?}"
    );
    let name = if chunk.is_some() { "attention" } else { "attention_tiles" };
    let mut compare = Comparison::new(name, words);

    let longest = sequences.iter().map(|&(_, n_tokens)| n_tokens).max().unwrap_or(1);
    let max_blocks = longest.div_ceil(KV_BLOCK_TOKENS);
    let n_blocks = sequences.len() * max_blocks;
    let tables = bench.random.permutation(n_blocks);
    let head_block = KV_BLOCK_TOKENS * head_dim;
    let mut kv = vec![f16::NAN; n_blocks * n_kv_heads * 2 * head_block];
    // Where keys (0) or values (1) of a token lie.
    let at = |sequence: usize, token: usize, head: usize, which: usize| {
        let block = tables[sequence * max_blocks + token / KV_BLOCK_TOKENS] as usize;
        ((block * n_kv_heads + head) * 2 + which) * head_block + token % KV_BLOCK_TOKENS * head_dim
    };
    let (mut positions, mut row_sequence, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    let tile_rows =
        rows_of_tile(to_u32(n_heads), to_u32(n_kv_heads)).map_or(1, |rows| rows as usize);
    for (sequence, &(n_rows, n_tokens)) in sequences.iter().enumerate() {
        for token in 0..n_tokens {
            for (head, which) in (0..n_kv_heads).flat_map(|head| [(head, 0), (head, 1)]) {
                let values = bench.random.halves(head_dim, 1.0);
                kv[at(sequence, token, head, which)..][..head_dim].copy_from_slice(&values);
            }
        }
        let first_position = n_tokens - n_rows;
        for begin in (0..n_rows).step_by(tile_rows) {
            tiles.push(AttentionTile {
                sequence: to_u32(sequence),
                first_row: to_u32(positions.len() + begin),
                n_rows: to_u32(tile_rows.min(n_rows - begin)),
                first_position: to_u32(first_position + begin),
            });
        }
        positions.extend((first_position..n_tokens).map(to_u32));
        row_sequence.extend(std::iter::repeat_n(to_u32(sequence), n_rows));
    }
    let n_rows = positions.len();
    let width = n_heads * head_dim;
    let stride = width.next_multiple_of(64);
    // Scores of some units: neither flat nor one token alone.
    let q_scale = 3.0 / (head_dim as f32).sqrt();
    let q = bench.random.halves(n_rows * stride, q_scale);
    // In any order: a row is known by its number.
    let single_rows = bench.random.permutation(n_rows);
    let max_rows = n_rows + ROWS_BEYOND;
    let max_chunks = chunk.map_or(1, |chunk| longest.div_ceil(chunk));
    let out = bench.output::<f16>(max_rows * stride)?;
    let partials = bench.output::<f32>(max_rows * n_heads * max_chunks * (head_dim + 2))?;
    let header = StepHeader {
        n_single_rows: if chunk.is_some() { to_u32(n_rows) } else { 0 },
        n_tiles: if chunk.is_some() { 0 } else { to_u32(tiles.len()) },
        n_sequences: to_u32(sequences.len()),
        ..super::header(n_rows, 0)
    };
    let params = AttentionParams {
        step: bench.input(&[header])?,
        q: bench.input(&q)?,
        kv: bench.input(&kv)?,
        out: out.ptr,
        partials: if max_chunks > 1 { partials.ptr } else { DevicePtr::NULL },
        single_rows: bench.input(&single_rows)?,
        tiles: bench.input(&tiles)?,
        positions: bench.input(&positions)?,
        row_sequence: bench.input(&row_sequence)?,
        block_tables: bench.input(&tables)?,
        q_stride: to_u32(stride),
        out_stride: to_u32(stride),
        n_heads: to_u32(n_heads),
        n_kv_heads: to_u32(n_kv_heads),
        head_dim: to_u32(head_dim),
        max_blocks: to_u32(max_blocks),
        chunk_tokens: to_u32(chunk.unwrap_or(1)),
        max_chunks: to_u32(max_chunks),
    };
    let rows = match chunk {
        Some(_) => AttentionRows { max_single: to_u32(max_rows), max_tiles: 0 },
        None => AttentionRows { max_single: 0, max_tiles: to_u32(tiles.len() + 2) },
    };
    params.launch(bench.sink(), rows)?;

    let (found, whole) = bench.read(&out, f16::ZERO)?;
    compare.guards(whole);
    let (_, whole) = bench.read(&partials, 0_f32)?;
    compare.guards(whole);
    for t in 0..n_rows {
        let sequence = row_sequence[t] as usize;
        for head in 0..n_heads {
            let kv_head = head / (n_heads / n_kv_heads);
            let gather = |which: usize| -> Vec<f64> {
                (0..=positions[t] as usize)
                    .flat_map(|token| {
                        widen_halves(&kv[at(sequence, token, kv_head, which)..][..head_dim])
                    })
                    .collect()
            };
            let q = widen_halves(&q[t * stride + head * head_dim..][..head_dim]);
            // Base 2: 2^s = e^(s ln 2).
            let expected =
                reference::attention::attention(&q, &gather(0), &gather(1), std::f64::consts::LN_2);
            for (d, expected) in expected.into_iter().enumerate() {
                let found = found[t * stride + head * head_dim + d].to_f64();
                compare.near(
                    || format!("row {t}, head {head}, {d}"),
                    found,
                    expected,
                    expected,
                    F16_ATTENTION,
                );
            }
        }
        compare.untouched(
            "the padding",
            &found[t * stride + width..(t + 1) * stride],
            is_fill_half,
        );
    }
    compare.untouched("a row beyond the step", &found[n_rows * stride..], is_fill_half);
    Ok(compare.row())
}
