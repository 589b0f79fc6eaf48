//! What can be wrong with the data of a training run.

use std::{borrow::Cow, fmt, io};

use pleach_text::TemplateError;

/// A field that isn't what its format asks for. Where it is in the file is added by [`DataError::Field`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    /// From the row down: `messages[2].content`; `row` is the row itself.
    pub path: String,
    /// What should be there.
    pub expected: Cow<'static, str>,
    /// What is there.
    pub found: Cow<'static, str>,
}

impl fmt::Display for BadField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.path, self.expected, self.found)
    }
}

/// Why data was refused. Lines count from 1, empty ones included, as editors count them.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The source broke off.
    #[error("cannot read the data: {0}")]
    Read(#[from] io::Error),
    /// Nothing but empty lines.
    #[error("the data has no rows")]
    Empty,
    /// More bytes than [`ReadLimits::file_bytes_max`](super::ReadLimits::file_bytes_max).
    #[error("the data is larger than {bytes_max} bytes")]
    FileTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// More rows than [`ReadLimits::rows_max`](super::ReadLimits::rows_max).
    #[error("the data has more than {rows_max} rows")]
    TooManyRows {
        /// The limit.
        rows_max: u64,
    },
    /// A line longer than [`ReadLimits::line_bytes_max`](super::ReadLimits::line_bytes_max).
    #[error("line {line}: longer than {bytes_max} bytes")]
    LineTooLong {
        /// The line.
        line: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// Bytes that are no text.
    #[error("line {line}: not UTF-8 at byte {byte}")]
    Utf8 {
        /// The line.
        line: u64,
        /// Offset in the line, from 0.
        byte: usize,
    },
    /// A line that is no JSON.
    #[error("line {line}: not JSON at column {column}: {detail}")]
    Json {
        /// The line.
        line: u64,
        /// From 1, in bytes.
        column: usize,
        /// The parser's words.
        detail: String,
    },
    /// The fields of the first row are those of no format.
    #[error("line {line}: cannot tell the format from the fields {fields}; expected {expected}")]
    UnknownFormat {
        /// The line.
        line: u64,
        /// Names of the row's fields.
        fields: String,
        /// The fields of each format.
        expected: &'static str,
    },
    /// JSON, but not a row of this format.
    #[error("line {line}: {field}")]
    Field {
        /// The line.
        line: u64,
        /// The field, what was expected and what was found.
        field: BadField,
    },
    /// A row that the model's chat template does not render.
    #[error("line {line}: {source}")]
    Template {
        /// The line.
        line: u64,
        /// The template's reason.
        source: TemplateError,
    },
    /// A field of the row leaves no trace in the text that the model's chat template makes of it.
    #[error("line {line}: {path}: the model's chat template does not render it")]
    NotRendered {
        /// The line.
        line: u64,
        /// The field.
        path: String,
    },
    /// The template changes what it wrote before when a message follows, so its tokens cannot be told.
    #[error(
        "line {line}: messages[{message}]: the model's chat template changes the text before this message when it follows"
    )]
    Rewritten {
        /// The line.
        line: u64,
        /// Index of the message.
        message: usize,
    },
    /// More tokens than fit, and the policy is to refuse.
    #[error("line {line}: {tokens} tokens, at most {tokens_max} fit")]
    TooLong {
        /// The line.
        line: u64,
        /// Tokens of the row.
        tokens: usize,
        /// The limit.
        tokens_max: usize,
    },
}

impl DataError {
    /// The line that is to blame, if it is one.
    pub fn line(&self) -> Option<u64> {
        match self {
            Self::Read(_) | Self::Empty | Self::FileTooLarge { .. } | Self::TooManyRows { .. } => {
                None
            }
            Self::LineTooLong { line, .. }
            | Self::Utf8 { line, .. }
            | Self::Json { line, .. }
            | Self::UnknownFormat { line, .. }
            | Self::Field { line, .. }
            | Self::Template { line, .. }
            | Self::NotRendered { line, .. }
            | Self::Rewritten { line, .. }
            | Self::TooLong { line, .. } => Some(*line),
        }
    }
}
