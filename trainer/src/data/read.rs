//! Rows of a JSONL file, one line in memory at a time.

use std::{collections::BTreeMap, io::BufRead};

use serde_json::Value;

use super::{
    error::{BadField, DataError},
    fields::Field,
    format::Format,
    lines::{Lines, ReadLimits},
    row::Row,
    rows::origin,
};

/// Where rows come from.
pub trait RowSource: Iterator<Item = Result<Row, DataError>> {
    /// The format, once it is known.
    fn format(&self) -> Option<Format>;

    /// Fields of rows that the format doesn't know, and how many rows have each. They are read over.
    fn ignored_fields(&self) -> BTreeMap<String, u64>;
}

/// Reads rows. After an error that is about one line it goes on with the next, so that all bad lines can be told at
/// once; after any other it ends.
///
/// A byte-order mark, `\r\n` and empty lines are tolerated. Where an object has a key twice, the last one counts.
#[derive(Debug)]
pub struct RowReader<R> {
    lines: Lines<R>,
    format: Option<Format>,
    rows_max: u64,
    n_rows: u64,
    ignored: BTreeMap<String, u64>,
    ended: bool,
}

impl<R: BufRead> RowReader<R> {
    /// Reads rows of this format, or of the one that the first row has.
    pub fn new(source: R, format: Option<Format>, limits: ReadLimits) -> Self {
        let rows_max = limits.rows_max;
        let lines = Lines::new(source, limits);
        Self { lines, format, rows_max, n_rows: 0, ignored: BTreeMap::new(), ended: false }
    }

    fn next_row(&mut self) -> Result<Option<Row>, DataError> {
        let (line, value) = loop {
            // Bad lines are rows too: a file of nothing else is not an empty one.
            let next = self.lines.next_line().inspect_err(|_| self.n_rows += 1);
            let Some((line, text)) = next? else {
                return if self.n_rows == 0 { Err(DataError::Empty) } else { Ok(None) };
            };
            if !text.trim().is_empty() {
                self.n_rows += 1;
                break (line, parse(line, text)?);
            }
        };
        if self.n_rows > self.rows_max {
            return Err(DataError::TooManyRows { rows_max: self.rows_max });
        }
        let format = match self.format {
            Some(format) => format,
            None => *self.format.insert(Format::detect(line, &value)?),
        };
        let bad = |field: BadField| DataError::Field { line, field };
        let row = Field::row(&value);
        let (body, origin) = (format.read(&row).map_err(bad)?, origin::read(&row).map_err(bad)?);
        self.count_ignored(format, &value);
        Ok(Some(Row { line, origin, body }))
    }

    fn count_ignored(&mut self, format: Format, row: &Value) {
        let (Some(known), Value::Object(row)) = (format.fields(), row) else { return };
        for name in row.keys() {
            if !known.contains(&name.as_str()) && !origin::FIELDS.contains(&name.as_str()) {
                if let Some(n) = self.ignored.get_mut(name) {
                    *n += 1;
                } else if self.ignored.len() < IGNORED_NAMES_MAX {
                    self.ignored.insert(name.clone(), 1);
                }
            }
        }
    }
}

/// Names of fields that are kept; a file may make up as many as it likes.
const IGNORED_NAMES_MAX: usize = 64;

impl<R: BufRead> RowSource for RowReader<R> {
    fn format(&self) -> Option<Format> {
        self.format
    }

    fn ignored_fields(&self) -> BTreeMap<String, u64> {
        self.ignored.clone()
    }
}

impl<R: BufRead> Iterator for RowReader<R> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.next_row();
        self.ended = match &row {
            Ok(row) => row.is_none(),
            Err(error) => error.line().is_none(),
        };
        row.transpose()
    }
}

fn parse(line: u64, text: &str) -> Result<Value, DataError> {
    serde_json::from_str(text).map_err(|error| {
        let detail = error.to_string();
        // The place is said by us, in the file rather than in the line.
        let detail = detail.split(" at line ").next().unwrap_or_default().to_owned();
        DataError::Json { line, column: error.column(), detail }
    })
}
