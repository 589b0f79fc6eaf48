//! Whole steps: a GPU's against the CPU's, and their times.

use std::{sync::Arc, time::Instant};

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::{RunError, StepRunner},
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    sampler::{SampledToken, SamplingParams},
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
};
use serde::Serialize;

/// Greedy tokens compared for each sequence.
const GREEDY_TOKENS: usize = 32;
/// Likeliest tokens of a row whose log-probabilities are compared.
const LIKELIEST: usize = 5;
/// Most that the log-probabilities of half of the rows may differ: f16 weights and activations against f32. On the
/// default model 0.006 is usual, and 0.012 for an implementation that keeps the residual stream in f16 too.
const MEDIAN_TOLERANCE: f32 = 0.02;
/// Most that those of 99 in 100 rows may differ; on the default model 0.02 is usual.
const ROW_TOLERANCE: f32 = 0.06;
/// Most that any may differ. A model may write huge values into the residual stream of a sequence's first tokens and
/// cancel them layers later, and so multiply the rounding errors of a row by a hundred: on the default model the row
/// behind the prompt of one token below, where f16 throughout is off by 0.77 and f32 by thirty times its usual.
const WORST_TOLERANCE: f32 = 1.5;
/// A greedy token may differ where the two likeliest are closer than this, or in the few rows beyond
/// [`ROW_TOLERANCE`].
pub(super) const MARGIN: f32 = 0.05;
/// Blocks of one sequence.
const BLOCKS: usize = 40;
/// Models of a shorter context are not timed.
pub(super) const TIMED_CONTEXT: usize = 640;

/// One comparison.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) found: String,
    pub(super) pass: bool,
}

/// One time.
#[derive(Debug, Serialize)]
pub(super) struct Timing {
    pub(super) what: String,
    pub(super) median_ms: f64,
    pub(super) tokens_per_second: f64,
}

/// How far apart the log-probabilities of one row are.
#[derive(Clone, Copy, Debug)]
struct Difference {
    off: f32,
    sequence: usize,
    position: usize,
}

#[derive(Clone)]
pub(super) struct Sequence {
    /// Which blocks it owns.
    pub(super) index: usize,
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are there.
    pub(super) done: usize,
    n_prompt: usize,
    adapter: Option<AdapterSlot>,
}

impl Sequence {
    /// A prompt that its place determines.
    pub(super) fn new(
        index: usize,
        length: usize,
        vocab: usize,
        adapter: Option<AdapterSlot>,
    ) -> Self {
        Self::of_prompt(index, index, length, vocab, adapter)
    }

    /// Prompt number `seed` at a place.
    pub(super) fn of_prompt(
        index: usize,
        seed: usize,
        length: usize,
        vocab: usize,
        adapter: Option<AdapterSlot>,
    ) -> Self {
        let tokens = (0..length)
            .map(|i| u32::try_from((seed * 7919 + i * 104_729) % vocab).unwrap_or(0))
            .collect();
        Self { index, tokens, done: 0, n_prompt: length, adapter }
    }

    /// Tokens beyond the prompt.
    pub(super) fn n_generated(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }
}

/// One step of up to `chunk` rows of each sequence, the last row of each sampled.
pub(super) fn step(
    runner: &mut dyn StepRunner,
    sequences: &mut [Sequence],
    chunk: usize,
    logprobs: Option<u32>,
) -> Result<Vec<SampledToken>, RunError> {
    let params =
        Arc::new(SamplingParams { temperature: 0.0, logprobs, ..SamplingParams::default() });
    let mut batch = StepBatch::default();
    for sequence in sequences {
        let first = batch.n_rows();
        let end = sequence.tokens.len().min(sequence.done + chunk);
        for position in sequence.done..end {
            batch.token_ids.push(sequence.tokens[position]);
            batch.positions.push(position);
        }
        sequence.done = end;
        let blocks =
            BLOCKS * sequence.index..BLOCKS * sequence.index + end.div_ceil(KV_BLOCK_TOKENS);
        batch.sequences.push(StepSequence {
            rows: first..batch.n_rows(),
            block_table: blocks
                .map(|block| KvBlockId(u32::try_from(block).unwrap_or(u32::MAX)))
                .collect(),
            adapter: sequence.adapter,
        });
        batch.sample_rows.push(SampleRow {
            row: batch.n_rows() - 1,
            params: Arc::clone(&params),
            sample_index: 0,
            history: Arc::default(),
            n_prompt: 0,
            banned: Vec::new(),
            forced: None,
        });
    }
    runner.step(&batch)
}

/// Prefill in chunks, then greedy tokens, each step of all sequences together; both runners are fed the GPU's tokens.
pub(super) fn compare(
    gpu: &mut dyn StepRunner,
    cpu: &mut dyn StepRunner,
    adapters: &[AdapterWeights],
) -> Result<Vec<Row>, RunError> {
    let vocab = gpu.spec().vocab;
    let longest = gpu.spec().context.saturating_sub(GREEDY_TOKENS + 1).max(1);
    let mut rows = Vec::new();
    let mut slots = vec![(None, None)];
    for weights in adapters {
        slots.push((Some(gpu.install_weights(weights)?), Some(cpu.install_weights(weights)?)));
    }
    // Every adapter and the base have a sequence.
    let at_least = |lengths: &[usize]| -> Vec<usize> {
        lengths.iter().copied().cycle().take(lengths.len().max(slots.len())).collect()
    };
    for (name, chunk, lengths) in [
        ("one by one, prompts of 5", 1, vec![5; 1]),
        ("prompts of 37 in chunks of 16", 16, at_least(&[37; 6])),
        ("mixed lengths", 64, at_least(&[1, 130, 17, 64, 33, 250, 2, 95])),
    ] {
        let chunk = chunk.min(gpu.max_rows().min(cpu.max_rows()) / lengths.len()).max(1);
        let pick = |side: usize| -> Vec<Sequence> {
            let slot = |i: usize| {
                if side == 0 { slots[i % slots.len()].0 } else { slots[i % slots.len()].1 }
            };
            lengths
                .iter()
                .enumerate()
                .map(|(i, &length)| Sequence::new(i, length.min(longest), vocab, slot(i)))
                .collect()
        };
        let (mut gpu_runs, mut cpu_runs) = (pick(0), pick(1));
        let (mut wrong, mut differences) = (0, Vec::new());
        for _ in 0..GREEDY_TOKENS {
            let a = step(gpu, &mut gpu_runs, chunk, Some(20))?;
            let b = step(cpu, &mut cpu_runs, chunk, Some(20))?;
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                let margin = match b.top[..] {
                    [(_, first), (_, second), ..] => first - second,
                    _ => f32::INFINITY,
                };
                let off = off_by(&a.top, &b.top);
                wrong += usize::from(a.token != b.token && margin > MARGIN && off <= ROW_TOLERANCE);
                let position = gpu_runs[i].done - 1;
                differences.push(Difference { off, sequence: i, position });
                if gpu_runs[i].done == gpu_runs[i].tokens.len() {
                    gpu_runs[i].tokens.push(a.token);
                    cpu_runs[i].tokens.push(a.token);
                }
            }
        }
        let what = format!(
            "{name}, {} sequences over base and {} adapters",
            lengths.len(),
            adapters.len()
        );
        rows.push(judge(what, wrong, differences));
    }
    Ok(rows)
}

/// The largest difference among the likeliest tokens of `wanted`, likeliest first; infinite if there are none.
fn off_by(found: &[(u32, f32)], wanted: &[(u32, f32)]) -> f32 {
    let off = |&(token, logprob): &(u32, f32)| {
        let found = found.iter().find(|(other, _)| *other == token);
        let off = found.map_or(f32::INFINITY, |(_, found)| (found - logprob).abs());
        // A NaN would be the smallest of all to `max`.
        if off.is_nan() { f32::INFINITY } else { off }
    };
    wanted.iter().take(LIKELIEST).map(off).reduce(f32::max).unwrap_or(f32::INFINITY)
}

/// The verdict over the rows of one comparison, of which `wrong` chose a wrong token.
fn judge(what: String, wrong: usize, mut differences: Vec<Difference>) -> Row {
    differences.sort_by(|a, b| a.off.total_cmp(&b.off));
    let n = differences.len();
    let from_top = |rank: usize| differences[n - 1 - rank];
    let (median, most, worst) = (from_top(n / 2), from_top(n / 100), from_top(0));
    Row {
        what,
        found: format!(
            "{n} tokens, {wrong} wrong, log-probabilities off by {:.4} (median), {:.4} (99 in 100), at most {:.4} \
             (sequence {} at position {})",
            median.off, most.off, worst.off, worst.sequence, worst.position
        ),
        pass: wrong == 0
            && median.off <= MEDIAN_TOLERANCE
            && most.off <= ROW_TOLERANCE
            && worst.off <= WORST_TOLERANCE,
    }
}

/// Decode and prefill times, base and all rows with adapters.
pub(super) fn time(
    gpu: &mut dyn StepRunner,
    slots: &[AdapterSlot],
) -> Result<Vec<Timing>, RunError> {
    let (vocab, max_rows) = (gpu.spec().vocab, gpu.max_rows());
    let mut timings = Vec::new();
    for with_adapters in [false, true] {
        if with_adapters && slots.is_empty() {
            break;
        }
        let adapter = |i: usize| with_adapters.then(|| slots[i % slots.len()]);
        for n in [1, 8, 64] {
            let mut sequences: Vec<Sequence> =
                (0..n).map(|i| Sequence::new(i, 400, vocab, adapter(i))).collect();
            let mut times = Vec::new();
            while sequences[0].done < 320 {
                // The context is filled first, in chunks that fit a step.
                let chunk = if sequences[0].done < 256 { (max_rows / n).min(128) } else { 1 };
                let began = Instant::now();
                step(gpu, &mut sequences, chunk, None)?;
                if chunk == 1 {
                    times.push(began.elapsed().as_secs_f64());
                }
            }
            timings.push(timing(
                format!("decode, {n} sequences, adapters: {with_adapters}"),
                n,
                times,
            ));
        }
        // One prompt; many short ones, of as many adapters; a full step of long ones.
        for (n, length) in [(1, 512), (max_rows / 64, 64), (max_rows / 512, 512)] {
            let mut times = Vec::new();
            for _ in 0..5 {
                let mut sequences: Vec<Sequence> =
                    (0..n).map(|i| Sequence::new(i, length, vocab, adapter(i))).collect();
                let began = Instant::now();
                step(gpu, &mut sequences, length, None)?;
                times.push(began.elapsed().as_secs_f64());
            }
            timings.push(timing(
                format!("prefill, {n} x {length} tokens, adapters: {with_adapters}"),
                n * length,
                times,
            ));
        }
    }
    Ok(timings)
}

fn timing(what: String, tokens: usize, mut times: Vec<f64>) -> Timing {
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    Timing { what, median_ms: median * 1e3, tokens_per_second: tokens as f64 / median }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(wrong: usize, offs: &[f32], usual: f32) -> bool {
        let usual = std::iter::repeat_n(usual, 200 - offs.len());
        let differences = usual
            .chain(offs.iter().copied())
            .enumerate()
            .map(|(position, off)| Difference { off, sequence: 0, position })
            .collect();
        judge(String::new(), wrong, differences).pass
    }

    #[test]
    fn one_row_in_a_hundred_may_be_far_off() {
        assert!(passes(0, &[], 0.006));
        assert!(passes(0, &[0.2, 0.8], 0.006));
        assert!(!passes(0, &[0.2, 0.2, 0.2], 0.006), "too many");
        assert!(!passes(0, &[2.0], 0.006), "too far");
        assert!(!passes(0, &[], 0.03), "all of them");
        assert!(!passes(1, &[], 0.006), "a wrong token");
    }

    #[test]
    fn missing_tokens_and_nan_are_infinitely_far_off() {
        let wanted = [(3, -0.5), (1, -1.0), (2, -3.0)];
        let off = off_by(&[(1, -1.25), (3, -0.5), (2, -3.0)], &wanted);
        assert!((off - 0.25).abs() < 1e-6, "{off}");
        assert!(off_by(&[(3, -0.5), (1, -1.0)], &wanted).is_infinite());
        assert!(off_by(&[(3, -0.5), (1, f32::NAN), (2, -3.0)], &wanted).is_infinite());
        assert!(off_by(&wanted, &[]).is_infinite(), "nothing could be chosen");
    }
}
