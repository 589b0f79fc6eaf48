//! Tokens to text while they arrive: only whole characters leave.

use std::sync::Arc;

use crate::Tokenizer;

/// Turns the tokens of one completion into text, as they come.
///
/// A token may end in the middle of a character; its bytes wait for the next one. What has left together with what
/// [`finish`](Self::finish) gives equals [`Tokenizer::decode`] of all tokens.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The beginning of a character; at most three bytes between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Starts a completion. With `skip_special`, special tokens give no text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new() }
    }

    /// Takes one token; returns the characters that it completed, often none. Bytes that can't become UTF-8 any more
    /// are U+FFFD, one for each maximal sequence, as in [`String::from_utf8_lossy`].
    pub fn push(&mut self, token: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(token) {
            return String::new();
        }
        self.pending.extend_from_slice(self.tokenizer.token_bytes(token));
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if done + invalid.len() == self.pending.len() && may_be_completed(invalid) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        text
    }

    /// Ends the completion: U+FFFD if a character was left unfinished, else nothing.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Whether bytes that aren't UTF-8 yet could be with more bytes behind them.
fn may_be_completed(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::TokenizerSpec;

    /// One token for each byte, then a few of several bytes, then a special one (id 260).
    fn byte_tokenizer() -> Arc<Tokenizer> {
        let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let shifted: Vec<u8> = (0..=u8::MAX).filter(|byte| !printable(byte)).collect();
        let mut tokens: Vec<String> = (0..=u8::MAX)
            .map(|byte| match shifted.iter().position(|&other| other == byte) {
                Some(place) => {
                    char::from_u32(0x100 + u32::try_from(place).unwrap()).unwrap().to_string()
                }
                None => char::from(byte).to_string(),
            })
            .collect();
        // "h\u{f0}" holds the first byte of a four-byte character, "\u{9f}\u{98}" continues one.
        let at = |byte: u8| tokens[usize::from(byte)].clone();
        let more = [
            at(b'h') + &at(0xf0),
            at(0x9f) + &at(0x98),
            at(0x80) + &at(b'!'),
            at(0xe2) + &at(0x82),
        ];
        tokens.extend(more);
        tokens.push("<|end|>".to_owned());
        let mut token_types = vec![1; 260];
        token_types.push(3);
        let (model, pre) = ("gpt2".to_owned(), "gpt-2".to_owned());
        Arc::new(
            Tokenizer::new(TokenizerSpec { model, pre, tokens, token_types, ..Default::default() })
                .unwrap(),
        )
    }

    #[test]
    fn a_character_leaves_when_its_last_byte_arrives() {
        let mut detokenizer = Detokenizer::new(byte_tokenizer(), true);
        let steps: Vec<String> = [256, 257, 0x80, 0x41].map(|token| detokenizer.push(token)).into();
        assert_eq!(steps, ["h", "", "\u{1f600}", "A"]);
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn bytes_that_lead_nowhere_are_replaced_at_once_and_an_unfinished_end_at_the_end() {
        let mut detokenizer = Detokenizer::new(byte_tokenizer(), true);
        assert_eq!(detokenizer.push(0xff), "\u{fffd}");
        assert_eq!(detokenizer.push(259), "");
        assert_eq!(detokenizer.push(u32::from(b'x')), "\u{fffd}x");
        assert_eq!(detokenizer.push(259), "");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn special_tokens_are_skipped_only_when_asked() {
        let tokenizer = byte_tokenizer();
        assert_eq!(Detokenizer::new(tokenizer.clone(), true).push(260), "");
        assert_eq!(Detokenizer::new(tokenizer, false).push(260), "<|end|>");
    }

    proptest! {
        #[test]
        fn pushes_and_finish_equal_decoding_at_once(
            // Lead and continuation bytes often, so that whole characters happen.
            ids in prop::collection::vec(prop_oneof![0u32..262, 0x80u32..0xc0, 0xc0u32..0x100, 256u32..261], 0..60),
            skip_special: bool,
        ) {
            let tokenizer = byte_tokenizer();
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip_special);
            let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(text, tokenizer.decode(&ids, skip_special));
        }
    }
}
