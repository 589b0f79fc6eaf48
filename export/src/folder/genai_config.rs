//! `genai_config.json`, as onnxruntime-genai's own builder writes it.

use pleach_engine::spec::{Architecture, ModelSpec};
use pleach_text::Tokenizer;
use serde_json::{Value, json};

use crate::decoder::Form;

use super::MODEL_FILE;

pub(crate) fn genai_config(
    spec: &ModelSpec,
    tokenizer: &Tokenizer,
    pad: Option<u32>,
    form: Form,
) -> Value {
    let mut inputs = json!({
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    });
    if form == Form::Standard {
        inputs["position_ids"] = json!("position_ids");
    }
    let ends = tokenizer.eos_tokens();
    let bos = tokenizer.bos_token().or(tokenizer.eos_token()).unwrap_or_default();
    let pad = pad.or(ends.first().copied()).unwrap_or_default();
    json!({
        "model": {
            "bos_token_id": bos,
            "context_length": spec.context,
            "decoder": {
                "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
                "filename": MODEL_FILE,
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": spec.n_heads,
                "num_hidden_layers": spec.n_layers,
                "num_key_value_heads": spec.n_kv_heads,
            },
            "eos_token_id": ends,
            "pad_token_id": pad,
            "type": family(spec.architecture),
            "vocab_size": spec.vocab,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": false,
            "early_stopping": true,
            "length_penalty": 1.0,
            "max_length": spec.context,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            // `GroupQueryAttention` writes new tokens into the memory of the old ones; `Attention` cannot.
            "past_present_share_buffer": form == Form::Genai,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    })
}

/// As Hugging Face and onnxruntime-genai name it.
pub(crate) fn family(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Llama => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    }
}
