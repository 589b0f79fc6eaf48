//! Our engine, step by step, without scheduler.

use std::sync::Arc;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::{RunError, StepRunner as _},
    cpu::{CpuBackend, HEAD_ROWS_MAX, Isa},
    gguf::GgufFile,
    kv::{KV_BLOCK_TOKENS, KvBlockId, kv_blocks_for},
    model::{Activations, CpuOptions, Decoder, LoadError, load_cpu, read_spec},
    sampler::SamplingParams,
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
};

/// A model and sequences of its own.
pub(super) struct Native {
    decoder: Decoder<CpuBackend>,
    vocab: usize,
    blocks_per_sequence: usize,
    params: Arc<SamplingParams>,
}

/// One sequence's part of a step.
pub(super) struct Part<'a> {
    /// Which of the sequences.
    pub(super) sequence: usize,
    pub(super) tokens: &'a [u32],
    /// Position of the first token.
    pub(super) first: usize,
    pub(super) adapter: Option<AdapterSlot>,
}

impl Native {
    /// With room for so many sequences of so many tokens, and steps of so many rows.
    pub(super) fn load(
        file: &GgufFile,
        activations: Activations,
        threads: usize,
        [sequences, tokens, rows]: [usize; 3],
    ) -> Result<Self, LoadError> {
        let spec = read_spec(file)?;
        let element = if activations == Activations::F32 { 4 } else { 2 };
        let per_block = 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * KV_BLOCK_TOKENS;
        let blocks_per_sequence = kv_blocks_for(tokens);
        let options = CpuOptions {
            isa: Isa::detect(),
            threads,
            activations,
            kv_bytes: per_block * element * (sequences * blocks_per_sequence).max(2),
            adapter_bytes: usize::MAX / 2,
            max_rows: rows.max(HEAD_ROWS_MAX),
        };
        let decoder = load_cpu(file, options)?;
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let params = Arc::new(greedy);
        Ok(Self { decoder, vocab: spec.vocab, blocks_per_sequence, params })
    }

    pub(super) fn install(&mut self, weights: &AdapterWeights) -> Result<AdapterSlot, RunError> {
        self.decoder.install_weights(weights)
    }

    pub(super) fn remove(&mut self, slot: AdapterSlot) {
        self.decoder.remove_adapter(slot);
    }

    /// One step; the greedy token of the last row of each part, or of every row.
    pub(super) fn step(
        &mut self,
        parts: &[Part<'_>],
        all_rows: bool,
    ) -> Result<Vec<u32>, RunError> {
        let mut batch = StepBatch::default();
        for part in parts {
            let first = batch.n_rows();
            batch.token_ids.extend_from_slice(part.tokens);
            batch.positions.extend(part.first..part.first + part.tokens.len());
            let rows = first..batch.n_rows();
            let wanted = if all_rows { rows.clone() } else { rows.end - 1..rows.end };
            batch.sample_rows.extend(wanted.map(|row| SampleRow {
                row,
                params: Arc::clone(&self.params),
                sample_index: 0,
                history: Arc::default(),
                n_prompt: 0,
                banned: Vec::new(),
                forced: None,
            }));
            let first_block = part.sequence * self.blocks_per_sequence;
            let n_blocks = kv_blocks_for(part.first + part.tokens.len());
            let block_table = (first_block..first_block + n_blocks)
                .map(|block| KvBlockId(u32::try_from(block).unwrap_or(u32::MAX)))
                .collect();
            batch.sequences.push(StepSequence { rows, block_table, adapter: part.adapter });
        }
        Ok(self.decoder.step(&batch)?.into_iter().map(|sampled| sampled.token).collect())
    }

    /// Logits of every token of a sequence from its beginning on, `[tokens, vocab]`.
    pub(super) fn logits(
        &mut self,
        tokens: &[u32],
        adapter: Option<AdapterSlot>,
    ) -> Result<Vec<f32>, RunError> {
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab);
        for (index, chunk) in tokens.chunks(HEAD_ROWS_MAX).enumerate() {
            let part = Part { sequence: 0, tokens: chunk, first: index * HEAD_ROWS_MAX, adapter };
            self.step(&[part], true)?;
            for row in self.decoder.backend_mut().last_logits(chunk.len()) {
                logits.extend_from_slice(row);
            }
        }
        Ok(logits)
    }

    /// The prompt and a greedy answer of so many tokens, which does not end before.
    pub(super) fn continued(
        &mut self,
        prompt: &[u32],
        n_tokens: usize,
        adapter: Option<AdapterSlot>,
    ) -> Result<Vec<u32>, RunError> {
        let mut tokens = prompt.to_vec();
        let mut done = 0;
        while tokens.len() < prompt.len() + n_tokens {
            let end = tokens.len().min(done + HEAD_ROWS_MAX);
            let part = Part { sequence: 0, tokens: &tokens[done..end], first: done, adapter };
            let next = self.step(&[part], false)?;
            done = end;
            if done == tokens.len() {
                tokens.extend(next);
            }
        }
        Ok(tokens)
    }
}
