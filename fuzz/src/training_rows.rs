//! A file of training rows: its first byte says as which format the rest is read.

use std::sync::OnceLock;

use pleach_trainer::data::{
    DataError, DocumentEnd, DocumentReader, EncodeSettings, Encoder, Format, Overlong, ReadLimits,
    Redactor, ReportSettings, RowReader, load,
};

use super::text_model::text_model;

const FORMATS: [Option<Format>; 8] = [
    None,
    Some(Format::Supervised),
    Some(Format::Preference),
    Some(Format::Kto),
    Some(Format::Reinforcement),
    Some(Format::Text),
    Some(Format::Classification),
    Some(Format::Regression),
];
const TOKENS_MAX: usize = 48;
const LINE_BYTES_MAX: usize = 4096;

/// Takes the bytes as rows: reads, encodes, measures and redacts them.
///
/// # Panics
/// When rows come out of order, an example has more targets than tokens, or a redaction is not counted.
pub fn run(data: &[u8]) -> bool {
    let Some((first, rows)) = data.split_first() else { return false };
    let format = FORMATS[usize::from(*first) % FORMATS.len()];
    let (template, tokenizer) = text_model();
    let settings =
        EncodeSettings { overlong: Overlong::CutLeft, ..EncodeSettings::new(TOKENS_MAX) };
    let mut encoder = Encoder::new(Some(template), tokenizer, settings);
    let limits = ReadLimits { line_bytes_max: LINE_BYTES_MAX, ..ReadLimits::default() };
    let (mut last_line, mut n_records) = (0, 0);
    for row in RowReader::new(rows, format, limits.clone()) {
        let line = match &row {
            Ok(row) => row.line,
            Err(error) => error.line().unwrap_or(u64::MAX),
        };
        assert!(line > last_line, "line {line} after line {last_line}");
        last_line = line;
        for record in row.ok().and_then(|row| encoder.encode(&row).ok()).into_iter().flatten() {
            assert!(record.n_targets() <= record.n_tokens(), "{record:?}");
            n_records += 1;
        }
    }
    let reader = || RowReader::new(rows, format, limits.clone());
    let loaded = load(&mut reader(), Some(&mut reader()), &mut encoder, ReportSettings::default());
    match loaded {
        Ok(loaded) => assert_eq!(loaded.data.items.len(), loaded.validation.items.len()),
        Err(errors) => {
            assert!(!errors.is_empty() && errors.iter().all(|e| !e.to_string().is_empty()));
        }
    }
    for document in DocumentReader::new(rows, DocumentEnd::EmptyLine, limits.clone()) {
        let is_text = std::str::from_utf8(rows).is_ok() && rows.len() <= LINE_BYTES_MAX;
        assert!(!is_text || matches!(document, Ok(_) | Err(DataError::Empty)), "{document:?}");
    }
    redact(&String::from_utf8_lossy(rows));
    n_records > 0
}

fn redact(text: &str) {
    static REDACTOR: OnceLock<Redactor> = OnceLock::new();
    let redactor = REDACTOR.get_or_init(|| Redactor::new().expect("its patterns compile"));
    let mut conversation = redactor.conversation();
    let redacted = conversation.redact(text).into_owned();
    let n_found: usize = conversation.counts().values().sum();
    assert_eq!(n_found == 0, redacted == text, "{n_found} found");
}
