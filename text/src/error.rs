//! What can be wrong with a tokenizer or a chat template.

use pleach_engine::gguf::GgufError;

/// Why a file's tokenizer was refused.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file lacks a key that every tokenizer needs.
    #[error("key missing from the model file: {key}")]
    MissingKey {
        /// The metadata key.
        key: &'static str,
    },
    /// A key is there, but it can't be read as what it should be.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A family of tokenizers that isn't built.
    #[error("tokenizer model not supported: {model} (supported: gpt2, which is byte-level BPE)")]
    UnsupportedModel {
        /// Value of `tokenizer.ggml.model`.
        model: String,
    },
    /// Byte-level BPE, but its rule for splitting text into words isn't built.
    #[error("pre-tokenizer not supported: {pre} (supported: {supported})")]
    UnsupportedPreTokenizer {
        /// Value of `tokenizer.ggml.pre`.
        pre: String,
        /// The names that are.
        supported: String,
    },
    /// No tokens at all.
    #[error("vocabulary is empty")]
    EmptyVocabulary,
    /// More tokens than an id of 32 bits can name.
    #[error("too many tokens: {tokens}")]
    TooManyTokens {
        /// Length of the list.
        tokens: usize,
    },
    /// Lists of different lengths.
    #[error("vocabulary has {tokens} tokens but {types} token types")]
    TokenTypeCount {
        /// Tokens in the list.
        tokens: usize,
        /// Types in the list.
        types: usize,
    },
    /// A token type that the GGUF format doesn't define.
    #[error("token {id} has the unknown type {token_type}")]
    TokenType {
        /// Index into the list.
        id: usize,
        /// The number found.
        token_type: u32,
    },
    /// The same text twice: encoding would be ambiguous.
    #[error("token {token:?} is there twice: ids {first} and {second}")]
    DuplicateToken {
        /// The text.
        token: String,
        /// Lower id.
        first: u32,
        /// Higher id.
        second: u32,
    },
    /// The file names a token that it doesn't have.
    #[error("{key} is {id}, but there are only {tokens} tokens")]
    TokenIdOutOfRange {
        /// The metadata key.
        key: &'static str,
        /// Its value.
        id: u32,
        /// Size of the vocabulary.
        tokens: usize,
    },
    /// A merge is not two tokens with a space between them.
    #[error("merge {index} is not two tokens with a space between: {merge:?}")]
    BadMerge {
        /// Index into the list, which is its rank.
        index: usize,
        /// The entry.
        merge: String,
    },
    /// A merge needs a token that isn't in the vocabulary.
    #[error("merge {index} ({merge:?}) needs the token {token:?}, which the vocabulary lacks")]
    MergeWithoutToken {
        /// Index into the list, which is its rank.
        index: usize,
        /// The entry.
        merge: String,
        /// Left side, right side or the two together.
        token: String,
    },
    /// A library refused what passed all checks above.
    #[error("cannot build the {part}: {source}")]
    Build {
        /// What was being built.
        part: &'static str,
        /// The library's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a chat could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file has no template, so it can complete text but not chat.
    #[error("the model file has no chat template (key tokenizer.chat_template)")]
    NoTemplate,
    /// A key is there, but it can't be read as what it should be.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The template itself is not valid.
    #[error("chat template does not compile, line {line}: {detail}")]
    Syntax {
        /// Line in the template, from 1; 0 if not known.
        line: usize,
        /// What the template engine says.
        detail: String,
    },
    /// The template called `raise_exception`: it refuses these messages.
    #[error("chat template refuses the messages: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// The template failed while it ran.
    #[error("chat template failed, line {line}: {detail}")]
    Render {
        /// Line in the template, from 1; 0 if not known.
        line: usize,
        /// What the template engine says.
        detail: String,
    },
    /// The template took more steps than any sane one does.
    #[error("chat template did not end within {fuel} steps")]
    OutOfFuel {
        /// The limit.
        fuel: u64,
    },
    /// The template wrote more than any sane one does.
    #[error("chat template wrote more than {bytes_max} bytes")]
    OutputTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// A message isn't what a chat message is.
    #[error("messages[{index}]: {reason}")]
    BadMessage {
        /// Index into `messages`.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// A message has a part that isn't text.
    #[error("messages[{index}].content[{part}]: type {kind:?} is not supported, only \"text\" is")]
    UnsupportedPart {
        /// Index into `messages`.
        index: usize,
        /// Index into the message's content.
        part: usize,
        /// The part's type.
        kind: String,
    },
}
