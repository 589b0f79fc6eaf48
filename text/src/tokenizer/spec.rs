//! The tokenizer as a model file describes it.

use pleach_engine::gguf::GgufFile;

use crate::TextError;

const KEY_MODEL: &str = "tokenizer.ggml.model";
const KEY_PRE: &str = "tokenizer.ggml.pre";
const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
const KEY_TYPES: &str = "tokenizer.ggml.token_type";
const KEY_MERGES: &str = "tokenizer.ggml.merges";
const KEY_ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const KEY_BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const KEY_EOS: &str = "tokenizer.ggml.eos_token_id";
pub(super) const KEY_EOT: &str = "tokenizer.ggml.eot_token_id";
pub(super) const KEY_EOM: &str = "tokenizer.ggml.eom_token_id";
pub(super) const KEY_UNK: &str = "tokenizer.ggml.unknown_token_id";
pub(super) const KEY_PAD: &str = "tokenizer.ggml.padding_token_id";

/// What kind of token one is; the numbers are those of GGUF's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenType {
    /// Part of ordinary text.
    Normal,
    /// Stands for what can't be encoded; special.
    Unknown,
    /// Begins, ends or separates; special.
    Control,
    /// Added after training, but text all the same.
    UserDefined,
    /// A hole in the list of ids.
    Unused,
    /// A byte of its own.
    Byte,
}

impl TokenType {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }
}

/// Everything that a tokenizer is made of, as plain data.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec {
    /// Family: `gpt2` is byte-level BPE.
    pub model: String,
    /// How text is cut into words before merging.
    pub pre: String,
    /// The vocabulary; the id of a token is its index.
    pub tokens: Vec<String>,
    /// GGUF token types, one for each token, or empty if all are ordinary.
    pub token_types: Vec<u32>,
    /// Merges, the most urgent first: two tokens with a space between.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Ends a message that calls a tool.
    pub eom: Option<u32>,
    /// Stands for what can't be encoded.
    pub unk: Option<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
    /// Whether prompts begin with BOS; `None` leaves it to the pre-tokenizer's family.
    pub add_bos: Option<bool>,
}

impl TokenizerSpec {
    /// Reads the description from a file's metadata.
    ///
    /// # Errors
    /// [`TextError::MissingKey`] and [`TextError::Gguf`] name the key; [`TextError::UnsupportedModel`] before anything
    /// large is read.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TextError> {
        let model =
            file.str(KEY_MODEL)?.ok_or(TextError::MissingKey { key: KEY_MODEL })?.to_owned();
        if model != super::MODEL_BYTE_LEVEL_BPE {
            return Err(TextError::UnsupportedModel { model });
        }
        Ok(Self {
            model,
            // Files without this key are older than it and were made by converters that knew no difference.
            // Guessing would give a model other ids than it was trained on, without a word.
            pre: file.str(KEY_PRE)?.ok_or(TextError::MissingKey { key: KEY_PRE })?.to_owned(),
            tokens: owned(file, KEY_TOKENS)?.ok_or(TextError::MissingKey { key: KEY_TOKENS })?,
            token_types: file.u32s(KEY_TYPES)?.unwrap_or_default(),
            merges: owned(file, KEY_MERGES)?.ok_or(TextError::MissingKey { key: KEY_MERGES })?,
            bos: file.u32(KEY_BOS)?,
            eos: file.u32(KEY_EOS)?,
            eot: file.u32(KEY_EOT)?,
            eom: file.u32(KEY_EOM)?,
            unk: file.u32(KEY_UNK)?,
            pad: file.u32(KEY_PAD)?,
            add_bos: file.bool(KEY_ADD_BOS)?,
        })
    }
}

fn owned(file: &GgufFile, key: &str) -> Result<Option<Vec<String>>, TextError> {
    Ok(file.strings(key)?.map(|strings| strings.into_iter().map(str::to_owned).collect()))
}
