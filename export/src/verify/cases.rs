//! The token sequences that both runtimes read.

use pleach_engine::{gguf::GgufFile, spec::ModelSpec};
use pleach_text::{ChatTemplate, RenderOptions, TemplateError, Tokenizer};
use serde_json::json;

use super::{
    error::VerifyError,
    prompts::{QUESTIONS, TEXTS},
};

/// Tokens of the answer that decode steps read.
const ANSWER_TOKENS: usize = 24;
/// Cases that show whether products are exact: what is wrong is wrong in few rows, too.
pub(super) const EXACT_CASES: usize = 6;

/// Prompts as token ids.
#[derive(Debug)]
pub(super) struct Cases {
    /// Questions first.
    prompts: Vec<Vec<u32>>,
    /// Tokens that our engine adds to each.
    pub(super) answer_tokens: usize,
}

impl Cases {
    /// At most so many.
    pub(super) fn new(
        file: &GgufFile,
        spec: &ModelSpec,
        prompts_max: usize,
    ) -> Result<Self, VerifyError> {
        let answer_tokens = ANSWER_TOKENS.min(spec.context / 4);
        let longest = spec.context.saturating_sub(answer_tokens + 1);
        if answer_tokens == 0 || longest == 0 {
            return Err(VerifyError::Context(spec.context));
        }
        let tokenizer = Tokenizer::from_gguf(file)?;
        let mut prompts = Vec::new();
        match ChatTemplate::from_gguf(file) {
            Ok(template) => {
                let options =
                    RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
                for question in QUESTIONS {
                    let messages = [json!({ "role": "user", "content": question })];
                    prompts.push(tokenizer.encode(&template.render(&messages, &options)?, true));
                }
            }
            Err(TemplateError::NoTemplate) => {}
            Err(error) => return Err(error.into()),
        }
        let bos = tokenizer.bos_token().filter(|_| tokenizer.add_bos());
        let texts = TEXTS.iter().map(|text| tokenizer.encode(text, false));
        prompts.extend(texts.map(|text| bos.into_iter().chain(text).collect()));
        prompts.truncate(prompts_max.max(1));
        for prompt in &mut prompts {
            prompt.truncate(longest);
        }
        Ok(Self { prompts, answer_tokens })
    }

    /// Those that are read: all where activations are rounded, as shares need many rows.
    pub(super) fn prompts(&self, is_rounded: bool) -> &[Vec<u32>] {
        if is_rounded {
            &self.prompts
        } else {
            &self.prompts[..EXACT_CASES.min(self.prompts.len())]
        }
    }
}
