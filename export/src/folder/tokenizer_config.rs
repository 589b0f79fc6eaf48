//! `tokenizer_config.json` and `special_tokens_map.json`, as transformers writes them.

use pleach_engine::{gguf::GgufFile, spec::Architecture};
use pleach_text::TokenizerSpec;
use serde_json::{Map, Value, json};

use crate::error::ExportError;

/// The texts of the special tokens.
pub(crate) fn special_tokens_map(spec: &TokenizerSpec) -> Map<String, Value> {
    let text = |id: Option<u32>| spec.tokens.get(id? as usize).cloned();
    let named = [
        ("bos_token", spec.bos),
        ("eos_token", spec.eos),
        ("pad_token", spec.pad),
        ("unk_token", spec.unk),
    ];
    named.into_iter().filter_map(|(name, id)| Some((name.to_owned(), json!(text(id)?)))).collect()
}

/// Settings and chat template.
pub(crate) fn tokenizer_config(
    file: &GgufFile,
    spec: &TokenizerSpec,
    architecture: Architecture,
    context: usize,
) -> Result<(Value, Option<String>), ExportError> {
    let template = file.str("tokenizer.chat_template")?.map(str::to_owned);
    // onnxruntime-extensions chooses its reading of `tokenizer.json` by the class. Qwen's has a word splitter of its own.
    let class = match (spec.pre.as_str(), architecture) {
        (pre, _) if pre.contains("qwen") => "Qwen2Tokenizer",
        ("llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe", _) => "PreTrainedTokenizerFast",
        _ => "GPT2Tokenizer",
    };
    let mut config = special_tokens_map(spec);
    config.insert("add_bos_token".to_owned(), json!(spec.add_bos.unwrap_or(false)));
    config.insert("add_prefix_space".to_owned(), json!(false));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("model_max_length".to_owned(), json!(context));
    config.insert("tokenizer_class".to_owned(), json!(class));
    if let Some(template) = &template {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Ok((Value::Object(config), template))
}
