//! The exported folder, as onnxruntime-genai opens it:
//!
//! ```text
//! model.onnx  model.onnx.data  genai_config.json
//! tokenizer.json  tokenizer_config.json  special_tokens_map.json  chat_template.jinja
//! adapters/NAME.onnx_adapter
//! pleach.json                      the manifest: what this is, of what, and digests
//! ```

mod genai_config;
mod manifest;
mod partial;
mod tokenizer_config;

pub(crate) use genai_config::{family, genai_config};
pub use manifest::{ExportedAdapter, ExportedBase, ExportedFile, Lora, Manifest, ManifestError};
pub(crate) use partial::PartialFolder;
pub(crate) use tokenizer_config::{special_tokens_map, tokenizer_config};

/// The graph.
pub const MODEL_FILE: &str = "model.onnx";
/// Its weights.
pub const DATA_FILE: &str = "model.onnx.data";
/// See [`Manifest`].
pub const MANIFEST_FILE: &str = "pleach.json";
