//! Text on both sides of the engine: what a client wrote becomes token ids, what the engine sampled becomes text.
//!
//! Everything comes from the model file's own metadata, and everything is exact: the same ids and the same rendered
//! chats as the model's original tools.
//!
//! ```text
//! messages ── ChatTemplate::render ──> text ── Tokenizer::encode ──> ids ──> engine
//! engine ──> ids ── Detokenizer::push ──> text, whole characters only ── StopStrings::push ──> client
//! ```
//!
//! The crate knows no HTTP, no adapters and no weights. Styles of tool calls and grammars will be modules beside
//! these: a style reads what [`StopStrings`] lets through, a grammar needs [`Tokenizer::token_bytes`].

pub mod chat_template;
pub mod detokenizer;
mod error;
pub mod stop;
pub mod tokenizer;

pub use chat_template::{ChatTemplate, RenderOptions};
pub use detokenizer::Detokenizer;
pub use error::{TemplateError, TextError};
pub use stop::{StopStep, StopStrings};
pub use tokenizer::{Tokenizer, TokenizerSpec};
