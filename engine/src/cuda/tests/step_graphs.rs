//! Decode steps as graphs, on a device without a GPU: which launches a step makes, and that those of one batch are those
//! of every other of its bucket.

use std::sync::Arc;

use crate::{
    backend::StepRunner as _,
    cuda::{CudaBackend, CudaOptions, Device, DeviceInfo, RecordedLaunch},
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    model::{Decoder, random_adapter, random_weights},
    spec::{Architecture, ModelSpec, RopeScaling},
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
};

fn decoder() -> Decoder<CudaBackend> {
    let spec = ModelSpec {
        architecture: Architecture::Llama,
        name: "tiny".to_owned(),
        n_layers: 2,
        hidden: 128,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        ffn: 192,
        vocab: 320,
        context: 256,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
    };
    let mut device = Device::fake(DeviceInfo {
        ordinal: 0,
        name: "fake".to_owned(),
        compute_capability: (9, 0),
        n_sms: 132,
        memory_bytes: 256 << 20,
        l2_bytes: 1 << 20,
        shared_bytes_max: 227 << 10,
        driver_version: 13_000,
    });
    device.reserve(256 << 20).unwrap();
    let options = CudaOptions { kv_bytes: 8 << 20, adapter_bytes: 1 << 20, max_rows: 44 };
    let mut backend = CudaBackend::new(device, &spec, options).unwrap();
    let weights = random_weights(&spec, &mut backend).unwrap();
    Decoder::new(spec, backend, weights).unwrap()
}

/// Sequences of `(position of their last row, rows, adapter)`, the last row of each sampled.
fn batch(sequences: &[(usize, usize, Option<AdapterSlot>)]) -> StepBatch {
    let mut batch = StepBatch::default();
    for (index, &(position, n_rows, adapter)) in sequences.iter().enumerate() {
        let first = batch.n_rows();
        batch.token_ids.extend((0..n_rows).map(|row| u32::try_from(7 * index + row).unwrap()));
        batch.positions.extend(position + 1 - n_rows..=position);
        let n_blocks = (position + 1).div_ceil(KV_BLOCK_TOKENS);
        batch.sequences.push(StepSequence {
            rows: first..first + n_rows,
            block_table: (0..n_blocks)
                .map(|block| KvBlockId(u32::try_from(index * 16 + block).unwrap()))
                .collect(),
            adapter,
        });
        batch.sample_rows.push(SampleRow {
            row: first + n_rows - 1,
            params: Arc::default(),
            sample_index: 0,
            history: Arc::default(),
            n_prompt: 0,
            banned: Vec::new(),
            forced: None,
        });
    }
    batch
}

fn launches(decoder: &mut Decoder<CudaBackend>, batch: &StepBatch) -> Vec<RecordedLaunch> {
    let device = |decoder: &mut Decoder<CudaBackend>| {
        decoder.backend_mut().device().take_launches().unwrap()
    };
    device(decoder);
    let sampled = decoder.step(batch).unwrap();
    assert_eq!(sampled.len(), batch.sample_rows.len());
    device(decoder)
}

#[test]
fn the_graph_of_one_batch_serves_every_other_of_its_bucket() {
    let mut decoder = decoder();
    let gone = decoder.install_weights(&random_adapter(decoder.spec(), 8, 1)).unwrap();
    let a = Some(gone);
    let b = Some(decoder.install_weights(&random_adapter(decoder.spec(), 3, 2)).unwrap());

    // The first step captures and runs; the others replay.
    let first = launches(&mut decoder, &batch(&[(5, 1, a), (9, 1, None), (70, 1, b)]));
    assert!(first.len() > 20, "{} launches", first.len());
    for other in [
        batch(&[(5, 1, a), (9, 1, None), (70, 1, b)]),
        batch(&[(200, 1, b), (0, 1, b), (17, 1, b), (31, 1, None)]),
        batch(&[(1, 1, None), (2, 1, None), (3, 1, a)]),
    ] {
        assert_eq!(launches(&mut decoder, &other), first);
    }
    assert_eq!(decoder.backend_mut().n_graphs(), 1);

    // Without adapters their kernels are not in it.
    let base = launches(&mut decoder, &batch(&[(5, 1, None), (9, 1, None), (1, 1, None)]));
    assert!(base.len() < first.len());
    assert!(base.iter().all(|launch| !launch.kernel.starts_with("lora_shrink")));
    assert_eq!(decoder.backend_mut().n_graphs(), 2);

    // Capturing afresh for another batch of the bucket gives the same launches, byte by byte.
    decoder.remove_adapter(gone);
    let c = Some(decoder.install_weights(&random_adapter(decoder.spec(), 16, 3)).unwrap());
    let mut again = self::decoder();
    again.install_weights(&random_adapter(again.spec(), 16, 3)).unwrap();
    let fresh = launches(&mut again, &batch(&[(12, 1, c), (13, 1, c), (14, 1, c), (90, 1, c)]));
    assert_eq!(fresh, first);
}

#[test]
fn prefill_and_wide_steps_are_launched_one_by_one() {
    let mut decoder = decoder();
    let mixed = launches(&mut decoder, &batch(&[(20, 21, None), (9, 1, None)]));
    assert!(mixed.iter().any(|launch| launch.kernel.starts_with("attention_tiles")));
    assert_eq!(decoder.backend_mut().n_graphs(), 0);

    // A bucket ends at the largest step.
    let all: Vec<_> = (0..44).map(|i| (i, 1, None)).collect();
    launches(&mut decoder, &batch(&all[..33]));
    launches(&mut decoder, &batch(&all));
    assert_eq!(decoder.backend_mut().n_graphs(), 1);

    decoder.backend_mut().use_graphs(false);
    let eager = launches(&mut decoder, &batch(&all));
    decoder.backend_mut().use_graphs(true);
    let replayed = launches(&mut decoder, &batch(&all));
    let names = |launches: &[RecordedLaunch]| -> Vec<String> {
        launches.iter().map(|launch| launch.kernel.clone()).collect()
    };
    assert_eq!(names(&eager), names(&replayed), "a graph is the same kernels");
}

#[test]
fn a_step_that_does_not_fit_is_refused_by_name() {
    let mut decoder = decoder();
    let error = decoder.step(&batch(&[(44, 45, None)])).unwrap_err().to_string();
    assert!(error.contains("45 rows in a step of 44"), "{error}");
    let mut short = batch(&[(40, 1, None)]);
    short.sequences[0].block_table.pop();
    let error = decoder.step(&short).unwrap_err().to_string();
    assert!(error.contains("a block table of 2 for 3 blocks"), "{error}");
    // Nothing is left behind: the next step runs.
    decoder.step(&batch(&[(40, 1, None)])).unwrap();
}
