//! Rows of the embedding, each under its own adapter.
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use crate::{
    adapter_weights::{LORA_RANK_MAX, SiteWeights},
    spec::ModelSpec,
    step_batch::StepBatch,
};

use super::{
    backend::{CpuBackend, CpuBuffer, CpuMatrix},
    isa::Isa,
    lora::{NO_SLOT, dot_dense},
    memory::Arena,
    packed::{Dense, PackedMatrix},
    simd::{Kernel, LANES, Simd},
};

/// `LoRA` on the embedding: `x[token] += lora_scale * B A[:, token]`.
#[derive(Debug)]
pub(crate) struct ResidentEmbedding {
    lora_scale: f32,
    /// `A` transposed, `[vocab, R]`, columns padded to a multiple of 4 with zeros: a token's column is a row.
    a: PackedMatrix,
    /// `[hidden, R]`, padded in the same way.
    b: PackedMatrix,
}

impl ResidentEmbedding {
    pub(crate) fn pack(weights: &SiteWeights, spec: &ModelSpec, dense: Dense) -> Self {
        let (vocab, rank) = (spec.vocab, weights.rank);
        let arena = &mut Arena::new(0);
        let mut transposed = vec![0.0; weights.a.len()];
        for (r, row) in weights.a.chunks_exact(vocab).enumerate() {
            for (token, value) in row.iter().enumerate() {
                transposed[token * rank + r] = *value;
            }
        }
        Self {
            lora_scale: weights.lora_scale,
            a: PackedMatrix::from_f32(dense, vocab, rank, 4, &transposed, arena),
            b: PackedMatrix::from_f32(dense, spec.hidden, rank, 4, &weights.b, arena),
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.a.n_bytes() + self.b.n_bytes()
    }

    /// Adds the adapter's part to a token's row, padded with zeros to whole tiles.
    fn add(&self, isa: Isa, token: usize, out: &mut [f32]) {
        let mut v = [0.0; LORA_RANK_MAX];
        let v = &mut v[..self.a.n_in];
        self.a.row_values(token, v);
        isa.run(AddTiles { b: &self.b, lora_scale: self.lora_scale, v, out });
    }
}

/// `out += lora_scale * B v`.
struct AddTiles<'a> {
    b: &'a PackedMatrix,
    lora_scale: f32,
    v: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for AddTiles<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        assert_eq!(self.out.len(), self.b.n_tiles() * LANES);
        for (tile, out) in self.out.chunks_exact_mut(LANES).enumerate() {
            // SAFETY: the instruction set is the caller's; `out` has sixteen values.
            unsafe {
                let delta = dot_dense::<S>(self.b, tile, self.v);
                let y = S::load(out.as_ptr());
                S::store(out.as_mut_ptr(), S::fma(S::splat(self.lora_scale), delta, y));
            }
        }
    }
}

impl CpuBackend {
    pub(crate) fn embed_rows(&self, batch: &StepBatch, table: &CpuMatrix, out: &mut CpuBuffer) {
        let hidden = self.spec.hidden;
        for (row, &token) in batch.token_ids.iter().enumerate() {
            let token = token as usize;
            let out = &mut out.values[row * out.stride..][..hidden.next_multiple_of(LANES)];
            let slot = self.plan.slots[row];
            if slot == NO_SLOT {
                table.0.row_values(token, &mut out[..hidden]);
                continue;
            }
            let adapter = self.adapters[slot as usize].as_deref();
            let own = adapter.and_then(|adapter| adapter.own_embedding.as_ref());
            own.unwrap_or(&table.0).row_values(token, &mut out[..hidden]);
            if let Some(lora) = adapter.and_then(|adapter| adapter.embedding.as_ref()) {
                lora.add(self.isa, token, out);
            }
        }
    }
}
