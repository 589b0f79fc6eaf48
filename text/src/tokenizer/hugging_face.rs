//! The tokenizer as a `tokenizer.json`, for programs that read no GGUF files.

use serde_json::{Map, Value, json};

use super::{TokenizerSpec, checked_types, pre_tokenizer::Rule, spec::TokenType};
use crate::TextError;

impl TokenizerSpec {
    /// The content of a `tokenizer.json` of Hugging Face's `tokenizers` that gives the same ids, special tokens in the
    /// text among them; a prompt begins with BOS where the model wants that.
    ///
    /// # Errors
    /// As [`Tokenizer::new`](super::Tokenizer::new).
    pub fn to_tokenizer_json(&self) -> Result<Value, TextError> {
        let rule = Rule::by_name(&self.pre)?;
        let types = checked_types(self)?;
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, (text, token_type)) in self.tokens.iter().zip(&types).enumerate() {
            if text.is_empty() || *token_type == TokenType::Unused {
                continue;
            }
            vocab.insert(text.clone(), json!(id));
            if token_type.is_special() || *token_type == TokenType::UserDefined {
                added.push(json!({
                    "id": id,
                    "content": text,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": token_type.is_special(),
                }));
            }
        }
        let begins_with_bos = self.add_bos.unwrap_or(rule.add_bos);
        let bos = self.bos.filter(|_| begins_with_bos);
        let bos = bos.and_then(|id| Some((id, self.tokens.get(id as usize)?)));
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": if rule.nfc { json!({ "type": "NFC" }) } else { Value::Null },
            "pre_tokenizer": rule.published(),
            "post_processor": bos.map(|(id, text)| first(id, text)),
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": true,
                "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": rule.ignore_merges,
                "vocab": vocab,
                "merges": self.merges,
            },
        }))
    }
}

/// Puts a token before every text.
fn first(id: u32, text: &str) -> Value {
    let token = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let sequence =
        |name: &str, type_id: u32| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [token, sequence("A", 0)],
        "pair": [token, sequence("A", 0), token, sequence("B", 1)],
        "special_tokens": { text: { "id": text, "ids": [id], "tokens": [text] } },
    })
}
