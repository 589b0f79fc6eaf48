//! Attention over paged keys and values in shuffled blocks, as a step plans it.

use crate::{
    cpu::{
        Isa,
        attention::{Attend, VECTORS_MAX},
        kv_cache::{KvCache, KvElement, KvShape, StoreToken},
        plan::StepPlan,
        threads::Parts,
    },
    kv::{KV_BLOCK_TOKENS, KvBlockId, kv_blocks_for},
    reference::attention::{attention, weights},
    rope::RopeTable,
    spec::{Architecture, ModelSpec, RopeScaling},
    step_batch::{StepBatch, StepSequence},
};

use super::{Guarded, Random, assert_close, bits, is_untouched, isas, random::case_seed, widen};

/// Error as a share of `Σ p |v|`: rounding of the weighted sum.
const SUM_TOLERANCE: f64 = 2e-6;
/// Error of a score as a share of `Σ |q k|`, of up to 256 terms; it is the relative error of the score's weight.
const SCORE_TOLERANCE: f64 = 1e-6;
const LAYER: usize = 1;

/// Context and new rows of the sequences of a step: around the borders of KV blocks.
const SEQUENCES: [(usize, usize); 12] = [
    (0, 1),
    (0, 15),
    (15, 1),
    (0, 16),
    (16, 1),
    (0, 17),
    (31, 2),
    (17, 14),
    (32, 33),
    (100, 1),
    (47, 3),
    (255, 1),
];

/// Keys and values of one sequence, `[S, kv_heads, D]`, and its queries, `[S, heads, D]`: only those of new rows are used.
struct Tokens {
    n_context: usize,
    n_rows: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    blocks: Vec<KvBlockId>,
}

impl Tokens {
    fn n_tokens(&self) -> usize {
        self.n_context + self.n_rows
    }
}

struct Case {
    isa: Isa,
    spec: ModelSpec,
    cache: KvCache,
    sequences: Vec<Tokens>,
}

impl Case {
    fn new(
        random: &mut Random,
        isa: Isa,
        element: KvElement,
        head_dim: usize,
        kv_heads: usize,
        group: usize,
    ) -> Self {
        let n_blocks: usize =
            SEQUENCES.iter().map(|(context, rows)| kv_blocks_for(context + rows)).sum();
        let mut free: Vec<KvBlockId> =
            (0..u32::try_from(n_blocks).unwrap()).map(KvBlockId).collect();
        random.shuffle(&mut free);
        let spec = ModelSpec {
            architecture: Architecture::Llama,
            name: String::new(),
            n_layers: 2,
            hidden: 64,
            n_heads: kv_heads * group,
            n_kv_heads: kv_heads,
            head_dim,
            ffn: 64,
            vocab: 32,
            context: n_blocks * KV_BLOCK_TOKENS,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
        };
        // Scores up to some tens: a softmax that forgets the maximum would overflow.
        let scale = 8.0 / (head_dim as f32).sqrt();
        let rounded = |values: Vec<f32>| match element {
            KvElement::F32 => values,
            KvElement::F16 => values.into_iter().map(|v| half::f16::from_f32(v).to_f32()).collect(),
        };
        let sequences: Vec<Tokens> = SEQUENCES
            .into_iter()
            .map(|(n_context, n_rows)| {
                let n = n_context + n_rows;
                let q =
                    random.spiky(n * spec.n_heads * head_dim).iter().map(|v| v * scale).collect();
                let k = rounded(random.units(n * kv_heads * head_dim));
                let v = rounded(random.spiky(n * kv_heads * head_dim));
                Tokens {
                    n_context,
                    n_rows,
                    q,
                    k,
                    v,
                    blocks: free.split_off(free.len() - kv_blocks_for(n)),
                }
            })
            .collect();
        let shape = KvShape { n_layers: 2, n_blocks, n_kv_heads: kv_heads, head_dim, element };
        let mut case = Self { isa, spec, cache: KvCache::new(shape), sequences };
        case.store();
        case
    }

    /// Fills the memory with what earlier owners may have left, then stores every token.
    fn store(&mut self) {
        let (isa, width) = (self.isa, self.spec.n_kv_heads * self.spec.head_dim);
        let stale = vec![f32::NAN; width];
        let n_blocks: usize = self.sequences.iter().map(|tokens| tokens.blocks.len()).sum();
        let writer = self.cache.writer(LAYER);
        for block in (0..u32::try_from(n_blocks).unwrap()).map(KvBlockId) {
            for token in 0..KV_BLOCK_TOKENS {
                isa.run(StoreToken { writer: &writer, block, token, k: &stale, v: &stale });
            }
        }
        for tokens in &self.sequences {
            for (position, (k, v)) in
                tokens.k.chunks_exact(width).zip(tokens.v.chunks_exact(width)).enumerate()
            {
                let block = tokens.blocks[position / KV_BLOCK_TOKENS];
                isa.run(StoreToken {
                    writer: &writer,
                    block,
                    token: position % KV_BLOCK_TOKENS,
                    k,
                    v,
                });
            }
        }
    }

    /// Runs the given rows (of sequence, first new row, number) in one step; the output of each, `[heads, D]`.
    fn run(&self, parts: &[(usize, usize, usize)], n_threads: usize, what: &str) -> Vec<Vec<f32>> {
        let q_width = self.spec.n_heads * self.spec.head_dim;
        let q_stride = q_width + 48;
        let mut batch = StepBatch::default();
        let mut q = Vec::new();
        for &(index, first, n) in parts {
            let tokens = &self.sequences[index];
            let start = batch.n_rows();
            for position in tokens.n_context + first..tokens.n_context + first + n {
                batch.token_ids.push(0);
                batch.positions.push(position);
                q.extend_from_slice(&tokens.q[position * q_width..][..q_width]);
                q.extend([f32::NAN; 48]);
            }
            batch.sequences.push(StepSequence {
                rows: start..start + n,
                block_table: tokens.blocks.clone(),
                adapter: None,
            });
        }
        let mut plan = StepPlan::default();
        plan.begin(&batch, &self.spec, &RopeTable::new(&self.spec), n_threads);
        let out_stride = q_width + 16;
        let mut out = Guarded::new((batch.n_rows() + 1) * out_stride);
        let out_parts = Parts::new(out.values());
        let mut scratch = vec![f32::NAN; VECTORS_MAX * self.spec.context];
        for task in &plan.attention {
            assert!(task.rows.len() * task.heads.len() <= VECTORS_MAX, "{what}: {task:?}");
            self.isa.run(Attend {
                cache: &self.cache,
                layer: LAYER,
                kv_head: task.kv_head,
                block_table: &batch.sequences[task.sequence].block_table,
                rows: task.rows.clone(),
                first_position: batch.positions[task.rows.start],
                heads: task.heads.clone(),
                q: &q,
                q_stride,
                out: &out_parts,
                out_stride,
                scratch: &mut scratch,
            });
        }
        let out = out.checked(what);
        let (rows, after) = out.split_at(batch.n_rows() * out_stride);
        assert!(after.iter().copied().all(is_untouched), "{what}: wrote a row that is not there");
        let own = |row: &[f32]| {
            let (own, rest) = row.split_at(q_width);
            assert!(rest.iter().copied().all(is_untouched), "{what}: wrote beyond its heads");
            own.to_vec()
        };
        rows.chunks_exact(out_stride).map(own).collect()
    }

    /// One row's output against the reference.
    fn compare(&self, sequence: usize, row: usize, found: &[f32], what: &str) {
        let (dim, kv_heads) = (self.spec.head_dim, self.spec.n_kv_heads);
        let tokens = &self.sequences[sequence];
        let position = tokens.n_context + row;
        let group = self.spec.n_heads / kv_heads;
        for (head, found) in found.chunks_exact(dim).enumerate() {
            let of_head = |values: &[f32]| -> Vec<f64> {
                let rows = values.chunks_exact(kv_heads * dim).take(position + 1);
                rows.flat_map(|row| widen(&row[head / group * dim..][..dim])).collect()
            };
            let q = widen(&tokens.q[(position * self.spec.n_heads + head) * dim..][..dim]);
            let (k, v) = (of_head(&tokens.k), of_head(&tokens.v));
            let expected = attention(&q, &k, &v, 1.0);
            let p = weights(&q, &k, 1.0);
            let score = |k: &[f64]| q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum::<f64>();
            let largest = k.chunks_exact(dim).map(score).fold(0.0, f64::max);
            let mut magnitude = vec![0.0; dim];
            for (p, v) in p.iter().zip(v.chunks_exact(dim)) {
                for (magnitude, v) in magnitude.iter_mut().zip(v) {
                    *magnitude += p * v.abs();
                }
            }
            let what = format!("{what}: sequence {sequence} row {row} head {head}");
            assert_close(
                &what,
                found,
                &expected,
                &magnitude,
                SUM_TOLERANCE + SCORE_TOLERANCE * largest,
            );
        }
    }
}

/// All rows alone against the reference, then all in one step and in chunks against the rows alone.
fn check(
    random: &mut Random,
    isa: Isa,
    element: KvElement,
    head_dim: usize,
    kv_heads: usize,
    group: usize,
) {
    let what =
        format!("{isa} {element:?} head of {head_dim}, {kv_heads} kv heads, group of {group}");
    let case = Case::new(random, isa, element, head_dim, kv_heads, group);
    let mut alone = Vec::new();
    for (index, tokens) in case.sequences.iter().enumerate() {
        assert_eq!(tokens.blocks.len(), kv_blocks_for(tokens.n_tokens()));
        let rows: Vec<Vec<f32>> = (0..tokens.n_rows)
            .map(|row| case.run(&[(index, row, 1)], 2, &what).remove(0))
            .collect();
        for (row, found) in rows.iter().enumerate() {
            case.compare(index, row, found, &what);
        }
        alone.push(rows);
    }
    for n_threads in [1, 2, 16] {
        let mut order: Vec<usize> = (0..SEQUENCES.len()).collect();
        random.shuffle(&mut order);
        order.truncate(random.between(1, SEQUENCES.len()));
        // Some rows of each, beginning anywhere.
        let parts: Vec<(usize, usize, usize)> = order
            .into_iter()
            .map(|index| {
                let n_rows = case.sequences[index].n_rows;
                let first = if random.chance(50) { 0 } else { random.below(n_rows) };
                let n = if random.chance(50) {
                    n_rows - first
                } else {
                    random.between(1, n_rows - first)
                };
                (index, first, n)
            })
            .collect();
        let found = case.run(&parts, n_threads, &what);
        let wanted = parts.iter().flat_map(|&(index, first, n)| &alone[index][first..first + n]);
        for ((found, alone), row) in found.iter().zip(wanted).zip(0..) {
            assert_eq!(
                bits(found),
                bits(alone),
                "{what}: row {row} of {parts:?}, {n_threads} threads"
            );
        }
    }
}

#[test]
fn attention_equals_the_reference() {
    let mut random = Random::new(case_seed(40));
    for isa in isas() {
        for element in [KvElement::F16, KvElement::F32] {
            for (head_dim, kv_heads, group) in [
                (16, 2, 1),
                (32, 1, 2),
                (48, 3, 3),
                (64, 3, 3),
                (64, 1, 8),
                (80, 2, 4),
                (96, 1, 7),
                (128, 1, 5),
                (256, 1, 1),
            ] {
                check(&mut random, isa, element, head_dim, kv_heads, group);
            }
            // More heads over one key than a task takes.
            check(&mut random, isa, element, 16, 1, VECTORS_MAX + 1);
            check(&mut random, isa, element, 32, 1, 2 * VECTORS_MAX + 3);
        }
    }
}

#[test]
fn a_later_token_that_is_not_finite_does_not_reach_an_earlier_row() {
    let mut random = Random::new(case_seed(41));
    for isa in isas() {
        for element in [KvElement::F16, KvElement::F32] {
            let mut case = Case::new(&mut random, isa, element, 32, 1, 2);
            // The sequence of 17 new rows, all in one step; the last one is broken.
            let (index, last) = (5, 16);
            let before = case.run(&[(index, 0, last)], 2, "before");
            for value in [f32::INFINITY, f32::NAN] {
                case.sequences[index].v[last * 32..].fill(value);
                case.store();
                let after = case.run(&[(index, 0, last + 1)], 2, "after");
                for (row, (before, after)) in before.iter().zip(&after).enumerate() {
                    assert_eq!(
                        bits(before),
                        bits(after),
                        "{isa} {element:?}: {value} reached row {row}"
                    );
                }
            }
        }
    }
}
