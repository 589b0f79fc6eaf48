//! Rows are read as written, and every refusal names the line, the field and what was expected.

use std::io::BufReader;

use pleach_trainer::data::{
    DataError, DocumentEnd, DocumentReader, Format, ReadLimits, Role, RowBody, RowReader, RowSource,
};
use serde_json::{Value, json};

use crate::common::{chat, fixture, reader, rows};

#[test]
fn formats_are_told_from_the_first_row() {
    let cases = [
        (
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            Format::Supervised,
        ),
        (r#"{"messages":[{"role":"user","content":"a"}],"answer":7}"#, Format::Reinforcement),
        (
            r#"{"input":{"messages":[{"role":"user","content":"a"}]},"preferred_output":[{"role":"assistant","content":"b"}],"non_preferred_output":[{"role":"assistant","content":"c"}]}"#,
            Format::Preference,
        ),
        (
            r#"{"input":{"messages":[{"role":"user","content":"a"}]},"preferred_completion":[{"role":"assistant","content":"b"}],"non_preferred_completion":[{"role":"assistant","content":"c"}]}"#,
            Format::Preference,
        ),
        (r#"{"prompt":"a","chosen":"b","rejected":"c"}"#, Format::Preference),
        (
            r#"{"input":{"messages":[{"role":"user","content":"a"}]},"output":[{"role":"assistant","content":"b"}],"label":true}"#,
            Format::Kto,
        ),
        (
            r#"{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}],"label":false}"#,
            Format::Kto,
        ),
        (r#"{"text":"a"}"#, Format::Text),
        (r#"{"text":"a","label":"x","score":1.0}"#, Format::Classification),
        (r#"{"text":"a","score":-0.5}"#, Format::Regression),
    ];
    for (line, expected) in cases {
        let mut reader = reader(line);
        let row = reader.next().unwrap();
        assert!(row.is_ok(), "{line}: {row:?}");
        assert_eq!(reader.format(), Some(expected), "{line}");
        assert!(reader.next().is_none());
    }
    let error = reader("\n{\"question\":\"a\",\"answer\":\"b\"}").next().unwrap().unwrap_err();
    assert!(
        error.to_string().starts_with(
            "line 2: cannot tell the format from the fields question, answer; expected messages;"
        ),
        "{error}"
    );
    let error = reader("[1]").next().unwrap().unwrap_err();
    assert!(error.to_string().contains("something that is no object"), "{error}");
}

#[test]
fn the_reference_files_are_read_whole() {
    let kinds = [("style", 40), ("dpo", 16), ("kto", 16)];
    for (name, n_rows) in kinds {
        assert_eq!(rows(&fixture(&format!("training/{name}.jsonl"))).len(), n_rows, "{name}");
    }
}

#[test]
fn weights_and_roles_say_what_is_learned() {
    let line = r#"{"messages":[{"role":"developer","content":"s"},{"role":"user","content":"a","name":"u"},
        {"role":"assistant","content":"b","weight":0},{"role":"user","content":[{"type":"text","text":"c"},{"type":"text","text":"d"}]},
        {"role":"assistant","content":"e","weight":1,"refusal":null}],"tools":[],"parallel_tool_calls":false}"#
        .replace('\n', " ");
    let row = rows(&line).remove(0);
    let RowBody::Chat(chat) = row.body else { panic!("not a chat") };
    assert_eq!(chat.tools, None);
    let roles = [Role::System, Role::User, Role::Assistant, Role::User, Role::Assistant];
    assert!(chat.messages.iter().map(|message| message.role).eq(roles));
    let learned: Vec<bool> = chat.messages.iter().map(|message| message.trained).collect();
    assert_eq!(learned, [false, false, false, false, true]);
    assert_eq!(chat.messages[0].value, json!({"role": "system", "content": "s"}));
    assert_eq!(chat.messages[4].value, json!({"role": "assistant", "content": "e"}));
    assert_eq!(chat.messages[3].text(), "c\nd");
}

#[test]
fn old_names_of_tools_are_those_of_today() {
    let old = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"4"},{"role":"assistant","content":"four"}],"functions":[{"name":"f"}]}"#;
    let new = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","name":"f","content":"4"},{"role":"assistant","content":"four"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
    assert_eq!(rows(old)[0].body, rows(new)[0].body);
}

#[test]
fn other_fields_are_kept_for_graders_and_counted_elsewhere() {
    let line =
        r#"{"messages":[{"role":"user","content":"a"}],"answer":{"x":[1]},"user":7,"tools":[]}"#;
    let row = rows(line).remove(0);
    let RowBody::Graded { fields, .. } = row.body else { panic!("not graded") };
    assert_eq!(Value::Object(fields), json!({"answer": {"x": [1]}}));
    assert_eq!(row.origin.user.as_deref(), Some("7"));

    let mut reader = reader(
        "{\"text\":\"a\",\"label\":\"x\",\"source\":1,\"rater\":\"r\",\"trusted\":true,\"group\":\"g\",\"conversation\":\"c\"}\n\
         {\"text\":\"b\",\"label\":\"x\",\"source\":2,\"split\":\"train\"}\n",
    );
    let first = reader.next().unwrap().unwrap();
    assert!(first.origin.trusted);
    assert_eq!(first.origin.rater.as_deref(), Some("r"));
    assert_eq!(first.origin.group.as_deref(), Some("g"));
    assert_eq!(first.origin.conversation.as_deref(), Some("c"));
    assert!(reader.by_ref().all(|row| row.is_ok()));
    let ignored: Vec<(String, u64)> = reader.ignored_fields().into_iter().collect();
    assert_eq!(ignored, [("source".to_owned(), 2), ("split".to_owned(), 1)]);
}

#[test]
fn labels_and_scores_of_any_sensible_type() {
    for (label, expected) in [("\"x\"", "x"), ("3", "3"), ("true", "true")] {
        let line = format!("{{\"text\":\"a\",\"label\":{label}}}");
        let RowBody::Labelled { label, .. } = rows(&line).remove(0).body else {
            panic!("no label")
        };
        assert_eq!(label, expected);
    }
    let RowBody::Scored { score, .. } = rows(r#"{"text":"a","score":2}"#).remove(0).body else {
        panic!()
    };
    assert!((score - 2.0).abs() < f32::EPSILON);
}

#[test]
fn bad_lines_are_told_one_by_one_and_reading_goes_on() {
    let mut bytes = b"\xef\xbb\xbf".to_vec();
    bytes.extend(chat("a", "b").replace('\n', "\r\n").bytes());
    bytes.extend(b"\r\n  \n{\"messages\": [}\n\"\xff\"\n");
    bytes.extend(format!("\"{}\"\n", "x".repeat(300)).bytes());
    // The last of two equal keys counts, and the last line needs no end.
    bytes.extend(chat("a", "b").trim_end().replacen('{', "{\"messages\":[],", 1).bytes());
    let limits = ReadLimits { line_bytes_max: 200, ..ReadLimits::default() };
    // A small buffer: lines come in pieces.
    let reader = RowReader::new(BufReader::with_capacity(7, bytes.as_slice()), None, limits);
    let found: Vec<String> = reader
        .map(|row| match row {
            Ok(row) => format!("line {}", row.line),
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!(
        found,
        [
            "line 1",
            "line 4: not JSON at column 15: expected value",
            "line 5: not UTF-8 at byte 1",
            "line 6: longer than 200 bytes",
            "line 7",
        ]
    );
}

#[test]
fn limits_and_empty_files() {
    let text = chat("a", "b").repeat(5);
    let read = |limits: ReadLimits| -> Vec<Result<u64, String>> {
        RowReader::new(text.as_bytes(), None, limits)
            .map(|row| row.map(|row| row.line).map_err(|error| error.to_string()))
            .collect()
    };
    let rows_max = read(ReadLimits { rows_max: 2, ..ReadLimits::default() });
    assert_eq!(rows_max, [Ok(1), Ok(2), Err("the data has more than 2 rows".to_owned())]);
    let bytes_max = text.len() as u64 - 1;
    let file_bytes_max = read(ReadLimits { file_bytes_max: bytes_max, ..ReadLimits::default() });
    assert_eq!(
        file_bytes_max.last(),
        Some(&Err(format!("the data is larger than {bytes_max} bytes")))
    );
    assert_eq!(file_bytes_max.len(), 5);
    for empty in ["", "\n\r\n  \n", "\u{feff}"] {
        let mut reader = reader(empty);
        assert!(matches!(reader.next(), Some(Err(DataError::Empty))), "{empty:?}");
        assert!(reader.next().is_none());
    }
}

#[test]
fn documents_end_where_they_are_told_to() {
    let text = "\u{feff}one\r\ntwo\r\n\r\n\r\n three\n\nfour";
    let read = |end, line_bytes_max| -> Vec<(u64, String)> {
        let limits = ReadLimits { line_bytes_max, ..ReadLimits::default() };
        DocumentReader::new(text.as_bytes(), end, limits)
            .map(|row| {
                let row = row.unwrap();
                let RowBody::Text(text) = row.body else { panic!("not a text") };
                (row.line, text)
            })
            .collect()
    };
    let owned = |documents: &[(u64, &str)]| -> Vec<(u64, String)> {
        documents.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
    };
    assert_eq!(
        read(DocumentEnd::EmptyLine, 100),
        owned(&[(1, "one\ntwo"), (5, " three"), (7, "four")])
    );
    assert_eq!(
        read(DocumentEnd::Line, 100),
        owned(&[(1, "one"), (2, "two"), (5, " three"), (7, "four")])
    );
    assert_eq!(read(DocumentEnd::File, 100), owned(&[(1, "one\ntwo\n\n\n three\n\nfour")]));
    assert_eq!(read(DocumentEnd::File, 9), owned(&[(1, "one\ntwo"), (5, " three"), (7, "four")]));
    let error =
        DocumentReader::new(&b"a\n\xff"[..], DocumentEnd::File, ReadLimits::default()).next();
    assert!(matches!(error, Some(Err(DataError::Utf8 { line: 2, byte: 0 }))));
}
