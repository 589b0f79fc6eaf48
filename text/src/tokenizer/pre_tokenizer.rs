//! How text is cut into words before byte-pair merging; merges never cross a cut.
//!
//! The published patterns end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word that
//! follows. Look-ahead needs a backtracking matcher, which gives up on long runs. Here the pattern ends in plain `\s+`
//! and [`PreTokenizer::split`] takes the one character back, so the matcher is a finite automaton: linear in the text,
//! whatever the text is.
//!
//! | name in `tokenizer.ggml.pre` | split | also |
//! |---|---|---|
//! | `gpt-2`, `gpt2`, `default` | GPT-2 | |
//! | `smollm` | each digit alone, then GPT-2 | |
//! | `llama-bpe`, `llama3`, `llama-v3` | Llama 3: up to three digits | whole words in the vocabulary are not merged; begins with BOS |
//! | `smaug-bpe` | Llama 3 | |
//! | `qwen2`, `deepseek-r1-qwen` | Qwen 2: each digit alone | text is put into NFC first |
//!
//! Sources: the `tokenizer.json` files of the models; names as llama.cpp's converter writes them.

use regex::Regex;
use serde_json::{Value, json};

use crate::TextError;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);

/// One row of the table above.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent peculiarities of models, one to a field"
)]
pub(super) struct Rule {
    names: &'static [&'static str],
    pattern: &'static str,
    /// Every numeric character is a word, and the pieces between are split on their own.
    digits_alone: bool,
    /// White space that ends in a line break is one word, whatever follows.
    newlines_stay: bool,
    /// Text must be in Unicode form NFC first.
    pub(super) nfc: bool,
    /// A word that is a token is that token, even where merging would give others.
    pub(super) ignore_merges: bool,
    /// Prompts begin with BOS unless the file says otherwise.
    pub(super) add_bos: bool,
}

const PLAIN: Rule = Rule {
    names: &[],
    pattern: GPT2,
    digits_alone: false,
    newlines_stay: false,
    nfc: false,
    ignore_merges: false,
    add_bos: false,
};

const RULES: &[Rule] = &[
    Rule { names: &["gpt-2", "gpt2", "default"], ..PLAIN },
    Rule { names: &["smollm"], digits_alone: true, ..PLAIN },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: LLAMA3,
        newlines_stay: true,
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Rule { names: &["smaug-bpe"], pattern: LLAMA3, newlines_stay: true, ..PLAIN },
    Rule {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: QWEN2,
        newlines_stay: true,
        nfc: true,
        ..PLAIN
    },
];

/// Cuts text into words.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    regex: Regex,
    pub(super) rule: &'static Rule,
}

impl Rule {
    pub(super) fn by_name(pre: &str) -> Result<&'static Self, TextError> {
        RULES.iter().find(|rule| rule.names.contains(&pre)).ok_or_else(|| {
            let supported: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
            TextError::UnsupportedPreTokenizer {
                pre: pre.to_owned(),
                supported: supported.join(", "),
            }
        })
    }

    /// The steps of a `tokenizer.json` that cut alike.
    pub(super) fn published(&self) -> Value {
        let byte_level = |use_regex| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        if self.pattern == GPT2 {
            if !self.digits_alone {
                return byte_level(true);
            }
            let digits = json!({ "type": "Digits", "individual_digits": true });
            return json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] });
        }
        let pattern = self.pattern.trim_end_matches(r"\s+");
        let pattern = format!(r"{pattern}\s+(?!\S)|\s+");
        let split = json!({
            "type": "Split",
            "pattern": { "Regex": pattern },
            "behavior": "Isolated",
            "invert": false,
        });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    }
}

impl PreTokenizer {
    pub(super) fn by_name(pre: &str) -> Result<Self, TextError> {
        let rule = Rule::by_name(pre)?;
        let regex = Regex::new(rule.pattern)
            .map_err(|source| TextError::Build { part: "pre-tokenizer", source: source.into() })?;
        Ok(Self { regex, rule })
    }

    /// Calls `word` with each word of `text`, in order; together they are `text`.
    pub(super) fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        if !self.rule.digits_alone {
            return self.split_piece(text, &mut word);
        }
        let mut start = 0;
        for (at, digit) in text.char_indices().filter(|(_, character)| character.is_numeric()) {
            self.split_piece(&text[start..at], &mut word);
            start = at + digit.len_utf8();
            word(&text[at..start]);
        }
        self.split_piece(&text[start..], &mut word);
    }

    fn split_piece<'t>(&self, text: &'t str, word: &mut impl FnMut(&'t str)) {
        let mut start = 0;
        while let Some(found) = self.regex.find_at(text, start) {
            let end = self.give_back(text, found.start(), found.end());
            if found.start() > start {
                word(&text[start..found.start()]);
            }
            word(&text[found.start()..end]);
            start = end;
        }
        if start < text.len() {
            word(&text[start..]);
        }
    }

    /// Where the word `text[start..end]` really ends: a run of white space with something behind it is one character
    /// shorter, unless it is only one long. Only such runs end in white space, apart from those that end in a line
    /// break where the pattern has an alternative for them.
    fn give_back(&self, text: &str, start: usize, end: usize) -> usize {
        let Some(last) = text[start..end].chars().next_back().filter(|last| last.is_whitespace())
        else {
            return end;
        };
        let line_break = self.rule.newlines_stay && matches!(last, '\r' | '\n');
        let shorter = end - last.len_utf8();
        if line_break || end == text.len() || shorter == start { end } else { shorter }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        PreTokenizer::by_name(pre).unwrap().split(text, |word| words.push(word));
        words
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_next_word() {
        assert_eq!(words("gpt-2", "a   b \n"), ["a", "  ", " b", " \n"]);
        assert_eq!(words("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(words("llama-bpe", "a\n\n  b"), ["a", "\n\n", " ", " b"]);
        assert_eq!(words("llama-bpe", "a !\n\nb"), ["a", " !\n\n", "b"]);
    }

    #[test]
    fn digits() {
        assert_eq!(words("gpt-2", "x 1234"), ["x", " 1234"]);
        assert_eq!(words("smollm", "x 12"), ["x", " ", "1", "2"]);
        assert_eq!(words("llama-bpe", "12345"), ["123", "45"]);
        assert_eq!(words("qwen2", "123"), ["1", "2", "3"]);
    }

    #[test]
    fn contractions() {
        assert_eq!(words("gpt-2", "it's I'LL"), ["it", "'s", " I", "'", "LL"]);
        assert_eq!(words("qwen2", "it's I'LL"), ["it", "'s", " I", "'LL"]);
    }

    #[test]
    fn other_names_are_refused_by_name() {
        let error = PreTokenizer::by_name("tekken").unwrap_err().to_string();
        assert!(
            error.starts_with("pre-tokenizer not supported: tekken (supported: gpt-2, "),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn words_are_the_text(text in "[ \\n\\ta1é!']{0,40}|\\PC{0,40}", pre in 0..RULES.len()) {
            let words = words(RULES[pre].names[0], &text);
            prop_assert_eq!(words.concat(), text.as_str());
            prop_assert!(words.iter().all(|word| !word.is_empty()));
        }
    }
}
