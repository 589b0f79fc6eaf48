//! From files to samples.

use pleach_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value};

use super::{Method, RecipeError};
use crate::{
    Sample,
    data::{
        DataError, EncodeSettings, Encoder, Item, Loaded, Record, ReportSettings, RowSource,
        load as load_rows,
    },
};

/// Longest example, tokens: what a pass takes memory for.
pub const EXAMPLE_TOKENS_MAX: usize = 2048;
/// Validation rows that go through together: KTO compares rows of a batch with each other.
const VALIDATION_BATCH: usize = 8;

/// What reads a model's text.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Texts to tokens.
    pub tokenizer: &'a Tokenizer,
    /// Chats to texts; without it only texts can be learned.
    pub template: Option<&'a ChatTemplate>,
}

/// Which of two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOf {
    /// What is learned from.
    Training,
    /// What the result is measured on.
    Validation,
}

/// Reads and encodes all rows, for a model of this context.
///
/// # Errors
/// The first bad lines.
pub fn load(
    train: &mut dyn RowSource,
    validation: Option<&mut dyn RowSource>,
    text: Text<'_>,
    context: usize,
) -> Result<Loaded, Vec<DataError>> {
    let settings = EncodeSettings::new(EXAMPLE_TOKENS_MAX.min(context));
    let mut encoder = Encoder::new(text.template, text.tokenizer, settings);
    load_rows(train, validation, &mut encoder, ReportSettings::default())
}

/// What the objective of a method learns from.
///
/// # Errors
/// [`RecipeError::Method`]: the first row that it cannot learn from.
pub fn samples(
    items: &[Item],
    method: Method,
    rows_of: RowsOf,
) -> Result<Vec<Sample>, RecipeError> {
    let sample = |item: &Item| {
        let fits = matches!(
            (&item.record, method),
            (Record::Supervised(_), Method::Supervised)
                | (Record::Preference { .. }, Method::Dpo)
                | (Record::Rated { .. }, Method::Kto)
        );
        let sample = fits.then(|| Sample::of_record(&item.record, |_| None)).flatten();
        let refused = RecipeError::Method { rows_of, line: item.line, method: method.name() };
        sample.ok_or(refused)
    };
    items.iter().map(sample).collect()
}

/// A prompt that answers are sampled to.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Its line.
    pub line: u64,
    /// Token ids up to where the answer begins.
    pub tokens: Box<[u32]>,
    /// What a grader reads of its row.
    pub item: Map<String, Value>,
}

/// What answers are sampled to.
///
/// # Errors
/// [`RecipeError::Method`]: the first row that is no prompt.
pub(super) fn prompts(items: &[Item], rows_of: RowsOf) -> Result<Vec<Prompt>, RecipeError> {
    let prompt = |item: &Item| {
        let method = Method::Reinforcement.name();
        let refused = RecipeError::Method { rows_of, line: item.line, method };
        let Record::Prompt { ids, fields } = &item.record else { return Err(refused) };
        let item_fields = serde_json::from_str(fields).map_err(|_| refused)?;
        Ok(Prompt { line: item.line, tokens: ids.clone(), item: item_fields })
    };
    items.iter().map(prompt).collect()
}

/// Validation rows, in batches.
pub(super) fn batches(samples: &[Sample]) -> Vec<Vec<Sample>> {
    samples.chunks(VALIDATION_BATCH).map(<[Sample]>::to_vec).collect()
}
