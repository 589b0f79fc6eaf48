//! Token ids equal those of the models' own tools: the default model's vocabulary against `transformers`, and small
//! vocabularies with every pre-tokenizer against the Python package `tokenizers` (made by `tests/fixtures/text/make.py`).

#![expect(clippy::unwrap_used, reason = "a test that cannot read its own fixtures must fail")]

mod common;

use std::time::{Duration, Instant};

use common::{default_model, fixture};
use pleach_engine::gguf::{GgufBuilder, GgufFile};
use pleach_text::{TextError, Tokenizer, TokenizerSpec};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    pre: String,
    tokens: Vec<String>,
    token_types: Vec<u32>,
    merges: Vec<String>,
    rows: Vec<GoldenRow>,
}

#[derive(Deserialize)]
struct GoldenRow {
    text: String,
    ids: Vec<u32>,
    ids_special: Vec<u32>,
    decoded_skip_special: String,
}

impl Golden {
    fn spec(&self) -> TokenizerSpec {
        TokenizerSpec {
            model: "gpt2".to_owned(),
            pre: self.pre.clone(),
            tokens: self.tokens.clone(),
            token_types: self.token_types.clone(),
            merges: self.merges.clone(),
            bos: Some(0),
            eos: Some(1),
            ..TokenizerSpec::default()
        }
    }

    fn load() -> Vec<Self> {
        serde_json::from_str(&fixture("tokenizers.json")).unwrap()
    }

    fn named(pre: &str) -> Self {
        Self::load().into_iter().find(|golden| golden.pre == pre).unwrap()
    }
}

#[derive(Deserialize)]
struct Row {
    text: String,
    parse_special: bool,
    ids: Vec<u32>,
}

#[test]
fn default_model_ids_equal_the_reference() {
    let tokenizer = Tokenizer::from_gguf(&default_model()).unwrap();
    let rows = fixture("tokenization.jsonl");
    let rows: Vec<Row> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 118);
    for Row { text, parse_special, ids } in rows {
        assert_eq!(
            tokenizer.encode(&text, parse_special),
            ids,
            "{text:?}, parse_special {parse_special}"
        );
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn default_model_names_its_tokens() {
    let started = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&default_model()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "loading took {:?}", started.elapsed());
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eos_tokens(), [2, 0]);
    assert!(!tokenizer.add_bos());
    assert!(
        tokenizer.is_special(2) && !tokenizer.is_special(19556) && !tokenizer.is_special(u32::MAX)
    );
    assert_eq!(
        (tokenizer.token_text(2), tokenizer.token_bytes(2)),
        (Some("<|im_end|>"), &b"<|im_end|>"[..])
    );
    assert_eq!(
        (tokenizer.token_text(33662), tokenizer.token_bytes(33662)),
        (Some("\u{120}hello"), &b" hello"[..])
    );
    assert_eq!((tokenizer.token_text(49152), tokenizer.token_bytes(49152)), (None, &b""[..]));
    assert_eq!(tokenizer.decode(&[28120, 2, 49152, 33662], true), "hello hello");
    assert_eq!(tokenizer.decode(&[28120, 2, 49152, 33662], false), "hello<|im_end|> hello");
}

#[test]
fn every_pre_tokenizer_equals_the_reference() {
    let goldens = Golden::load();
    let names: Vec<&str> = goldens.iter().map(|golden| golden.pre.as_str()).collect();
    assert_eq!(names, ["gpt-2", "smollm", "llama-bpe", "qwen2"]);
    for golden in &goldens {
        let tokenizer = Tokenizer::new(golden.spec()).unwrap();
        assert!(golden.rows.len() >= 60);
        for row in &golden.rows {
            let context = format!("{}: {:?}", golden.pre, row.text);
            assert_eq!(
                tokenizer.encode(&row.text, false),
                row.ids,
                "{context}, special tokens as text"
            );
            assert_eq!(
                tokenizer.encode(&row.text, true),
                row.ids_special,
                "{context}, special tokens parsed"
            );
            assert_eq!(
                tokenizer.decode(&row.ids_special, true),
                row.decoded_skip_special,
                "{context}"
            );
        }
    }
}

#[test]
fn a_file_of_these_parts_gives_the_same_tokenizer() {
    let golden = Golden::named("llama-bpe");
    let mut builder = GgufBuilder::new();
    builder
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", "llama-bpe")
        .meta("tokenizer.ggml.tokens", golden.tokens.clone())
        .meta("tokenizer.ggml.token_type", golden.token_types.clone())
        .meta("tokenizer.ggml.merges", golden.merges.clone())
        .meta("tokenizer.ggml.bos_token_id", 0u32)
        .meta("tokenizer.ggml.eos_token_id", 1u32)
        .meta("tokenizer.ggml.eot_token_id", 3u32);
    let tokenizer =
        Tokenizer::from_gguf(&GgufFile::from_bytes(builder.to_bytes()).unwrap()).unwrap();
    let row = &golden.rows[14];
    assert_eq!(tokenizer.encode(&row.text, true), row.ids_special);
    assert!(tokenizer.add_bos(), "Llama 3 begins with BOS where the file doesn't say otherwise");
    // `<|end|>` is EOS, `<|im_end|>` is EOT, and both are well known besides.
    assert_eq!(tokenizer.eos_tokens(), [1, 3]);

    builder.meta("tokenizer.ggml.add_bos_token", false);
    let tokenizer =
        Tokenizer::from_gguf(&GgufFile::from_bytes(builder.to_bytes()).unwrap()).unwrap();
    assert!(!tokenizer.add_bos());
}

#[test]
fn user_defined_tokens_are_text() {
    let tokenizer = Tokenizer::new(Golden::named("qwen2").spec()).unwrap();
    let ids = tokenizer.encode("<tool_call>", false);
    assert_eq!(ids.len(), 1);
    assert!(!tokenizer.is_special(ids[0]));
    assert_eq!(tokenizer.decode(&ids, true), "<tool_call>");
}

/// Text of each shape that is hard on a tokenizer: one word without end, white space without end, and so on.
#[test]
fn hostile_text_takes_time_in_proportion() {
    const BYTES: usize = 1 << 18;
    for golden in Golden::load() {
        let tokenizer = Tokenizer::new(golden.spec()).unwrap();
        let shapes = [
            "a",
            "ab",
            " ",
            "\n",
            " \n",
            "\u{300}",
            "e\u{301}",
            "<|im_start|>",
            "<|im_",
            "'",
            "1",
            "\u{4f60}",
            "a ",
            "!",
        ];
        for shape in shapes {
            let text = shape.repeat(BYTES / shape.len()) + "x";
            let started = Instant::now();
            let ids = tokenizer.encode(&text, true);
            let took = started.elapsed();
            println!("{} {shape:?}: {} ids in {took:?}", golden.pre, ids.len());
            assert!(took < Duration::from_secs(10), "{}: {shape:?} took {took:?}", golden.pre);
            if golden.pre != "qwen2" {
                assert!(
                    tokenizer.decode(&ids, false) == text,
                    "{}: {shape:?} doesn't come back",
                    golden.pre
                );
            }
        }
    }
}

#[test]
fn encoding_from_many_threads_gives_the_same_ids() {
    let golden = Golden::named("smollm");
    let tokenizer = Tokenizer::new(golden.spec()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for row in golden.rows.iter().chain(&golden.rows) {
                    assert_eq!(tokenizer.encode(&row.text, true), row.ids_special);
                }
            });
        }
    });
}

fn refused(change: impl FnOnce(&mut TokenizerSpec)) -> TextError {
    let mut spec = Golden::named("gpt-2").spec();
    change(&mut spec);
    Tokenizer::new(spec).unwrap_err()
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let error = refused(|spec| spec.model = "llama".to_owned());
    assert_eq!(
        error.to_string(),
        "tokenizer model not supported: llama (supported: gpt2, which is byte-level BPE)"
    );
    let error = refused(|spec| spec.pre = "tekken".to_owned());
    assert!(
        matches!(error, TextError::UnsupportedPreTokenizer { ref pre, .. } if pre == "tekken"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    type Change = fn(&mut TokenizerSpec);
    let cases: [(Change, &str); 10] = [
        (|spec| spec.tokens.clear(), "vocabulary is empty"),
        (|spec| spec.token_types.truncate(7), "vocabulary has 600 tokens but 7 token types"),
        (|spec| spec.token_types[5] = 9, "token 5 has the unknown type 9"),
        (|spec| spec.tokens[9] = spec.tokens[8].clone(), "is there twice: ids 8 and 9"),
        (
            |spec| spec.bos = Some(600),
            "tokenizer.ggml.bos_token_id is 600, but there are only 600 tokens",
        ),
        (|spec| spec.pad = Some(u32::MAX), "tokenizer.ggml.padding_token_id is 4294967295"),
        (
            |spec| spec.merges[3] = "nospace".to_owned(),
            "merge 3 is not two tokens with a space between: \"nospace\"",
        ),
        (|spec| spec.merges[3] = "trailing ".to_owned(), "merge 3 is not two tokens"),
        (
            |spec| spec.merges[4] = "a \u{2603}".to_owned(),
            "merge 4 (\"a \u{2603}\") needs the token \"\u{2603}\"",
        ),
        (|spec| spec.merges[4] = "a b".to_owned(), ""),
    ];
    for (change, expected) in cases {
        let mut spec = Golden::named("gpt-2").spec();
        change(&mut spec);
        match Tokenizer::new(spec) {
            Err(error) => {
                assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}");
            }
            Ok(_) => assert_eq!(expected, "", "not refused"),
        }
    }
}

#[test]
fn a_file_without_a_key_is_refused_with_its_name() {
    let mut builder = GgufBuilder::new();
    for key in [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        let error =
            Tokenizer::from_gguf(&GgufFile::from_bytes(builder.to_bytes()).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("key missing from the model file: {key}"));
        match key {
            "tokenizer.ggml.model" => builder.meta(key, "gpt2"),
            "tokenizer.ggml.pre" => builder.meta(key, "gpt-2"),
            _ => builder.meta(key, vec!["a"]),
        };
    }
}
