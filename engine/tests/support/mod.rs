//! Runs sequences step by step on a model, without scheduler or threads.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

pub(crate) mod crowd;
pub(crate) mod mixed;
pub(crate) mod random;
pub(crate) mod through_engine;
pub(crate) mod wanted;

use std::{path::PathBuf, sync::Arc};

use pleach_engine::{
    backend::StepRunner,
    cpu::{CpuBackend, Isa},
    gguf::GgufFile,
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    model::{Activations, CpuOptions, Decoder, load_cpu},
    sampler::{SampledToken, SamplingParams},
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
};

/// A path under the workspace's root.
fn workspace(path: &str) -> PathBuf {
    let member = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = member.ancestors().find(|folder| folder.join("tests/fixtures").is_dir()).unwrap();
    root.join(path)
}

/// `tests/fixtures` of the workspace.
pub(crate) fn fixtures() -> PathBuf {
    workspace("tests/fixtures")
}

/// The default model.
pub(crate) fn default_model() -> PathBuf {
    pleach_test_setup::default_model()
}

/// Instruction sets of this processor; names the missing ones.
pub(crate) fn isas() -> Vec<Isa> {
    let (here, missing): (Vec<_>, Vec<_>) =
        Isa::ALL.into_iter().partition(|isa| isa.is_available());
    for isa in missing {
        eprintln!("skipped: no {isa} on this processor");
    }
    here
}

pub(crate) fn load(
    path: &std::path::Path,
    isa: Isa,
    threads: usize,
    activations: Activations,
) -> Decoder<CpuBackend> {
    let file = GgufFile::open(path).unwrap();
    load_cpu(
        &file,
        CpuOptions {
            isa,
            threads,
            activations,
            kv_bytes: 256 << 20,
            adapter_bytes: 1 << 30,
            max_rows: 256,
        },
    )
    .unwrap()
}

/// One sequence being run by hand.
pub(crate) struct Run {
    pub(crate) tokens: Vec<u32>,
    pub(crate) done: usize,
    pub(crate) blocks: Vec<KvBlockId>,
    pub(crate) adapter: Option<AdapterSlot>,
}

impl Run {
    /// Blocks `first_block..` of the pool belong to it.
    pub(crate) fn new(tokens: &[u32], first_block: u32, adapter: Option<AdapterSlot>) -> Self {
        Self::in_blocks(tokens, first_block..first_block + 160, adapter)
    }

    /// These blocks belong to it.
    pub(crate) fn in_blocks(
        tokens: &[u32],
        blocks: std::ops::Range<u32>,
        adapter: Option<AdapterSlot>,
    ) -> Self {
        Self { tokens: tokens.to_vec(), done: 0, blocks: blocks.map(KvBlockId).collect(), adapter }
    }
}

pub(crate) fn params(logprobs: u32) -> Arc<SamplingParams> {
    Arc::new(SamplingParams {
        temperature: 0.0,
        logprobs: Some(logprobs),
        ..SamplingParams::default()
    })
}

/// A step of `chunks[i]` rows of `runs[i]`; samples every row if `all`, else the last row of each.
pub(crate) fn step(
    runner: &mut dyn StepRunner,
    runs: &mut [&mut Run],
    chunks: &[usize],
    logprobs: u32,
    all: bool,
) -> Vec<SampledToken> {
    let mut batch = StepBatch::default();
    for (run, &chunk) in runs.iter_mut().zip(chunks) {
        let first = batch.n_rows();
        for position in run.done..run.done + chunk {
            batch.token_ids.push(run.tokens[position]);
            batch.positions.push(position);
        }
        let rows = first..batch.n_rows();
        for row in rows.clone() {
            if all || row + 1 == rows.end {
                batch.sample_rows.push(SampleRow {
                    row,
                    params: params(logprobs),
                    sample_index: 0,
                    history: Arc::default(),
                    n_prompt: 0,
                    banned: Vec::new(),
                    forced: None,
                });
            }
        }
        run.done += chunk;
        let n_blocks = run.done.div_ceil(KV_BLOCK_TOKENS);
        batch.sequences.push(StepSequence {
            rows,
            block_table: run.blocks[..n_blocks].to_vec(),
            adapter: run.adapter,
        });
    }
    runner.step(&batch).unwrap()
}

/// Prefill in chunks of at most `chunk`; the sampled tokens of every position.
pub(crate) fn prefill_all(
    runner: &mut dyn StepRunner,
    run: &mut Run,
    chunk: usize,
    logprobs: u32,
) -> Vec<SampledToken> {
    let mut sampled = Vec::new();
    while run.done < run.tokens.len() {
        let n = chunk.min(run.tokens.len() - run.done);
        sampled.extend(step(runner, &mut [run], &[n], logprobs, true));
    }
    sampled
}

/// Greedy tokens with log-probabilities, after a prefill in chunks.
pub(crate) fn greedy(
    runner: &mut dyn StepRunner,
    run: &mut Run,
    chunk: usize,
    n_tokens: usize,
) -> Vec<(u32, f32)> {
    let mut out = Vec::new();
    while out.len() < n_tokens {
        let n = chunk.min(run.tokens.len() - run.done);
        let sampled = step(runner, &mut [run], &[n], 0, false).remove(0);
        if run.done == run.tokens.len() {
            run.tokens.push(sampled.token);
            out.push((sampled.token, sampled.logprob));
        }
    }
    out
}

/// Log-probabilities of all tokens of every row of logits `[T, V]`.
pub(crate) fn log_probs(logits: &[f32], vocab: usize) -> Vec<Vec<f64>> {
    logits
        .chunks_exact(vocab)
        .map(|row| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            row.iter().map(|v| f64::from(v - max) - sum.ln()).collect()
        })
        .collect()
}

/// Tensors of a safetensors file.
pub(crate) struct Tensors(Vec<u8>);

impl Tensors {
    pub(crate) fn open(path: &std::path::Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn raw(&self, name: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}"));
        let (chunks, rest) = tensor.data().as_chunks::<4>();
        assert!(rest.is_empty());
        (tensor.shape().to_vec(), chunks.to_vec())
    }

    pub(crate) fn f32s(&self, name: &str) -> Vec<f32> {
        self.raw(name).1.into_iter().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn u32s(&self, name: &str) -> Vec<u32> {
        self.raw(name)
            .1
            .into_iter()
            .map(|b| u32::try_from(i32::from_le_bytes(b)).unwrap())
            .collect()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.raw(name).0
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(ToString::to_string).collect()
    }
}

/// Log-probabilities of the given next tokens of up to `chunk` positions.
pub(crate) fn score(runner: &mut dyn StepRunner, run: &mut Run, chunk: usize) -> Vec<f32> {
    let first = run.done;
    let n = chunk.min(run.tokens.len() - first);
    let mut batch = StepBatch {
        token_ids: run.tokens[first..first + n].to_vec(),
        positions: (first..first + n).collect(),
        ..StepBatch::default()
    };
    run.done += n;
    let block_table = run.blocks[..run.done.div_ceil(KV_BLOCK_TOKENS)].to_vec();
    batch.sequences.push(StepSequence { rows: 0..n, block_table, adapter: run.adapter });
    for row in 0..n {
        if let Some(&next) = run.tokens.get(first + row + 1) {
            batch.sample_rows.push(SampleRow {
                row,
                params: params(0),
                sample_index: 0,
                history: Arc::default(),
                n_prompt: 0,
                banned: Vec::new(),
                forced: Some(next),
            });
        }
    }
    runner.step(&batch).unwrap().into_iter().map(|sampled| sampled.logprob).collect()
}
