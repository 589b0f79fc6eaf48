//! A tokenizer whose ids are bytes, and a template.

use std::sync::OnceLock;

use pleach_engine::gguf::{GgufBuilder, GgufFile};
use pleach_text::{ChatTemplate, Tokenizer};

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Made once.
///
/// # Panics
/// If it cannot be made.
pub(crate) fn text_model() -> &'static (ChatTemplate, Tokenizer) {
    static MODEL: OnceLock<(ChatTemplate, Tokenizer)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let file = GgufFile::from_bytes(file()).expect("a model file");
        let template = ChatTemplate::from_gguf(&file).expect("a template");
        (template, Tokenizer::from_gguf(&file).expect("a tokenizer"))
    })
}

fn file() -> Vec<u8> {
    // GPT-2's table: printable bytes are themselves, the others are numbered from U+0100.
    let mut others = 0x100_u32..;
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let letter = |byte: u8| {
        let code = if printable(byte) { Some(u32::from(byte)) } else { others.next() };
        code.and_then(char::from_u32).expect("a letter of the table").to_string()
    };
    let mut tokens: Vec<String> = (0..=u8::MAX).map(letter).collect();
    tokens.extend(["<|im_start|>".to_owned(), "<|im_end|>".to_owned()]);
    let mut types = vec![1_u32; 256];
    types.extend([3, 3]);
    let mut builder = GgufBuilder::new();
    builder
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", "gpt-2")
        .meta("tokenizer.ggml.tokens", tokens)
        .meta("tokenizer.ggml.token_type", types)
        .meta("tokenizer.ggml.merges", Vec::<String>::new())
        .meta("tokenizer.ggml.eos_token_id", 257_u32)
        .meta("tokenizer.chat_template", TEMPLATE);
    builder.to_bytes()
}
