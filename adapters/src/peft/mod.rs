//! Adapters in the format of Hugging Face PEFT (read against release 0.21.2): a folder with
//!
//! 1. `adapter_config.json`: [`AdapterConfig`], a flat JSON object of settings;
//! 2. `adapter_model.safetensors`: `base_model.model.<module path>.lora_A.weight` `[R, K]` and `….lora_B.weight`
//!    `[N, R]` for each adapted linear, F32, F16 or BF16.
//!
//! Linears of layers and `lm_head` may have `DoRA` (`use_dora`) or a bias (`lora_bias`), `embed_tokens` has plain `LoRA`.
//! The embedding and the head may also be there as a whole: as `modules_to_save`, or because PEFT saves the base's weight
//! with an adapter on them (and puts it in the base's place when it loads the adapter).
//!
//! PEFT itself ignores unknown settings and tensors that fit nowhere, with a warning at most. Here both are errors.

mod config;
mod error;
mod fields;
mod load;
mod pattern;
mod targets;
mod tensor_file;
mod tensor_name;

pub use config::{AdapterConfig, ModuleNames};
pub use error::{AdapterError, ConfigError};
pub use load::{
    ADAPTER_CONFIG_BYTES_MAX, CONFIG_FILE, LoadedAdapter, TENSOR_FILE, load_peft, load_peft_bytes,
    load_peft_files, tensor_file_bytes_max,
};
pub use targets::{SiteSettings, TreeRoot};
pub use tensor_file::{StoredDtype, TENSOR_HEADER_BYTES_MAX, TensorFileError};
