//! A file from end to end.

use pleach_trainer::data::{
    DataError, DataSet, DocumentEnd, DocumentReader, EncodeSettings, Encoder, Format, ReadLimits,
    Record, ReportSettings, SplitSettings, load,
};
use serde_json::json;

use crate::common::{chat, fixture, reader, text_model};

fn data(text: &str) -> Result<DataSet, Vec<DataError>> {
    let (template, tokenizer) = text_model();
    let mut encoder = Encoder::new(Some(template), tokenizer, EncodeSettings::new(512));
    let loaded = load(&mut reader(text), None, &mut encoder, ReportSettings::default());
    loaded.map(|loaded| loaded.data)
}

fn row(question: &str, answer: &str, origin: &serde_json::Value) -> String {
    let mut row = json!({"messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]});
    row.as_object_mut().unwrap().extend(origin.as_object().unwrap().clone());
    row.to_string() + "\n"
}

#[test]
fn rows_that_belong_together_are_one_group() {
    let text = [
        row("How are you?", "Fine.", &json!({"user": "ann"})),
        row("What is the time?", "Late.", &json!({"user": "ben"})),
        row("Who was there?", "Nobody.", &json!({"user": "ann"})),
        // The opening of a conversation.
        row("What is the time?", "I have no clock here, sorry.", &json!({})),
        row("Where is it?", "There.", &json!({"conversation": "c1"})),
        row("Why not?", "Because.", &json!({"conversation": "c1"})),
        row("When then?", "Soon.", &json!({"group": "c1"})),
        // Near duplicates.
        row(
            "Tell me about the long history of the old harbour town and its people, please",
            "Gladly.",
            &json!({}),
        ),
        row(
            "Tell me about the long history of the old harbour town and its people, PLEASE!",
            "Gladly.",
            &json!({}),
        ),
    ]
    .concat();
    let data = data(&text).unwrap();
    let groups: Vec<u32> = data.items.iter().map(|item| item.group).collect();
    assert_eq!(groups, [0, 1, 0, 1, 4, 4, 6, 7, 7]);
    let lines: Vec<u64> = data.items.iter().map(|item| item.line).collect();
    assert_eq!(lines, (1..=9).collect::<Vec<u64>>());

    let assignment = data.split(&SplitSettings::folds(3, 1));
    for (item, part) in data.items.iter().zip(&assignment.parts) {
        let first = data.items.iter().position(|other| other.group == item.group).unwrap();
        assert_eq!(*part, assignment.parts[first]);
    }
}

#[test]
fn rows_to_validate_with_are_encoded_and_compared() {
    let (template, tokenizer) = text_model();
    let mut encoder = Encoder::new(Some(template), tokenizer, EncodeSettings::new(512));
    let (train, validation) = (fixture("training/style.jsonl"), chat("Who are you?", "A ship."));
    let mut validation = reader(&validation);
    let loaded =
        load(&mut reader(&train), Some(&mut validation), &mut encoder, ReportSettings::default());
    let loaded = loaded.unwrap();
    assert_eq!((loaded.data.items.len(), loaded.validation.items.len()), (40, 1));
    assert_eq!((loaded.report.rows, loaded.report.validation_rows), (40, 1));
    assert_eq!((loaded.report.encoding.rows, encoder.counts().rows), (40, 41));
}

#[test]
fn plain_text_is_a_source_too() {
    let (_, tokenizer) = text_model();
    let mut encoder = Encoder::new(None, tokenizer, EncodeSettings::new(512));
    let text = "The first document.\n\nThe second one, of more words.\n";
    let mut source =
        DocumentReader::new(text.as_bytes(), DocumentEnd::EmptyLine, ReadLimits::default());
    let loaded = load(&mut source, None, &mut encoder, ReportSettings::default()).unwrap();
    assert_eq!(loaded.report.format, Some(Format::Text));
    let lines: Vec<u64> = loaded.data.items.iter().map(|item| item.line).collect();
    assert_eq!(lines, [1, 3]);
}

#[test]
fn windows_of_one_document_stay_together() {
    let document = |seed: usize| {
        let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap());
        let word = |n: usize| {
            [n, n / 26 + seed, n * seed, n * n / 7].map(letter).iter().collect::<String>()
        };
        (0..900).map(word).collect::<Vec<_>>().join(" ")
    };
    let text: String =
        [3, 5].map(|seed| json!({"text": document(seed)}).to_string() + "\n").concat();
    let data = data(&text).unwrap();
    assert!(data.items.len() > 4);
    for item in &data.items {
        assert_eq!(data.items[item.group as usize].row, item.row);
    }
}

#[test]
fn the_digest_is_that_of_the_rows_whatever_their_order() {
    let text = fixture("training/style.jsonl");
    let mut lines: Vec<&str> = text.lines().collect();
    let digest = data(&text).unwrap().digest();
    lines.reverse();
    assert_eq!(data(&lines.join("\n")).unwrap().digest(), digest);
    assert_ne!(data(&lines[1..].join("\n")).unwrap().digest(), digest);
    let twice = [lines.clone(), vec![lines[0]]].concat().join("\n");
    assert_ne!(data(&twice).unwrap().digest(), digest);
    // Pinned: what is recorded in an adapter's lineage must stay comparable. Order of fields and nulls don't count.
    let pinned = "a9108b15dec6724c4dd6a1e3eeec606db2cf9ac381ce3e449dd0975d88a80389";
    let byte = |at: usize| u8::from_str_radix(&pinned[at..at + 2], 16).unwrap();
    let expected: Vec<u8> = (0..pinned.len()).step_by(2).map(byte).collect();
    let other_order = r#"{"messages":[{"content":"Hi","name":null,"role":"user"},{"content":"Hello","weight":1,"role":"assistant"}]}"#;
    for text in [chat("Hi", "Hello"), other_order.to_owned()] {
        let digest = data(&text).unwrap().digest();
        assert_eq!(digest.as_slice(), expected, "{text}");
    }
}

#[test]
fn classes_are_counted_for_weights() {
    let data = data(&fixture("training/kto.jsonl")).unwrap();
    let n_up = data
        .items
        .iter()
        .filter(|item| matches!(item.record, Record::Rated { desirable: true, .. }))
        .count() as u64;
    let classes: Vec<_> = data.classes().into_iter().collect();
    assert_eq!(classes, [("false".to_owned(), 16 - n_up), ("true".to_owned(), n_up)]);
    assert!(data.items.iter().all(|item| item.stratum == "true" || item.stratum == "false"));
}

#[test]
fn all_bad_lines_are_told_up_to_twenty() {
    let text = chat("a", "b") + "{}\n" + &chat("c", "d") + "nonsense\n";
    let errors: Vec<String> = data(&text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "line 2: messages: expected a value, found nothing",
            "line 4: not JSON at column 2: expected ident"
        ]
    );
    let text = chat("a", "b") + &"{}\n".repeat(50);
    assert_eq!(data(&text).unwrap_err().len(), 20);
    assert!(matches!(data("").unwrap_err()[..], [DataError::Empty]));
}
