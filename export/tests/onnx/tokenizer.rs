//! The exported `tokenizer.json`, read by the library that defines it.

use pleach_text::{Tokenizer, TokenizerSpec};
use serde_json::Value;

use crate::support::{default_model, fixtures, tiny};

fn read(spec: &TokenizerSpec) -> tokenizers::Tokenizer {
    let json = spec.to_tokenizer_json().unwrap().to_string();
    tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap()
}

#[test]
fn the_default_models_ids_are_the_references() {
    let read = read(&TokenizerSpec::from_gguf(&default_model()).unwrap());
    let text = std::fs::read_to_string(fixtures().join("text/tokenization.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rows: Vec<&Value> = rows.iter().filter(|row| row["parse_special"] == true).collect();
    assert!(rows.len() >= 59, "rows are missing");
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
        assert_eq!(read.encode(text, false).unwrap().get_ids(), expected, "{text:?}");
        assert_eq!(read.decode(&expected, false).unwrap(), text);
    }
}

/// Toy vocabularies of the other pre-tokenizers.
#[test]
fn every_pre_tokenizer_cuts_as_ours_does() {
    let spec = TokenizerSpec::from_gguf(&tiny("qwen2")).unwrap();
    let texts = [
        "it's I'LL  be\t there\n\n  12345 apples",
        "a\u{301}  x",
        " \n\u{e9}\u{4e2d}\u{6587} !!\n",
        "<s>a</s> 1",
        "x  12  34 ",
        "don't STOP\r\n\r\n",
        "",
    ];
    for pre in ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"] {
        let spec = TokenizerSpec { pre: pre.to_owned(), ..spec.clone() };
        let (read, ours) = (read(&spec), Tokenizer::new(spec).unwrap());
        for text in texts {
            let found = read.encode(text, false).unwrap();
            assert_eq!(found.get_ids(), ours.encode(text, true), "{pre} {text:?}");
            let begun = read.encode(text, true).unwrap();
            let expected: Vec<u32> = ours
                .bos_token()
                .filter(|_| ours.add_bos())
                .into_iter()
                .chain(ours.encode(text, true))
                .collect();
            assert_eq!(begun.get_ids(), expected, "{pre} {text:?}");
        }
    }
}
