//! The token sequences that both runtimes read.

use pleach_engine::{gguf::GgufFile, spec::ModelSpec};
use pleach_text::{ChatTemplate, RenderOptions, TemplateError, Tokenizer};
use serde_json::json;

use super::{
    error::VerifyError,
    prompts::{QUESTION, TEXTS},
};

/// Tokens of the answer that decode steps read.
const ANSWER_TOKENS: usize = 24;

/// Prompts as token ids.
#[derive(Debug)]
pub(super) struct Cases {
    pub(super) prompts: Vec<Vec<u32>>,
    /// Tokens that our engine adds to each.
    pub(super) answer_tokens: usize,
}

impl Cases {
    pub(super) fn new(file: &GgufFile, spec: &ModelSpec) -> Result<Self, VerifyError> {
        let answer_tokens = ANSWER_TOKENS.min(spec.context / 4);
        let longest = spec.context.saturating_sub(answer_tokens + 1);
        if answer_tokens == 0 || longest == 0 {
            return Err(VerifyError::Context(spec.context));
        }
        let tokenizer = Tokenizer::from_gguf(file)?;
        let bos = tokenizer.bos_token().filter(|_| tokenizer.add_bos());
        let mut prompts: Vec<Vec<u32>> = TEXTS
            .iter()
            .map(|text| bos.into_iter().chain(tokenizer.encode(text, false)).collect())
            .collect();
        match ChatTemplate::from_gguf(file) {
            Ok(template) => {
                let messages = [json!({ "role": "user", "content": QUESTION })];
                let options =
                    RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
                prompts.push(tokenizer.encode(&template.render(&messages, &options)?, true));
            }
            Err(TemplateError::NoTemplate) => {}
            Err(error) => return Err(error.into()),
        }
        for prompt in &mut prompts {
            prompt.truncate(longest);
        }
        Ok(Self { prompts, answer_tokens })
    }
}
