//! Adapters beside the graph: which of its sites have inputs, and the files that fill them.

mod adapter_file;
mod factors;
mod slots;

pub(crate) use adapter_file::write_adapter;
pub(crate) use factors::factors;
pub(crate) use slots::slots;
