//! The last norm, the head and the choice of tokens, for the rows whose logits are wanted.

use crate::{
    model::Activations,
    sampler::{SampledToken, sample},
    spec::ModelSpec,
    step_batch::StepBatch,
};

use super::{
    backend::{CpuBackend, CpuBuffer, CpuMatrix, CpuVector},
    elementwise::RmsNorm,
    epilogue::Epilogue,
    int8_rows::QuantizeRow,
    matmul_f32::F32Tiles,
    matmul_int8::Int8Tiles,
    packed::{BLOCK, Storage},
    project::CHUNKS_PER_THREAD,
    simd::LANES,
    threads::Parts,
};

/// Rows whose logits are in memory at a time.
const HEAD_ROWS_MAX: usize = 32;

/// Memory of the head.
#[derive(Debug)]
pub(crate) struct HeadBuffers {
    /// `[HEAD_ROWS_MAX, hidden]`, padded.
    normed: Vec<f32>,
    hidden: usize,
    /// `[HEAD_ROWS_MAX, vocab]`, padded.
    logits: Vec<f32>,
    vocab: usize,
}

impl HeadBuffers {
    pub(crate) fn new(spec: &ModelSpec, max_rows: usize) -> Self {
        let rows = HEAD_ROWS_MAX.min(max_rows);
        let (hidden, vocab) =
            (spec.hidden.next_multiple_of(BLOCK), spec.vocab.next_multiple_of(LANES));
        Self { normed: vec![0.0; rows * hidden], hidden, logits: vec![0.0; rows * vocab], vocab }
    }
}

impl CpuBackend {
    pub(crate) fn sample_rows(
        &mut self,
        batch: &StepBatch,
        x: &CpuBuffer,
        norm: &CpuVector,
        head: &CpuMatrix,
    ) -> Vec<SampledToken> {
        let mut sampled = vec![SampledToken::none(); batch.sample_rows.len()];
        let rows_max = HEAD_ROWS_MAX.min(self.max_rows);
        for (rows, out) in batch.sample_rows.chunks(rows_max).zip(sampled.chunks_mut(rows_max)) {
            self.logits(rows.iter().map(|row| row.row), x, norm, head);
            let Self { ref mut team, head: ref buffers, ref spec, .. } = *self;
            let out = Parts::new(out);
            team.run(rows.len(), |index, _| {
                let logits = &buffers.logits[index * buffers.vocab..][..spec.vocab];
                out.row(index, 1)[0] = sample(logits, &rows[index]);
            });
        }
        sampled
    }

    /// Writes the logits of at most [`HEAD_ROWS_MAX`] rows.
    fn logits(
        &mut self,
        rows: impl Iterator<Item = usize>,
        x: &CpuBuffer,
        norm: &CpuVector,
        head: &CpuMatrix,
    ) {
        let Self {
            isa,
            activations,
            ref spec,
            ref mut team,
            ref mut int8,
            ref mut scratch,
            head: ref mut buffers,
            ..
        } = *self;
        let matrix = &head.0;
        let quantize =
            activations == Activations::Int8 && matches!(matrix.storage, Storage::Codes(_));
        let (hidden, weight) = (buffers.hidden, &norm.values[..norm.len]);
        let writer = int8.writer(matrix.n_in);
        let mut n_rows = 0;
        for row in rows {
            let out = &mut buffers.normed[n_rows * hidden..][..hidden];
            isa.run(RmsNorm { x: x.row(row), weight, eps: spec.rms_eps, out });
            if quantize {
                isa.run(QuantizeRow { writer: &writer, row: n_rows, x: &out[..matrix.n_in] });
            }
            n_rows += 1;
        }
        let normed = buffers.normed.as_slice();
        let logits = Parts::new(&mut buffers.logits);
        let scratch = Parts::new(scratch);
        let epilogue = Epilogue {
            out: &logits,
            stride: buffers.vocab,
            column: 0,
            accumulate: false,
            bias: None,
            lora: None,
        };
        let per_chunk = matrix.n_tiles().div_ceil(team.n_threads() * CHUNKS_PER_THREAD);
        team.run(matrix.n_tiles().div_ceil(per_chunk), |chunk, thread| {
            let tiles = chunk * per_chunk..matrix.n_tiles().min((chunk + 1) * per_chunk);
            if quantize {
                isa.run(Int8Tiles { matrix, tiles, rows: int8, n_rows, epilogue: &epilogue });
            } else {
                let scratch = &mut scratch.row(thread, 1)[0];
                isa.run(F32Tiles {
                    matrix,
                    tiles,
                    x: normed,
                    x_stride: hidden,
                    n_rows,
                    epilogue: &epilogue,
                    scratch,
                });
            }
        });
    }
}
