//! Lines of a file, one at a time, of bounded length.

use std::io::BufRead;

use super::error::DataError;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a source of rows may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes of one line, without its end; for plain text, of one document.
    pub line_bytes_max: usize,
    /// Bytes of the whole source.
    pub file_bytes_max: u64,
    /// Rows of the whole source.
    pub rows_max: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { line_bytes_max: 16 << 20, file_bytes_max: 8 << 30, rows_max: 20_000_000 }
    }
}

/// Reads lines into one buffer that is used again.
#[derive(Debug)]
pub(super) struct Lines<R> {
    source: R,
    limits: ReadLimits,
    buffer: Vec<u8>,
    line: u64,
    bytes_read: u64,
    /// An error that ends the source was returned.
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(source: R, limits: ReadLimits) -> Self {
        Self { source, limits, buffer: Vec::new(), line: 0, bytes_read: 0, ended: false }
    }

    /// The next line without its end and its number, empty lines too; the byte-order mark of the first is left out.
    /// After [`DataError::LineTooLong`] and [`DataError::Utf8`] reading goes on with the line after.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, &str)>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let whole = self.fill().inspect_err(|_| self.ended = true)?;
        let Some(whole) = whole else { return Ok(None) };
        self.line += 1;
        let line = self.line;
        if !whole {
            return Err(DataError::LineTooLong { line, bytes_max: self.limits.line_bytes_max });
        }
        let mut bytes = self.buffer.as_slice();
        bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if line == 1 {
            bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| DataError::Utf8 { line, byte: error.valid_up_to() })?;
        Ok(Some((line, text)))
    }

    /// Reads up to the next line feed. `None` at the end, `false` if only a part of the line was kept.
    fn fill(&mut self) -> Result<Option<bool>, DataError> {
        self.buffer.clear();
        let mut whole = true;
        let mut any = false;
        loop {
            let available = match self.source.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if available.is_empty() {
                return Ok(any.then_some(whole));
            }
            any = true;
            let end = available.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let part = &available[..end.unwrap_or(available.len())];
            // A line's end may be two bytes more.
            whole &= self.buffer.len() + part.len() <= self.limits.line_bytes_max + 2;
            if whole {
                self.buffer.extend_from_slice(part);
            }
            let n_bytes = part.len();
            self.source.consume(n_bytes);
            self.bytes_read += n_bytes as u64;
            if self.bytes_read > self.limits.file_bytes_max {
                return Err(DataError::FileTooLarge { bytes_max: self.limits.file_bytes_max });
            }
            if end.is_some() {
                return Ok(Some(whole));
            }
        }
    }
}
