//! A graph under construction: nodes in order, initializers of which the large ones go to the data file at once.

use std::collections::HashMap;

use crate::error::ExportError;

use super::{
    DataFile, DataSlice,
    proto::{
        AttributeProto, AttributeType, DataType, Dimension, DimensionProto, GraphProto, NodeProto,
        StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
        ValueInfoProto,
    },
};

/// Tensors below this many bytes are part of the graph's own file: runtimes read shapes from there.
const INLINE_BYTES_MAX: usize = 1024;

/// A dimension of an input or output.
#[derive(Clone, Debug)]
pub(crate) enum Dim {
    Is(usize),
    /// Equal wherever the name is.
    Named(String),
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self::Is(size)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    op: &'static str,
    domain: &'static str,
    inputs: Vec<String>,
    attributes: Vec<AttributeProto>,
}

impl Node {
    /// Of ONNX's own operators.
    pub(crate) fn new<S: Into<String>>(
        op: &'static str,
        inputs: impl IntoIterator<Item = S>,
    ) -> Self {
        let inputs = inputs.into_iter().map(Into::into).collect();
        Self { op, domain: "", inputs, attributes: Vec::new() }
    }

    /// Of ONNX Runtime's own operators.
    pub(crate) fn microsoft(mut self) -> Self {
        self.domain = "com.microsoft";
        self
    }

    pub(crate) fn int(self, name: &str, value: usize) -> Self {
        self.signed(name, int64(value))
    }

    pub(crate) fn signed(mut self, name: &str, value: i64) -> Self {
        self.attributes
            .push(AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) });
        self
    }

    pub(crate) fn float(mut self, name: &str, value: f32) -> Self {
        self.attributes
            .push(AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) });
        self
    }

    pub(crate) fn ints(mut self, name: &str, ints: Vec<i64>) -> Self {
        self.attributes.push(AttributeProto { ints, ..attribute(name, AttributeType::Ints) });
        self
    }
}

fn attribute(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(r#type.into()),
        ..AttributeProto::default()
    }
}

/// Name, type and shape of an initializer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) data_type: DataType,
    pub(crate) dims: &'a [usize],
}

/// A graph and its data file.
#[derive(Debug)]
pub(crate) struct Graph<'a> {
    pub(crate) data: &'a mut DataFile,
    /// Name of the data file, as the graph's file tells it.
    location: String,
    proto: GraphProto,
    /// Small constants by their values, so that none is there twice.
    constants: HashMap<(Vec<usize>, Vec<i64>), String>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(name: &str, data: &'a mut DataFile, location: &str) -> Self {
        let proto = GraphProto { name: Some(name.to_owned()), ..GraphProto::default() };
        Self { data, location: location.to_owned(), proto, constants: HashMap::new() }
    }

    /// Adds a node with one output; the output's name. `path` is unique in the graph.
    pub(crate) fn add(&mut self, path: &str, node: Node) -> String {
        let output = format!("{path}/output");
        self.add_to(path, node, vec![output.clone()]);
        output
    }

    /// Adds a node whose outputs have these names; an empty one is not wanted.
    pub(crate) fn add_to(&mut self, path: &str, node: Node, outputs: Vec<String>) {
        self.proto.node.push(NodeProto {
            input: node.inputs,
            output: outputs,
            name: Some(path.to_owned()),
            op_type: Some(node.op.to_owned()),
            attribute: node.attributes,
            domain: Some(node.domain.to_owned()),
        });
    }

    pub(crate) fn input(&mut self, name: &str, data_type: DataType, dims: &[Dim]) {
        self.proto.input.push(value_info(name, data_type, dims));
    }

    pub(crate) fn output(&mut self, name: &str, data_type: DataType, dims: &[Dim]) {
        self.proto.output.push(value_info(name, data_type, dims));
    }

    /// An int64 constant of these dimensions (none: a scalar); its name.
    pub(crate) fn int64s(&mut self, dims: &[usize], values: &[i64]) -> String {
        let key = (dims.to_vec(), values.to_vec());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let listed: Vec<String> = values.iter().map(i64::to_string).collect();
        let rank = if dims.is_empty() { "scalar" } else { "list" };
        let name = format!("/constants/{rank}/{}", listed.join("_"));
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.inline(Tensor { name: &name, data_type: DataType::Int64, dims }, bytes);
        self.constants.insert(key, name.clone());
        name
    }

    /// A tensor of floats; its name.
    pub(crate) fn floats(
        &mut self,
        name: &str,
        dims: &[usize],
        values: &[f32],
    ) -> Result<String, ExportError> {
        let tensor = Tensor { name, data_type: DataType::Float, dims };
        if size_of_val(values) < INLINE_BYTES_MAX {
            self.inline(tensor, values.iter().flat_map(|value| value.to_le_bytes()).collect());
        } else {
            self.data.begin()?;
            self.data.floats(values)?;
            let slice = self.data.end();
            self.external(tensor, slice);
        }
        Ok(name.to_owned())
    }

    /// A tensor within the graph's own file.
    pub(crate) fn inline(&mut self, tensor: Tensor<'_>, bytes: Vec<u8>) {
        let proto = TensorProto { raw_data: Some(bytes), ..tensor_proto(tensor) };
        self.proto.initializer.push(proto);
    }

    /// A tensor whose bytes are in the data file.
    pub(crate) fn external(&mut self, tensor: Tensor<'_>, slice: DataSlice) {
        let entry = |key: &str, value: String| entry(key, &value);
        self.proto.initializer.push(TensorProto {
            external_data: vec![
                entry("location", self.location.clone()),
                entry("offset", slice.offset.to_string()),
                entry("length", slice.length.to_string()),
            ],
            data_location: Some(1),
            ..tensor_proto(tensor)
        });
    }

    /// Gives the first output of the last node another name.
    pub(crate) fn rename_last_output(&mut self, name: &str) {
        if let Some(output) = self.proto.node.last_mut().and_then(|node| node.output.first_mut()) {
            name.clone_into(output);
        }
    }

    pub(crate) fn finish(self) -> GraphProto {
        self.proto
    }
}

pub(crate) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) }
}

fn tensor_proto(tensor: Tensor<'_>) -> TensorProto {
    TensorProto {
        dims: tensor.dims.iter().map(|&dim| int64(dim)).collect(),
        data_type: Some(tensor.data_type.into()),
        name: Some(tensor.name.to_owned()),
        ..TensorProto::default()
    }
}

fn value_info(name: &str, data_type: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| DimensionProto {
        value: Some(match dim {
            Dim::Is(size) => Dimension::Value(int64(*size)),
            Dim::Named(name) => Dimension::Param(name.clone()),
        }),
    };
    let tensor_type = TensorTypeProto {
        elem_type: Some(data_type.into()),
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type) }),
    }
}

/// Sizes of tensors in memory or in a file fit.
pub(crate) fn int64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
