//! Models and adapters of random weights, for measuring shapes that no file here has.

use crate::{
    adapter_weights::{AdapterWeights, SiteWeights},
    backend::{Backend, HeadNorms, Linear, MatrixSource, Projection, RunError},
    quant::BlockFormat,
    site::{Site, TargetModule},
    spec::{Architecture, ModelSpec},
};

use super::decoder::{DecoderWeights, Layer};

/// Different rows of a random matrix: rows repeat after so many, which no kernel can profit from.
const ROWS: usize = 61;
/// f16 scale of every block, about 0.01.
const SCALE: [u8; 2] = 0x211f_u16.to_le_bytes();

/// Weights of a shape, all linears in `Q4_0`, embedding and head too.
///
/// # Errors
/// What the device refuses.
pub fn random_weights<B: Backend>(
    spec: &ModelSpec,
    backend: &mut B,
) -> Result<DecoderWeights<B::Matrix, B::Vector>, RunError> {
    let linear = |backend: &mut B, layer: usize, module: TargetModule| -> Result<_, RunError> {
        let shape = spec.linear_shape(module);
        Ok(Linear {
            module,
            matrix: random_matrix(backend, shape, layer * 7 + module.index())?,
            bias: None,
        })
    };
    let projection =
        |backend: &mut B, layer: usize, modules: &[TargetModule]| -> Result<_, RunError> {
            let parts = modules
                .iter()
                .map(|&module| linear(backend, layer, module))
                .collect::<Result<_, _>>()?;
            Ok(Projection { layer, parts })
        };
    let ones = vec![1f32; spec.hidden.max(spec.head_dim)];
    let mut layers = Vec::new();
    for layer in 0..spec.n_layers {
        use TargetModule as M;
        let head_norms = if spec.architecture == Architecture::Qwen3 {
            let norm = &ones[..spec.head_dim];
            Some(HeadNorms { q: backend.vector(norm)?, k: backend.vector(norm)? })
        } else {
            None
        };
        layers.push(Layer {
            attention_norm: backend.vector(&ones[..spec.hidden])?,
            qkv: projection(backend, layer, &[M::QProj, M::KProj, M::VProj])?,
            head_norms,
            attention_out: projection(backend, layer, &[M::OProj])?,
            ffn_norm: backend.vector(&ones[..spec.hidden])?,
            gate_up: projection(backend, layer, &[M::GateProj, M::UpProj])?,
            down: projection(backend, layer, &[M::DownProj])?,
        });
    }
    let table = (spec.vocab, spec.hidden);
    Ok(DecoderWeights {
        embedding: random_matrix(backend, table, 1_000_003)?,
        layers,
        final_norm: backend.vector(&ones[..spec.hidden])?,
        head: Some(random_matrix(backend, table, 1_000_033)?),
    })
}

/// Small random values, between −0.01 and 0.01.
pub(super) struct Small(u32);

impl Small {
    pub(super) fn new(seed: u32) -> Self {
        Self(seed.wrapping_mul(2_654_435_769) | 1)
    }

    pub(super) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (self.0 >> 8) as f32 / 16_777_216.0 * 0.02 - 0.01
            })
            .collect()
    }
}

/// An adapter with small random weights at every site.
pub fn random_adapter(spec: &ModelSpec, rank: usize, seed: u32) -> AdapterWeights {
    let mut random = Small::new(seed);
    let sites =
        (0..spec.n_layers).flat_map(|layer| TargetModule::ALL.map(|module| Site { layer, module }));
    let sites = sites.map(|site| {
        let (n_out, n_in) = spec.linear_shape(site.module);
        let (a, b) = (random.values(rank * n_in), random.values(rank * n_out));
        SiteWeights::lora(site, rank, 1.0, a, b)
    });
    AdapterWeights { sites: sites.collect(), ..AdapterWeights::default() }
}

fn random_matrix<B: Backend>(
    backend: &mut B,
    (n_out, n_in): (usize, usize),
    seed: usize,
) -> Result<B::Matrix, RunError> {
    let format = BlockFormat::Q4_0;
    let row_bytes = format
        .row_bytes(n_in)
        .ok_or_else(|| RunError::Device(format!("{n_in} is no multiple of 32")))?;
    let mut state = seed as u64;
    let mut bytes: Vec<u8> = (0..ROWS * row_bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()[7]
        })
        .collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        block[..2].copy_from_slice(&SCALE);
    }
    let row = |n: usize| &bytes[n % ROWS * row_bytes..][..row_bytes];
    backend.matrix(&MatrixSource { name: "random", format, n_out, n_in, row: &row })
}
