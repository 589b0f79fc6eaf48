//! The file of external data: tensors one after the other, written in one forward pass and hashed on the way.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{digest::hex, error::ExportError};

/// Tensors begin at multiples of this many bytes, so that every runtime can map them.
const ALIGN: usize = 4096;
const BUFFER_BYTES: usize = 1 << 20;

/// Where the bytes of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataSlice {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A file under construction. Memory does not grow with it.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    out: BufWriter<File>,
    position: u64,
    begin: u64,
    hash: Sha256,
}

impl DataFile {
    pub(crate) fn create(path: &Path) -> Result<Self, ExportError> {
        let file = File::create_new(path).map_err(ExportError::io("create", path))?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let path = path.to_owned();
        Ok(Self { path, out, position: 0, begin: 0, hash: Sha256::new() })
    }

    /// Where the next tensor begins.
    pub(crate) fn begin(&mut self) -> Result<(), ExportError> {
        const ZEROS: [u8; ALIGN] = [0; ALIGN];
        let gap = self.position.next_multiple_of(ALIGN as u64) - self.position;
        // Below the alignment, which is a usize.
        let gap = usize::try_from(gap).unwrap_or_default();
        self.bytes(&ZEROS[..gap])?;
        self.begin = self.position;
        Ok(())
    }

    /// Goes on with the tensor.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.write(bytes).map_err(ExportError::io("write", &self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Goes on with values of the tensor.
    pub(crate) fn floats(&mut self, values: &[f32]) -> Result<(), ExportError> {
        const CHUNK: usize = 4096;
        let mut bytes = [0; CHUNK * size_of::<f32>()];
        for values in values.chunks(CHUNK) {
            let out = &mut bytes[..size_of_val(values)];
            for (out, value) in out.chunks_exact_mut(size_of::<f32>()).zip(values) {
                out.copy_from_slice(&value.to_le_bytes());
            }
            self.bytes(out)?;
        }
        Ok(())
    }

    /// The tensor that was begun last.
    pub(crate) fn end(&self) -> DataSlice {
        DataSlice { offset: self.begin, length: self.position - self.begin }
    }

    /// Bytes and digest of the whole file.
    pub(crate) fn finish(mut self) -> Result<(u64, String), ExportError> {
        self.out.flush().map_err(ExportError::io("write", &self.path))?;
        Ok((self.position, hex(self.hash)))
    }
}
