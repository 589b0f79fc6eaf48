//! The default model's tokenizer and template, fixtures, and rows in short.

use std::sync::OnceLock;

use pleach_engine::gguf::GgufFile;
use pleach_text::{ChatTemplate, Tokenizer};
use pleach_trainer::data::{DataError, Format, ReadLimits, Row, RowReader};

/// The default model's way with text.
pub(crate) fn text_model() -> &'static (ChatTemplate, Tokenizer) {
    static MODEL: OnceLock<(ChatTemplate, Tokenizer)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let file = GgufFile::open(&pleach_test_setup::default_model()).unwrap();
        (ChatTemplate::from_gguf(&file).unwrap(), Tokenizer::from_gguf(&file).unwrap())
    })
}

/// A file of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> String {
    let path = pleach_test_setup::fixtures().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A reader of text in memory.
pub(crate) fn reader(text: &str) -> RowReader<&[u8]> {
    RowReader::new(text.as_bytes(), None, ReadLimits::default())
}

/// All rows of a text that has no bad one.
pub(crate) fn rows(text: &str) -> Vec<Row> {
    reader(text).map(|row| row.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// The only row of a text, read as this format.
pub(crate) fn row_of(format: Format, text: &str) -> Result<Row, DataError> {
    RowReader::new(text.as_bytes(), Some(format), ReadLimits::default()).next().unwrap()
}

/// A chat of one question and one answer, as a line.
pub(crate) fn chat(question: &str, answer: &str) -> String {
    let messages = serde_json::json!([
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]);
    serde_json::json!({ "messages": messages }).to_string() + "\n"
}
