//! A model file: its metadata and places of tensors, then what is read of these before any weight.

use pleach_engine::{gguf::GgufFile, model::read_spec};
use pleach_text::{ChatTemplate, Tokenizer};

/// Takes the bytes as a GGUF file.
///
/// # Panics
/// When a file that was taken is not what it says.
pub fn run(data: &[u8]) -> bool {
    let file = match GgufFile::from_bytes(data.to_vec()) {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    for tensor in file.tensors() {
        assert_eq!(file.bytes(tensor).len(), tensor.n_bytes, "{}", tensor.name);
        assert!(tensor.dims.iter().all(|dim| *dim <= tensor.n_values()) || tensor.n_values() == 0);
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
    }
    for (key, value) in file.metadata() {
        assert_eq!(file.meta(key), Some(value));
    }
    if let Ok(spec) = read_spec(&file) {
        assert!(spec.n_heads.is_multiple_of(spec.n_kv_heads), "{spec:?}");
        assert!(spec.vocab > 0 && spec.context > 0 && spec.head_dim > 0, "{spec:?}");
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file) {
        tokenizer.encode("a b<|im_end|>\u{e9}\n", true);
    }
    // Rendering it is another target's.
    let _ = ChatTemplate::from_gguf(&file);
    true
}
