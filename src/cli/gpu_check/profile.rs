//! Where the time of a step goes, kernel by kernel.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

use pleach_engine::{
    backend::{RunError, StepRunner as _},
    cuda::CudaBackend,
    model::Decoder,
    step_batch::AdapterSlot,
};
use serde::Serialize;

use super::step::{Sequence, step};

/// Steps of which the profile is the mean.
const STEPS: u32 = 5;

/// One kernel's share of a step.
#[derive(Debug, Serialize)]
pub(super) struct Share {
    pub(super) step: String,
    pub(super) kernel: String,
    pub(super) launches: usize,
    pub(super) milliseconds: f64,
}

/// A decode step of 64 sequences and a prefill step of all rows, base and with adapters.
pub(super) fn profile(
    gpu: &mut Decoder<CudaBackend>,
    slots: &[AdapterSlot],
) -> Result<Vec<Share>, RunError> {
    gpu.backend_mut().use_graphs(false);
    let (vocab, max_rows) = (gpu.spec().vocab, gpu.max_rows());
    let mut shares = Vec::new();
    for with_adapters in [false, true] {
        if with_adapters && slots.is_empty() {
            break;
        }
        let adapter = |i: usize| with_adapters.then(|| slots[i % slots.len()]);
        let mut decoding: Vec<Sequence> =
            (0..64).map(|i| Sequence::new(i, 400, vocab, adapter(i))).collect();
        while decoding[0].done < 256 {
            step(gpu, &mut decoding, (max_rows / 64).clamp(1, 128), None)?;
        }
        let mut run = |what: &str, sequences: &mut dyn FnMut() -> Vec<Sequence>, chunk: usize| {
            let mut sequences = sequences();
            gpu.backend_mut().device().begin_profile();
            for _ in 0..STEPS {
                step(gpu, &mut sequences, chunk, None)?;
                if chunk > 1 {
                    for sequence in &mut sequences {
                        sequence.done = 0;
                    }
                }
            }
            for time in gpu.backend_mut().device().end_profile()? {
                shares.push(Share {
                    step: format!("{what}, adapters: {with_adapters}"),
                    kernel: time.kernel,
                    launches: time.n_launches / STEPS as usize,
                    milliseconds: time.milliseconds / f64::from(STEPS),
                });
            }
            Ok::<(), RunError>(())
        };
        run("decode, 64 sequences", &mut || std::mem::take(&mut decoding), 1)?;
        let n = max_rows.div_ceil(512);
        let mut prompts =
            || (0..n).map(|i| Sequence::new(i, max_rows / n, vocab, adapter(i))).collect();
        run(&format!("prefill, {max_rows} rows"), &mut prompts, max_rows / n)?;
    }
    gpu.backend_mut().use_graphs(true);
    for Share { step, kernel, launches, milliseconds } in &shares {
        println!("{step:<44} {kernel:<24} {launches:>5} x {milliseconds:9.3} ms");
    }
    Ok(shares)
}
