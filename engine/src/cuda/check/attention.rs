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

/// Query heads, kv heads, and the size of one.
#[derive(Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
}

const fn heads(query: usize, kv: usize, dim: usize) -> Heads {
    Heads { query, kv, dim }
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

/// Keys and values of some sequences in a pool, and the rows of a step over them.
struct Case {
    heads: Heads,
    max_blocks: usize,
    /// `[S][max_blocks]`, all blocks in random order.
    tables: Vec<u32>,
    /// `[block][kv_head][K, V][16 tokens][D]`; what holds no token is NaN.
    kv: Vec<f16>,
    /// The same by sequence and kv head, `[tokens][D]` each.
    wide: Vec<[Vec<f64>; 2]>,
    positions: Vec<u32>,
    row_sequence: Vec<u32>,
    tiles: Vec<AttentionTile>,
    /// `[T][stride]`.
    q: Vec<f16>,
    stride: usize,
}

impl Case {
    fn new(bench: &mut Bench<'_>, heads: Heads, sequences: &[Sequence]) -> Self {
        let Heads { query: n_heads, kv: n_kv_heads, dim } = heads;
        let longest = sequences.iter().map(|&(_, n_tokens)| n_tokens).max().unwrap_or(1);
        let max_blocks = longest.div_ceil(KV_BLOCK_TOKENS);
        let n_blocks = sequences.len() * max_blocks;
        let tile_rows =
            rows_of_tile(to_u32(n_heads), to_u32(n_kv_heads)).map_or(1, |rows| rows as usize);
        let stride = (n_heads * dim).next_multiple_of(64);
        let mut case = Self {
            heads,
            max_blocks,
            tables: bench.random.permutation(n_blocks),
            kv: vec![f16::NAN; n_blocks * n_kv_heads * 2 * KV_BLOCK_TOKENS * dim],
            wide: Vec::new(),
            positions: Vec::new(),
            row_sequence: Vec::new(),
            tiles: Vec::new(),
            q: Vec::new(),
            stride,
        };
        for (sequence, &(n_rows, n_tokens)) in sequences.iter().enumerate() {
            for head in 0..n_kv_heads {
                let wide = [0, 1].map(|which| case.fill(bench, sequence, head, which, n_tokens));
                case.wide.push(wide);
            }
            let first_position = n_tokens - n_rows;
            for begin in (0..n_rows).step_by(tile_rows) {
                case.tiles.push(AttentionTile {
                    sequence: to_u32(sequence),
                    first_row: to_u32(case.positions.len() + begin),
                    n_rows: to_u32(tile_rows.min(n_rows - begin)),
                    first_position: to_u32(first_position + begin),
                });
            }
            case.positions.extend((first_position..n_tokens).map(to_u32));
            case.row_sequence.extend(std::iter::repeat_n(to_u32(sequence), n_rows));
        }
        // Scores of some units: neither flat nor one token alone.
        case.q = bench.random.halves(case.positions.len() * stride, 3.0 / (dim as f32).sqrt());
        case
    }

    /// Random keys (0) or values (1) of all tokens of a sequence and kv head.
    fn fill(
        &mut self,
        bench: &mut Bench<'_>,
        sequence: usize,
        head: usize,
        which: usize,
        n_tokens: usize,
    ) -> Vec<f64> {
        let dim = self.heads.dim;
        let values = bench.random.halves(n_tokens * dim, 1.0);
        for (token, values) in values.chunks_exact(dim).enumerate() {
            let block = self.tables[sequence * self.max_blocks + token / KV_BLOCK_TOKENS] as usize;
            let plane = (block * self.heads.kv + head) * 2 + which;
            let begin = (plane * KV_BLOCK_TOKENS + token % KV_BLOCK_TOKENS) * dim;
            self.kv[begin..begin + dim].copy_from_slice(values);
        }
        widen_halves(&values)
    }

    /// One query head of one row: `[D]` values, and what each is the sum of, by magnitude.
    fn expected(&self, t: usize, head: usize) -> [Vec<f64>; 2] {
        let Heads { query, kv, dim } = self.heads;
        let seen = (self.positions[t] as usize + 1) * dim;
        let [k, v] = &self.wide[self.row_sequence[t] as usize * kv + head / (query / kv)];
        let q = widen_halves(&self.q[t * self.stride + head * dim..][..dim]);
        let magnitudes: Vec<f64> = v[..seen].iter().map(|value| value.abs()).collect();
        // Base 2: 2^s = e^(s ln 2).
        [&v[..seen], &magnitudes]
            .map(|v| reference::attention::attention(&q, &k[..seen], v, std::f64::consts::LN_2))
    }

    /// Everything but outputs.
    fn params(
        &self,
        bench: &mut Bench<'_>,
        n_sequences: usize,
        chunk: Option<usize>,
    ) -> Result<AttentionParams, CheckError> {
        let n_rows = self.positions.len();
        let header = StepHeader {
            n_single_rows: if chunk.is_some() { to_u32(n_rows) } else { 0 },
            n_tiles: if chunk.is_some() { 0 } else { to_u32(self.tiles.len()) },
            n_sequences: to_u32(n_sequences),
            ..super::header(n_rows, 0)
        };
        let longest = self.positions.iter().max().map_or(1, |&position| position as usize + 1);
        // In any order: a row is known by its number.
        let single_rows = bench.random.permutation(n_rows);
        Ok(AttentionParams {
            step: bench.input(&[header])?,
            q: bench.input(&self.q)?,
            kv: bench.input(&self.kv)?,
            out: DevicePtr::NULL,
            partials: DevicePtr::NULL,
            single_rows: bench.input(&single_rows)?,
            tiles: bench.input(&self.tiles)?,
            positions: bench.input(&self.positions)?,
            row_sequence: bench.input(&self.row_sequence)?,
            block_tables: bench.input(&self.tables)?,
            q_stride: to_u32(self.stride),
            out_stride: to_u32(self.stride),
            n_heads: to_u32(self.heads.query),
            n_kv_heads: to_u32(self.heads.kv),
            head_dim: to_u32(self.heads.dim),
            max_blocks: to_u32(self.max_blocks),
            chunk_tokens: to_u32(chunk.unwrap_or(1)),
            max_chunks: to_u32(chunk.map_or(1, |chunk| longest.div_ceil(chunk))),
        })
    }
}

/// With `chunk` all rows are single rows, else all are in tiles.
fn one(
    bench: &mut Bench<'_>,
    heads: Heads,
    sequences: &[Sequence],
    chunk: Option<usize>,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let Heads { query: n_heads, kv: n_kv_heads, dim } = heads;
    let shown = &sequences[..sequences.len().min(9)];
    let words = format!(
        "{n_heads}/{n_kv_heads} heads of {dim}, chunks {chunk:?}, (rows, tokens) {shown:?}"
    );
    let name = if chunk.is_some() { "attention" } else { "attention_tiles" };
    let mut compare = Comparison::new(name, words);
    let case = Case::new(bench, heads, sequences);
    let mut params = case.params(bench, sequences.len(), chunk)?;
    let (n_rows, stride) = (case.positions.len(), case.stride);
    let max_rows = n_rows + ROWS_BEYOND;
    let out = bench.output::<f16>(max_rows * stride)?;
    let partials =
        bench.output::<f32>(max_rows * n_heads * params.max_chunks as usize * (dim + 2))?;
    params.out = out.ptr;
    if params.max_chunks > 1 {
        params.partials = partials.ptr;
    }
    let rows = match chunk {
        Some(_) => AttentionRows { max_single: to_u32(max_rows), max_tiles: 0 },
        None => AttentionRows { max_single: 0, max_tiles: to_u32(case.tiles.len() + 2) },
    };
    params.launch(bench.sink(), rows)?;

    let (found, whole) = bench.read(&out, f16::ZERO)?;
    compare.guards(whole);
    let (_, whole) = bench.read(&partials, 0_f32)?;
    compare.guards(whole);
    for (t, found) in found.chunks_exact(stride).enumerate() {
        if t >= n_rows {
            compare.untouched("a row beyond the step", found, is_fill_half);
            continue;
        }
        for head in 0..n_heads {
            let [expected, magnitudes] = case.expected(t, head);
            for (d, found) in found[head * dim..][..dim].iter().enumerate() {
                let place = || format!("row {t}, head {head}, {d}");
                compare.near(place, found.to_f64(), expected[d], magnitudes[d], F16_ATTENTION);
            }
        }
        compare.untouched("the padding", &found[n_heads * dim..], is_fill_half);
    }
    Ok(compare.row())
}
