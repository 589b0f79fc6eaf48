//! Export to ONNX Runtime, and proof that the export computes what pleach computes.
//!
//! ```text
//! GGUF file ── FileMatrices, row by row ──> weights/ ──> model.onnx.data
//!                                           decoder/ ──> model.onnx          (two forms)
//! PEFT folder ── load_peft ──> lora/ ──> adapters/NAME.onnx_adapter
//! folder ── verify/ : ONNX Runtime beside our engine, on the same tokens ──> differences, times, memory
//! ```
//!
//! Writing needs neither ONNX Runtime nor Python. [`verify`] loads ONNX Runtime's shared library when it is called.

mod decoder;
mod digest;
mod error;
mod export;
mod folder;
mod lora;
mod onnx;
pub mod verify;
mod weights;

pub use decoder::Form;
pub use error::ExportError;
pub use export::{ExportOptions, Exported, LoraExport, NamedAdapter, export_onnx};
pub use folder::{
    DATA_FILE, ExportedAdapter, ExportedBase, ExportedFile, Lora, MANIFEST_FILE, MODEL_FILE,
    Manifest, ManifestError,
};
pub use weights::{Precision, WeightsWritten};
