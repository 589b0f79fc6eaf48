//! Rows to token ids and targets, with the model's own chat template and tokenizer.
//!
//! What is encoded is what the server would send to the model for the same messages, so an adapter learns from the
//! tokens that it will see.

mod fit;
mod targets;
mod windows;

use std::{collections::HashSet, sync::Arc};

use pleach_text::{ChatTemplate, RenderOptions, Tokenizer};
use serde_json::Value;

use super::{
    error::DataError,
    example::{Example, Record},
    row::{Conversation, Message, Row, RowBody},
};

/// What is done with a row of more tokens than fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// The row is an error.
    #[default]
    Error,
    /// The row is left out, and counted.
    Skip,
    /// The beginning is left out, and counted. Where an answer would be cut (pairs, thumbs), the row is left out.
    CutLeft,
}

/// What is done with a conversation of which the template changes earlier messages when later ones follow (some
/// leave out the reasoning of earlier turns, some write the system message beside the last question).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rewriting {
    /// Such an answer becomes an example of its own, which ends with it: what the model saw when it gave it.
    #[default]
    OwnExample,
    /// The row is an error.
    Refuse,
}

/// How rows are encoded.
#[derive(Clone, Debug)]
pub struct EncodeSettings {
    /// Tokens of an example; for documents, of a window.
    pub tokens_max: usize,
    /// Of rows that have more; documents are cut into windows.
    pub overlong: Overlong,
    /// Of templates that change earlier messages.
    pub rewriting: Rewriting,
    /// Tokens of a document that the next window repeats as context, without targets. Below `tokens_max`.
    pub window_overlap: usize,
    /// Whether a document ends with the model's end-of-sequence token. Chat models have the end of a turn there.
    pub end_documents: bool,
    /// Passed to the template with every chat; the date, if it shows one, has to be fixed for runs to be repeatable.
    pub render: RenderOptions,
}

impl EncodeSettings {
    /// The defaults, for examples of at most so many tokens.
    pub fn new(tokens_max: usize) -> Self {
        Self {
            tokens_max,
            overlong: Overlong::default(),
            rewriting: Rewriting::default(),
            window_overlap: 0,
            end_documents: false,
            render: RenderOptions::default(),
        }
    }
}

/// What became of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EncodeCounts {
    /// Rows.
    pub rows: u64,
    /// Records made of them.
    pub records: u64,
    /// Rows of more tokens than fit, whatever became of them.
    pub overlong: u64,
    /// Rows left out because they are too long.
    pub skipped: u64,
    /// Records that lost tokens at their beginning.
    pub cut: u64,
    /// Rows from which nothing can be learned: every weight is 0, or the targets were cut.
    pub no_targets: u64,
    /// Answers that became an example of their own because the template changes earlier messages.
    pub own_examples: u64,
    /// Answers after which the template writes no token that ends the turn.
    pub open_ended: u64,
    /// Answers encoded.
    pub answers: u64,
    /// Messages whose text spells a token that ends a turn. It becomes that token, as it does when it is served, so
    /// what follows looks as if somebody else said it.
    pub forged_ends: u64,
}

/// Encodes rows for one model.
#[derive(Debug)]
pub struct Encoder<'a> {
    template: Option<&'a ChatTemplate>,
    tokenizer: &'a Tokenizer,
    settings: EncodeSettings,
    counts: EncodeCounts,
    labels: HashSet<Arc<str>>,
    /// Texts of the tokens that end a turn.
    turn_ends: Vec<&'a str>,
    /// Fields that this template was seen to render.
    rendered_fields: HashSet<&'static str>,
}

impl<'a> Encoder<'a> {
    /// An encoder; without a template it takes texts but no chats.
    ///
    /// # Panics
    /// If fewer than two tokens may be in an example, or the overlap of windows leaves no progress.
    pub fn new(
        template: Option<&'a ChatTemplate>,
        tokenizer: &'a Tokenizer,
        settings: EncodeSettings,
    ) -> Self {
        assert!(settings.tokens_max >= 2, "a target needs a token before it");
        assert!(
            settings.window_overlap + 2 <= settings.tokens_max,
            "window_overlap must leave room for two tokens"
        );
        let turn_ends = tokenizer.eos_tokens().iter().filter_map(|id| tokenizer.token_text(*id));
        Self {
            template,
            tokenizer,
            settings,
            counts: EncodeCounts::default(),
            labels: HashSet::new(),
            turn_ends: turn_ends.collect(),
            rendered_fields: HashSet::new(),
        }
    }

    /// What became of the rows so far.
    pub fn counts(&self) -> EncodeCounts {
        self.counts
    }

    /// The records of a row: usually one, none if it is left out, several for long documents.
    ///
    /// # Errors
    /// [`DataError`] with the row's line.
    pub fn encode(&mut self, row: &Row) -> Result<Vec<Record>, DataError> {
        self.counts.rows += 1;
        let line = row.line;
        let records = match &row.body {
            RowBody::Chat(conversation) => {
                let examples = self.chat(line, conversation)?;
                self.fitting(line, examples)?
            }
            RowBody::Preference { prompt, preferred, rejected } => {
                let pair =
                    [self.answer(line, prompt, preferred)?, self.answer(line, prompt, rejected)?];
                self.fitting_pair(line, pair)?
            }
            RowBody::Rated { prompt, completion, desirable } => {
                let example = self.answer(line, prompt, completion)?;
                self.fitting_rated(line, example, *desirable)?
            }
            RowBody::Graded { prompt, fields } => {
                let ids = self.prompt(line, prompt)?;
                let fields = Value::Object(fields.clone()).to_string();
                let record = |ids| Record::Prompt { ids, fields: fields.into() };
                self.fitting_ids(line, &ids)?.map(record).into_iter().collect()
            }
            RowBody::Text(text) => self.windows(text),
            RowBody::Labelled { text, label } => {
                let label = self.interned(label);
                let ids = self.text_ids(text);
                let record = |ids| Record::Labelled { ids, label };
                self.fitting_ids(line, &ids)?.map(record).into_iter().collect()
            }
            RowBody::Scored { text, score } => {
                let ids = self.text_ids(text);
                let record = |ids| Record::Scored { ids, score: *score };
                self.fitting_ids(line, &ids)?.map(record).into_iter().collect()
            }
        };
        self.counts.records += records.len() as u64;
        Ok(records)
    }

    /// The examples of a conversation: one, and more where the template changes earlier messages.
    fn chat(&mut self, line: u64, chat: &Conversation) -> Result<Vec<Example>, DataError> {
        self.check_messages(line, chat)?;
        let spans =
            targets::Targets::of(self.template(line)?, self.tokenizer, &self.settings, line, chat)?;
        self.counts.answers += spans.answers;
        self.counts.open_ended += spans.open_ended;
        self.counts.own_examples += spans.own_examples;
        Ok(spans.examples)
    }

    fn answer(
        &mut self,
        line: u64,
        prompt: &Conversation,
        answer: &Message,
    ) -> Result<Example, DataError> {
        let mut examples = self.chat(line, &prompt.answered(answer))?;
        // One answer is learned, and it is the last, so nothing follows that could change it.
        Ok(examples.pop().unwrap_or_default())
    }

    fn prompt(&mut self, line: u64, prompt: &Conversation) -> Result<Vec<u32>, DataError> {
        self.check_messages(line, prompt)?;
        let text = targets::render(self.template(line)?, &self.settings, line, prompt, true)?;
        Ok(self.tokenizer.encode(&text, true))
    }

    /// Ordinary text, with the token that begins one if the model wants it.
    fn text_ids(&self, text: &str) -> Vec<u32> {
        let bos = self.tokenizer.bos_token().filter(|_| self.tokenizer.add_bos());
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(self.tokenizer.encode(text, false));
        ids
    }

    fn template(&self, line: u64) -> Result<&'a ChatTemplate, DataError> {
        let source = pleach_text::TemplateError::NoTemplate;
        self.template.ok_or(DataError::Template { line, source })
    }

    fn interned(&mut self, label: &str) -> Arc<str> {
        if let Some(label) = self.labels.get(label) {
            return Arc::clone(label);
        }
        let label: Arc<str> = label.into();
        self.labels.insert(Arc::clone(&label));
        label
    }

    /// Counts messages that end their own turn, and refuses tools and calls that the template leaves out: the model would learn to answer what it never saw.
    fn check_messages(&mut self, line: u64, chat: &Conversation) -> Result<(), DataError> {
        let forges = |message: &&Message| {
            let text = message.text();
            self.turn_ends.iter().any(|end| text.contains(end))
        };
        self.counts.forged_ends += chat.messages.iter().filter(forges).count() as u64;
        if chat.tools.is_some() && !self.rendered_fields.contains("tools") {
            let without = Conversation { tools: None, ..chat.clone() };
            self.check_rendered(line, "tools", "tools".to_owned(), chat, &without)?;
        }
        let calls = chat.messages.iter().position(Message::calls_tools);
        if let Some(index) = calls.filter(|_| !self.rendered_fields.contains("tool_calls")) {
            let mut without = chat.clone();
            if let Value::Object(message) = &mut without.messages[index].value {
                message.remove("tool_calls");
                message.entry("content").or_insert_with(|| Value::from(""));
            }
            let path = format!("messages[{index}].tool_calls");
            self.check_rendered(line, "tool_calls", path, chat, &without)?;
        }
        Ok(())
    }

    fn check_rendered(
        &mut self,
        line: u64,
        field: &'static str,
        path: String,
        with: &Conversation,
        without: &Conversation,
    ) -> Result<(), DataError> {
        let template = self.template(line)?;
        let render = |chat| targets::render(template, &self.settings, line, chat, false);
        if render(with)? == render(without)? {
            return Err(DataError::NotRendered { line, path });
        }
        self.rendered_fields.insert(field);
        Ok(())
    }
}
