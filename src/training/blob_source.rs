//! A blob, for code that reads and blocks.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use pleach_store::BlobReader;
use tokio::runtime::Handle;

/// Reads a blob on a blocking thread. The last read fails if the bytes were not those that were put.
#[derive(Debug)]
pub struct BlobSource {
    reader: BlobReader,
    runtime: Handle,
    piece: Bytes,
}

impl BlobSource {
    /// Reads what `reader` gives, driven by `runtime`; not to be read on one of its own threads.
    pub fn new(reader: BlobReader, runtime: Handle) -> Self {
        Self { reader, runtime, piece: Bytes::new() }
    }
}

impl Read for BlobSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.reader.next()).map_err(io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n_bytes = into.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut into[..n_bytes]);
        Ok(n_bytes)
    }
}
