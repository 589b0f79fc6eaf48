//! The end of a step: final norm, head, and the choice of a token for each row that asks for one.

use crate::{
    backend::RunError,
    cuda::{
        CudaError, Device, DevicePtr, EDITS_MAX, PinnedBuffer, SamplePlan,
        ops::{LogitEdit, SampleParams, SampleResult},
        plain::{bytes_of_slice, bytes_of_slice_mut},
    },
    sampler::{SampledToken, sample},
    spec::ModelSpec,
    step_batch::{SampleRow, StepBatch},
};

use super::{
    CudaBackend, CudaBuffer, CudaMatrix, CudaVector, ROW_ALIGN,
    head::{HeadRow, head_rows},
    step_graphs::{AdapterKernels, StepMode},
    step_inputs::StepInputs,
    word,
};

/// Buffers of the rows that are sampled at a time.
#[derive(Debug)]
pub(super) struct Sampling {
    /// f16 `[rows][hidden]`.
    x: DevicePtr,
    results: DevicePtr,
    host_results: PinnedBuffer,
    /// [`LogitEdit`] `[EDITS_MAX]`; the kernel writes there, too.
    edits: DevicePtr,
    host_edits: PinnedBuffer,
    /// Of the rows written last.
    plan: SamplePlan,
    /// Host copies, kept to save allocations.
    read: Vec<SampleResult>,
    logits: Vec<f32>,
}

impl Sampling {
    pub(super) fn new(
        device: &mut Device,
        spec: &ModelSpec,
        n_rows: usize,
    ) -> Result<Self, RunError> {
        let hidden = spec.hidden.next_multiple_of(ROW_ALIGN);
        let result_bytes = n_rows * size_of::<SampleResult>();
        Ok(Self {
            x: device.alloc_upload("sampled rows", &vec![0u16; n_rows * hidden])?,
            results: device.alloc("sampled tokens", result_bytes)?,
            host_results: device.pinned(result_bytes)?,
            edits: device.alloc("edits of logits", EDITS_MAX * size_of::<LogitEdit>())?,
            host_edits: device.pinned(EDITS_MAX * size_of::<LogitEdit>())?,
            plan: SamplePlan::default(),
            read: vec![SampleResult::EMPTY; n_rows],
            logits: vec![0.0; spec.vocab],
        })
    }

    /// Writes what `rows` ask for, of which the head makes `heads`; edits of logits are sent at once, the rest with the inputs.
    pub(super) fn write(
        &mut self,
        device: &Device,
        inputs: &mut StepInputs,
        rows: &[SampleRow],
        heads: &[HeadRow],
    ) -> Result<(), RunError> {
        self.plan.plan(rows, self.logits.len());
        let edits = bytes_of_slice(self.plan.edits());
        if !edits.is_empty() {
            self.host_edits.bytes_mut()?[..edits.len()].copy_from_slice(edits);
            let n_bytes = edits.len();
            device.upload_async(&mut self.host_edits, self.edits, n_bytes)?;
        }
        inputs.write_sampling(heads, self.plan.specs())
    }
}

impl CudaBackend {
    /// Runs what the step's mode left to run, and reads what was chosen.
    pub(super) fn finish_step(
        &mut self,
        batch: &StepBatch,
        x: &CudaBuffer,
        norm: CudaVector,
        head: &CudaMatrix,
    ) -> Result<Vec<SampledToken>, RunError> {
        let mut sampled = Vec::with_capacity(batch.sample_rows.len());
        match self.mode {
            StepMode::Launch => {
                let at_once = self.launch_inputs.capacity.sample_rows;
                for (index, rows) in batch.sample_rows.chunks(at_once).enumerate() {
                    if index > 0 {
                        let heads = head_rows(batch, rows, &self.residents);
                        let inputs = &mut self.launch_inputs;
                        self.sampling.write(&self.device, inputs, rows, &heads)?;
                        self.launch_inputs.send_head(&self.device)?;
                    }
                    self.enqueue_sampling(x, norm, head, word(rows.len()))?;
                    self.read_results(rows, head, &mut sampled)?;
                }
                if batch.sample_rows.is_empty() {
                    self.device.synchronize()?;
                }
            }
            StepMode::Capture(key) => {
                let enqueued = match self.failed.take() {
                    Some(error) => Err(error),
                    None => self.enqueue_sampling(x, norm, head, word(key.rows)),
                };
                // The stream must leave capture mode whatever happened.
                let graph = self.device.end_capture();
                enqueued?;
                let graph = graph?;
                graph.replay()?;
                self.graphs.insert(key, graph);
                self.read_results(&batch.sample_rows, head, &mut sampled)?;
            }
            StepMode::Replay(key) => {
                if let Some(graph) = self.graphs.get(key) {
                    graph.replay()?;
                }
                self.read_results(&batch.sample_rows, head, &mut sampled)?;
            }
        }
        self.failed.take().map_or(Ok(sampled), |error| Err(error.into()))
    }

    fn enqueue_sampling(
        &self,
        x: &CudaBuffer,
        norm: CudaVector,
        head: &CudaMatrix,
        n_rows: u32,
    ) -> Result<(), CudaError> {
        let hidden = self.spec.hidden.next_multiple_of(ROW_ALIGN);
        let inputs = self.inputs();
        self.norm(x, inputs.sample_rows, norm, self.sampling.x, hidden)
            .launch(&self.device, n_rows)?;
        self.multiply(&[head], self.sampling.x, hidden, n_rows, true)?;
        if self.adapters == AdapterKernels::WithEnds {
            self.adapt_logits(head, self.sampling.x, hidden, n_rows)?;
        }
        SampleParams {
            step: inputs.header,
            logits: self.planes,
            specs: inputs.specs,
            edits: self.sampling.edits,
            results: self.sampling.results,
            stride: word(head.n_out_padded),
            vocab: word(self.spec.vocab),
        }
        .launch(&self.device, n_rows)
    }

    /// Waits for the rows' results; those that only the host can choose are chosen from their logits.
    fn read_results(
        &mut self,
        rows: &[SampleRow],
        head: &CudaMatrix,
        sampled: &mut Vec<SampledToken>,
    ) -> Result<(), RunError> {
        let Self { device, sampling, planes, .. } = self;
        let n_bytes = rows.len() * size_of::<SampleResult>();
        device.download_async(sampling.results, &mut sampling.host_results, n_bytes)?;
        let read = &mut sampling.read[..rows.len()];
        bytes_of_slice_mut(read).copy_from_slice(&sampling.host_results.bytes_mut()?[..n_bytes]);
        for (index, (row, result)) in rows.iter().zip(read.iter()).enumerate() {
            sampled.push(if sampling.plan.on_host(index) {
                let at = planes.at(index * head.n_out_padded * 4);
                device.download(at, &mut sampling.logits)?;
                sample(&sampling.logits, row)
            } else {
                result.into()
            });
        }
        Ok(())
    }
}
