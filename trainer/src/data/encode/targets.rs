//! Which tokens of a rendered chat are targets: those of an answer's text and the one that ends the turn, whatever
//! the template is.
//!
//! ```text
//! render(messages before, with the beginning of an answer)   <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎
//! render(messages before and the answer)                     <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello<|im_end|>⏎
//! targets                                                                                                        ^^^^^^^^^^^^^^^
//! ```
//!
//! The first text is what the model is given when it answers, so the targets begin where the second goes on from it.
//! They end with the last token of the answer that ends a turn; what a template writes after it is never sampled.

use pleach_text::{ChatTemplate, Tokenizer};

use super::{EncodeSettings, Rewriting};
use crate::data::{
    error::DataError,
    example::{Example, TargetSpan},
    row::{Conversation, Role},
};

/// The examples of a conversation.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// The whole conversation first, if it has targets.
    pub(super) examples: Vec<Example>,
    pub(super) answers: u64,
    pub(super) open_ended: u64,
    pub(super) own_examples: u64,
}

/// Text and tokens of a rendered chat.
struct Rendered {
    text: String,
    ids: Vec<u32>,
    /// Byte of `text` after each token; `None` if the tokenizer changed the text (NFC), so that bytes don't tell.
    ends: Option<Vec<usize>>,
}

impl Targets {
    /// Renders a conversation up to its last answer to learn, and finds the targets.
    pub(super) fn of(
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
        settings: &EncodeSettings,
        line: u64,
        chat: &Conversation,
    ) -> Result<Self, DataError> {
        let learned = |index: &usize| {
            chat.messages[*index].trained && chat.messages[*index].role == Role::Assistant
        };
        let answers: Vec<usize> = (0..chat.messages.len()).filter(learned).collect();
        let mut targets = Self { answers: answers.len() as u64, ..Self::default() };
        let Some(&last) = answers.last() else { return Ok(targets) };
        let render = |n_messages: usize, answer_follows: bool| {
            let messages = chat.messages[..n_messages].to_vec();
            let part = Conversation { messages, tools: chat.tools.clone() };
            render(template, settings, line, &part, answer_follows)
        };

        let whole = Rendered::new(tokenizer, render(last + 1, false)?);
        let mut spans = Vec::with_capacity(answers.len());
        for index in answers {
            let refused = || DataError::Rewritten { line, message: index };
            if index == 0 {
                // Templates begin a chat with text of their own, which cannot be told from such an answer. Rows are
                // refused before they come here.
                return Err(refused());
            }
            let asked = render(index, true)?;
            let answered =
                if index == last { whole.text.clone() } else { render(index + 1, false)? };
            let (text, start) = if answered.starts_with(&asked) {
                (answered, asked.len())
            } else {
                // What begins an answer when the model is asked is not what stands before it later on.
                let before = render(index, false)?;
                if let Some(start) = start_of_answer(&before, &asked, &answered) {
                    (answered, start)
                } else {
                    let said = chat.messages[index - 1].text();
                    spliced(&asked, &answered, &said).ok_or_else(refused)?
                }
            };
            let (prefix, end) = (&text[..start], text.len());
            let closed = if whole.text.starts_with(&text) {
                let (span, closed) = whole.span(tokenizer, prefix, end);
                spans.push(span);
                closed
            } else if settings.rewriting == Rewriting::Refuse {
                return Err(refused());
            } else {
                let own = Rendered::new(tokenizer, text.clone());
                let (span, closed) = own.span(tokenizer, prefix, end);
                targets.examples.push(Example::new(own.ids, [span]));
                targets.own_examples += 1;
                closed
            };
            targets.open_ended += u64::from(!closed);
        }
        targets.examples.insert(0, Example::new(whole.ids, spans));
        Ok(targets)
    }
}

impl Rendered {
    fn new(tokenizer: &Tokenizer, text: String) -> Self {
        let ids = tokenizer.encode(&text, true);
        let mut ends = Vec::with_capacity(ids.len());
        let mut end = 0;
        let unchanged = ids.iter().all(|&id| {
            let bytes = tokenizer.token_bytes(id);
            let same = text.as_bytes().get(end..end + bytes.len()) == Some(bytes);
            end += bytes.len();
            ends.push(end);
            same
        });
        let ends = (unchanged && end == text.len()).then_some(ends);
        Self { text, ids, ends }
    }

    /// The targets of the answer between the end of `prefix` and byte `end`, and whether a token ends the turn.
    fn span(&self, tokenizer: &Tokenizer, prefix: &str, end: usize) -> (TargetSpan, bool) {
        let (first, after) = if let Some(ends) = &self.ends {
            // A token that the prefix and the answer share belongs to the answer: it isn't wholly given.
            let first = ends.partition_point(|&token_end| token_end <= prefix.len());
            (first, ends.partition_point(|&token_end| token_end < end) + 1)
        } else {
            let tokens = |text: &str| {
                let ids = tokenizer.encode(text, true);
                ids.iter().zip(&self.ids).take_while(|(a, b)| a == b).count()
            };
            (tokens(prefix), tokens(&self.text[..end]))
        };
        let after = after.min(self.ids.len());
        let first = first.min(after);
        let closing =
            self.ids[first..after].iter().rposition(|id| tokenizer.eos_tokens().contains(id));
        let last = closing.map_or(after, |offset| first + offset + 1);
        let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (TargetSpan { start: index(first), end: index(last), weight: 1.0 }, closing.is_some())
    }
}

/// Where an answer begins in `answered`, the messages `before` and it, although that doesn't begin with `asked`: after
/// the same header if only white space before it differs, else where the two part. `None` if `before` itself changes.
fn start_of_answer(before: &str, asked: &str, answered: &str) -> Option<usize> {
    let (header, rest) = (asked.strip_prefix(before)?, answered.strip_prefix(before)?);
    let header = header.trim_start();
    match rest.trim_start().strip_prefix(header) {
        Some(answer) if !header.is_empty() => Some(answered.len() - answer.len()),
        _ => Some(common_prefix(asked, answered)),
    }
}

/// What the model was asked and then the answer, where the template changes the messages before as the answer follows
/// (some write the system message beside the *last* question). `said` is the text of the message before the answer;
/// from there on the two texts must be the same up to the answer.
fn spliced(asked: &str, answered: &str, said: &str) -> Option<(String, usize)> {
    let said = Some(said.trim()).filter(|said| !said.is_empty())?;
    let tail = &asked[asked.rfind(said)?..];
    let answer = answered.rfind(tail)? + tail.len();
    Some(([asked, &answered[answer..]].concat(), asked.len()))
}

/// A chat as the template writes it, with the beginning of an answer or without.
pub(super) fn render(
    template: &ChatTemplate,
    settings: &EncodeSettings,
    line: u64,
    chat: &Conversation,
    answer_follows: bool,
) -> Result<String, DataError> {
    let mut options = settings.render.clone();
    options.add_generation_prompt = answer_follows;
    if chat.tools.is_some() {
        options.tools.clone_from(&chat.tools);
    }
    template.render(&chat.values(), &options).map_err(|source| DataError::Template { line, source })
}

/// Bytes that both begin with, whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let mut same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(same) {
        same -= 1;
    }
    same
}
