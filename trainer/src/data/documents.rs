//! Documents of a plain text file.

use std::{collections::BTreeMap, io::BufRead};

use super::{
    error::DataError,
    format::Format,
    lines::{Lines, ReadLimits},
    read::RowSource,
    row::{Origin, Row, RowBody},
};

/// Where a document of a text file ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DocumentEnd {
    /// At empty lines.
    #[default]
    EmptyLine,
    /// At every line's end.
    Line,
    /// At the end of the file.
    File,
}

/// Reads the documents of a plain text file as rows. A document that outgrows
/// [`ReadLimits::line_bytes_max`] goes on in the next row, from a line's end on.
#[derive(Debug)]
pub struct DocumentReader<R> {
    lines: Lines<R>,
    end: DocumentEnd,
    limits: ReadLimits,
    /// The first line of the next document, where the last one was cut.
    left_over: Option<(u64, String)>,
    n_rows: u64,
    ended: bool,
}

impl<R: BufRead> DocumentReader<R> {
    /// Reads documents that end so.
    pub fn new(source: R, end: DocumentEnd, limits: ReadLimits) -> Self {
        let lines = Lines::new(source, limits.clone());
        Self { lines, end, limits, left_over: None, n_rows: 0, ended: false }
    }

    fn next_document(&mut self) -> Result<Option<Row>, DataError> {
        let (mut at, mut text) = self.left_over.take().unwrap_or_default();
        while let Some((line, more)) = self.lines.next_line()? {
            let empty = more.trim().is_empty();
            if empty && (text.is_empty() || self.end == DocumentEnd::EmptyLine) {
                if text.is_empty() {
                    continue;
                }
                break;
            }
            if text.is_empty() {
                at = line;
            } else if text.len() + 1 + more.len() > self.limits.line_bytes_max {
                self.left_over = (!empty).then(|| (line, more.to_owned()));
                break;
            } else {
                text.push('\n');
            }
            text.push_str(more);
            if self.end == DocumentEnd::Line {
                break;
            }
        }
        text.truncate(text.trim_end().len());
        if text.is_empty() {
            return if self.n_rows == 0 { Err(DataError::Empty) } else { Ok(None) };
        }
        self.n_rows += 1;
        if self.n_rows > self.limits.rows_max {
            return Err(DataError::TooManyRows { rows_max: self.limits.rows_max });
        }
        Ok(Some(Row { line: at, origin: Origin::default(), body: RowBody::Text(text) }))
    }
}

impl<R: BufRead> RowSource for DocumentReader<R> {
    fn format(&self) -> Option<Format> {
        Some(Format::Text)
    }

    fn ignored_fields(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

impl<R: BufRead> Iterator for DocumentReader<R> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.next_document();
        // A line that is lost would leave a document with a hole, so any error ends the file.
        self.ended = !matches!(row, Ok(Some(_)));
        row.transpose()
    }
}
