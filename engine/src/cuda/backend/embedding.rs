//! Rows of the embedding, each under its own adapter.

use crate::{
    cuda::{
        CudaError,
        ops::{EmbedAdaptersParams, EmbedParams},
    },
    site::Site,
};

use super::{
    CudaBackend, CudaBuffer, CudaMatrix, ROW_ALIGN, site_index, step_graphs::AdapterKernels, word,
};

impl CudaBackend {
    pub(super) fn try_embed(&self, table: &CudaMatrix, out: &CudaBuffer) -> Result<(), CudaError> {
        let (inputs, rows) = (self.inputs(), self.launch_rows());
        let (vocab, width) = (word(self.spec.vocab), word(self.spec.hidden));
        EmbedParams {
            step: inputs.header,
            table: table.ptr,
            token_ids: inputs.token_ids,
            x: out.wide,
            vocab,
            width,
            width_padded: word(table.n_in_padded),
            x_stride: word(out.stride),
            format: table.format.ggml_type(),
            reserved: 0,
        }
        .launch(&self.device, rows)?;
        if self.adapters != AdapterKernels::WithEnds {
            return Ok(());
        }
        EmbedAdaptersParams {
            step: inputs.header,
            token_ids: inputs.token_ids,
            slots: inputs.slots,
            sites: self.residents.sites,
            own: self.residents.own,
            x: out.wide,
            vocab,
            width,
            own_stride: word(self.spec.hidden.next_multiple_of(ROW_ALIGN)),
            x_stride: word(out.stride),
            n_sites: word(self.n_sites()),
            site: word(site_index(&self.spec, Site::EMBEDDING)),
        }
        .launch(&self.device, rows)
    }
}
