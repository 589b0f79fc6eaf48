//! Byte-level BPE: text to token ids and back, as the model's own tokenizer does it.
//!
//! ```text
//! text ── added tokens cut out ── NFC (some models) ── words (pre_tokenizer) ── bytes as characters ── merges ──> ids
//! ```
//!
//! A tokenizer is built once for a model and shared: encoding and decoding take `&self` from any thread. Token ids only
//! have a meaning together with the vocabulary that made them; nothing here knows what a model does with them.

mod byte_level;
mod hugging_face;
mod pre_tokenizer;
mod spec;

use std::collections::{HashMap, HashSet};

use aho_corasick::{AhoCorasick, MatchKind};
use pleach_engine::gguf::GgufFile;
use tokenizers::{
    Model, NormalizedString, Normalizer,
    models::bpe::{BPE, Vocab},
    normalizers::NFC,
};

use self::{pre_tokenizer::PreTokenizer, spec::TokenType};
use crate::TextError;

pub use self::spec::TokenizerSpec;

/// GGUF's name for byte-level BPE.
const MODEL_BYTE_LEVEL_BPE: &str = "gpt2";

/// Added tokens that end an answer in the models we serve, whether or not the file's metadata names them. Files
/// often name only one of several: Qwen's chat models stop at `<|im_end|>` and at `<|endoftext|>`.
const END_TOKENS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "</s>",
];

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    bpe: BPE,
    words: PreTokenizer,
    /// Special and user-defined tokens: both are matched when special tokens are to be parsed.
    added: Finder,
    /// User-defined tokens alone: they are text, so they are always matched.
    user_defined: Finder,
    texts: Vec<String>,
    types: Vec<TokenType>,
    /// Bytes of all tokens, one after the other; those of token `t` end at `byte_ends[t]`.
    bytes: Vec<u8>,
    byte_ends: Vec<usize>,
    bos: Option<u32>,
    eos: Option<u32>,
    end_tokens: Vec<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// Builds the tokenizer that a model file describes.
    ///
    /// # Errors
    /// [`TextError`], naming the key, token or merge.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TextError> {
        Self::new(TokenizerSpec::from_gguf(file)?)
    }

    /// Builds a tokenizer from its description.
    ///
    /// # Errors
    /// [`TextError`], naming the token or merge; families that aren't built are refused by name.
    pub fn new(spec: TokenizerSpec) -> Result<Self, TextError> {
        if spec.model != MODEL_BYTE_LEVEL_BPE {
            return Err(TextError::UnsupportedModel { model: spec.model });
        }
        let words = PreTokenizer::by_name(&spec.pre)?;
        let types = checked_types(&spec)?;
        check_ids(&spec)?;
        let ids = ids_by_text(&spec.tokens, &types)?;
        let bpe = build_bpe(&spec, &types, &ids, words.rule.ignore_merges)?;
        let end_tokens = end_tokens(&spec, &types, &ids);
        let added = Finder::new(&spec.tokens, |id| {
            types[id].is_special() || types[id] == TokenType::UserDefined
        })?;
        let user_defined = Finder::new(&spec.tokens, |id| types[id] == TokenType::UserDefined)?;

        let mut bytes = Vec::new();
        let mut byte_ends = Vec::with_capacity(spec.tokens.len());
        for (text, token_type) in spec.tokens.iter().zip(&types) {
            match token_type {
                TokenType::Normal | TokenType::Byte => byte_level::push_decoded(text, &mut bytes),
                TokenType::Unknown | TokenType::Control | TokenType::UserDefined => {
                    bytes.extend_from_slice(text.as_bytes());
                }
                // A hole has a made-up name; a model that samples it says nothing.
                TokenType::Unused => {}
            }
            byte_ends.push(bytes.len());
        }

        Ok(Self {
            bpe,
            add_bos: spec.bos.is_some() && spec.add_bos.unwrap_or(words.rule.add_bos),
            words,
            added,
            user_defined,
            texts: spec.tokens,
            types,
            bytes,
            byte_ends,
            bos: spec.bos,
            eos: spec.eos,
            end_tokens,
        })
    }

    /// Token ids of `text`; nothing is added at either end.
    ///
    /// With `parse_special`, special tokens written in the text become their ids, which is what a rendered chat needs
    /// and a stranger's text must not have. Without, they are ordinary characters. User-defined tokens are ordinary
    /// text that has an id of its own: they are found either way.
    ///
    /// A byte whose character the vocabulary lacks gives no id, as in the model's own tokenizer.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let finder = if parse_special { &self.added } else { &self.user_defined };
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut start = 0;
        for (found_at, found_end, id) in finder.find_iter(text) {
            self.encode_ordinary(&text[start..found_at], &mut ids);
            ids.push(id);
            start = found_end;
        }
        self.encode_ordinary(&text[start..], &mut ids);
        ids
    }

    /// Text of `ids`; bytes that are not UTF-8 become U+FFFD. Ids outside the vocabulary give nothing, and neither do
    /// special tokens with `skip_special`. For a stream of tokens there is [`Detokenizer`](crate::Detokenizer).
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.token_bytes(id));
            }
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// The bytes that a token stands for: often a part of a character only. Empty for ids outside the vocabulary and
    /// for unused ones.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.byte_ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.byte_ends[id - 1] };
        &self.bytes[start..end]
    }

    /// A token as the vocabulary spells it (`"Ġhello"`), if there is one of this id.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    /// Whether a token is special: it begins, ends or separates, and isn't part of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.types.get(id as usize).is_some_and(|token_type| token_type.is_special())
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// Begins a text, if the model has such a token.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos
    }

    /// Ends a text, if the model has such a token; [`eos_tokens`](Self::eos_tokens) lists all that end an answer.
    pub fn eos_token(&self) -> Option<u32> {
        self.eos
    }

    /// Every token that ends an answer, without repetition: those that the metadata names (EOS, EOT, EOM), the first
    /// of them first, then well-known ones that the vocabulary has.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Whether a prompt that isn't a chat should begin with [`bos_token`](Self::bos_token). Chat templates write it
    /// themselves. [`encode`](Self::encode) never adds it.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    fn encode_ordinary(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        if self.words.rule.nfc && !text.is_ascii() {
            let mut normalized = NormalizedString::from(text);
            // Composing is total: the library's signature allows for others that aren't.
            if NFC.normalize(&mut normalized).is_ok() {
                return self.encode_words(normalized.get(), ids);
            }
        }
        self.encode_words(text, ids);
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<u32>) {
        let mut characters = String::new();
        self.words.split(text, |word| {
            characters.clear();
            byte_level::push_encoded(word, &mut characters);
            // The model fails only where its unknown token is missing from the vocabulary, and it has none.
            if let Ok(tokens) = self.bpe.tokenize(&characters) {
                ids.extend(tokens.into_iter().map(|token| token.id));
            }
        });
    }
}

/// Finds tokens of a fixed list in text: leftmost first, the longest where several begin.
#[derive(Debug)]
struct Finder {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Finder {
    fn new(tokens: &[String], wanted: impl Fn(usize) -> bool) -> Result<Self, TextError> {
        let wanted: Vec<usize> =
            (0..tokens.len()).filter(|&id| !tokens[id].is_empty() && wanted(id)).collect();
        if wanted.is_empty() {
            return Ok(Self { automaton: None, ids: Vec::new() });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(wanted.iter().map(|&id| &tokens[id]))
            .map_err(|source| TextError::Build {
                part: "finder of added tokens",
                source: source.into(),
            })?;
        Ok(Self { automaton: Some(automaton), ids: wanted.into_iter().map(token_id).collect() })
    }

    /// Start, end and id of each token found.
    fn find_iter<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, usize, u32)> + 'a {
        self.automaton
            .iter()
            .flat_map(move |automaton| automaton.find_iter(text))
            .map(|found| (found.start(), found.end(), self.ids[found.pattern().as_usize()]))
    }
}

/// Index into the vocabulary as an id; [`checked_types`] made sure that it fits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the vocabulary's length was checked to fit 32 bits"
)]
fn token_id(index: usize) -> u32 {
    index as u32
}

fn checked_types(spec: &TokenizerSpec) -> Result<Vec<TokenType>, TextError> {
    let (tokens, types) = (spec.tokens.len(), spec.token_types.len());
    if tokens == 0 {
        return Err(TextError::EmptyVocabulary);
    }
    if u32::try_from(tokens).is_err() {
        return Err(TextError::TooManyTokens { tokens });
    }
    if types == 0 {
        return Ok(vec![TokenType::Normal; tokens]);
    }
    if types != tokens {
        return Err(TextError::TokenTypeCount { tokens, types });
    }
    let numbered = spec.token_types.iter().enumerate();
    numbered
        .map(|(id, &token_type)| {
            TokenType::from_number(token_type).ok_or(TextError::TokenType { id, token_type })
        })
        .collect()
}

fn check_ids(spec: &TokenizerSpec) -> Result<(), TextError> {
    let tokens = spec.tokens.len();
    for (key, id) in [
        (spec::KEY_BOS, spec.bos),
        (spec::KEY_EOS, spec.eos),
        (spec::KEY_EOT, spec.eot),
        (spec::KEY_EOM, spec.eom),
        (spec::KEY_UNK, spec.unk),
        (spec::KEY_PAD, spec.pad),
    ] {
        if let Some(id) = id.filter(|&id| id as usize >= tokens) {
            return Err(TextError::TokenIdOutOfRange { key, id, tokens });
        }
    }
    Ok(())
}

/// Ids by text of all tokens but unused and empty ones.
fn ids_by_text<'s>(
    tokens: &'s [String],
    types: &[TokenType],
) -> Result<HashMap<&'s str, u32>, TextError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        if token.is_empty() || types[index] == TokenType::Unused {
            continue;
        }
        let second = token_id(index);
        if let Some(first) = ids.insert(token.as_str(), second) {
            return Err(TextError::DuplicateToken { token: token.clone(), first, second });
        }
    }
    Ok(ids)
}

fn build_bpe(
    spec: &TokenizerSpec,
    types: &[TokenType],
    ids: &HashMap<&str, u32>,
    ignore_merges: bool,
) -> Result<BPE, TextError> {
    let mut merges = Vec::with_capacity(spec.merges.len());
    let mut special_in_merges = HashSet::new();
    let mut joined = String::new();
    for (index, merge) in spec.merges.iter().enumerate() {
        let Some((left, right)) =
            merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty())
        else {
            return Err(TextError::BadMerge { index, merge: merge.clone() });
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        for token in [left, right, &joined] {
            let Some(&id) = ids.get(token) else {
                return Err(TextError::MergeWithoutToken {
                    index,
                    merge: merge.clone(),
                    token: token.to_owned(),
                });
            };
            if types[id as usize].is_special() {
                special_in_merges.insert(id);
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    // Special tokens stay out of the merging vocabulary: ordinary text must never become one, not even a word that
    // happens to be spelled like one where whole words are looked up before merging.
    let vocab: Vocab = ids
        .iter()
        .filter(|&(_, id)| !types[*id as usize].is_special() || special_in_merges.contains(id))
        .map(|(&text, &id)| (text.to_owned(), id))
        .collect();
    BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|source| TextError::Build { part: "byte-pair merges", source })
}

fn end_tokens(spec: &TokenizerSpec, types: &[TokenType], ids: &HashMap<&str, u32>) -> Vec<u32> {
    let named = [spec.eos, spec.eot, spec.eom].into_iter().flatten();
    let known = END_TOKENS.iter().filter_map(|&text| ids.get(text).copied());
    let known = known.filter(|&id| {
        types[id as usize].is_special() || types[id as usize] == TokenType::UserDefined
    });
    let mut seen = HashSet::new();
    named.chain(known).filter(|&id| seen.insert(id)).collect()
}
