//! Writing ONNX files: messages, a graph under construction, and the file beside it that holds the weights.

mod data_file;
mod graph;
pub(crate) mod proto;

pub(crate) use data_file::{DataFile, DataSlice};
pub(crate) use graph::{Dim, Graph, Node, Tensor, entry, int64};
