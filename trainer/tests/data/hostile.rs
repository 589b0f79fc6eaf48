//! Whatever the bytes are, reading, encoding, redacting and reporting end with rows or errors.

use pleach_trainer::data::{
    DocumentEnd, DocumentReader, EncodeSettings, Encoder, Format, Overlong, ReadLimits, Redactor,
    ReportSettings, RowReader, load,
};
use proptest::prelude::*;

use crate::common::{fixture, text_model};

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

/// Bytes to put in: those that mean something in JSON or UTF-8.
const BYTES: &[u8] = b"{}[]\",:\\0189-+.eEtfn \n\r\x00\xff\xc3\xe2\xf0aU";

fn lines() -> Vec<u8> {
    let first = |name: &str| fixture(name).lines().take(3).collect::<Vec<_>>().join("\n");
    let more = r#"
{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]}],"tools":[{"type":"function","function":{"name":"f"}}]}
{"messages":[{"role":"user","content":"q"}],"answer":{"x":1}}
{"text":"a text","label":"x","user":"u","rater":"r"}
{"text":"a text","score":0.5}"#;
    ["training/style.jsonl", "training/dpo.jsonl", "training/kto.jsonl"]
        .map(first)
        .join("\n")
        .into_bytes()
        .into_iter()
        .chain(more.bytes())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_lines_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..BYTES.len(), 0_u8..3), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
        format in 0..FORMATS.len(),
    ) {
        let mut bytes = lines();
        for (place, byte, edit) in edits {
            let place = place.index(bytes.len());
            match edit {
                0 => bytes[place] = BYTES[byte],
                1 => bytes.insert(place, BYTES[byte]),
                _ => { bytes.remove(place); }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        let (template, tokenizer) = text_model();
        let settings = EncodeSettings { overlong: Overlong::CutLeft, ..EncodeSettings::new(48) };
        let mut encoder = Encoder::new(Some(template), tokenizer, settings);
        let limits = ReadLimits { line_bytes_max: 2000, ..ReadLimits::default() };
        let mut last_line = 0;
        for row in RowReader::new(bytes.as_slice(), FORMATS[format], limits.clone()) {
            let line = match &row {
                Ok(row) => row.line,
                Err(error) => error.line().unwrap_or(u64::MAX),
            };
            prop_assert!(line > last_line);
            last_line = line;
            if let Ok(row) = row {
                for record in encoder.encode(&row).unwrap_or_default() {
                    prop_assert!(record.n_targets() <= record.n_tokens());
                }
            }
        }
        let mut rows = RowReader::new(bytes.as_slice(), FORMATS[format], limits.clone());
        let mut again = RowReader::new(bytes.as_slice(), FORMATS[format], limits.clone());
        if let Err(errors) = load(&mut rows, Some(&mut again), &mut encoder, ReportSettings::default()) {
            prop_assert!(!errors.is_empty() && errors.len() <= 20);
        }
        for row in DocumentReader::new(bytes.as_slice(), DocumentEnd::EmptyLine, limits) {
            prop_assert!(row.is_ok() || std::str::from_utf8(&bytes).is_err() || bytes.len() > 2000);
        }
    }

    #[test]
    fn any_text_is_redacted_or_left(text in "(\\PC|[-0-9+@.:/ ]|\\+49 |sk-|DE89){0,80}") {
        let redactor = Redactor::new().unwrap();
        let mut conversation = redactor.conversation();
        let once = conversation.redact(&text).into_owned();
        // Placeholders are not personal data themselves.
        let n_found: usize = conversation.counts().values().sum();
        prop_assert_eq!(n_found == 0, once == text);
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let deep = format!("{{\"messages\":{}", "[".repeat(100_000));
    let error =
        RowReader::new(deep.as_bytes(), None, ReadLimits::default()).next().unwrap().unwrap_err();
    assert!(error.to_string().contains("recursion limit"), "{error}");
}
