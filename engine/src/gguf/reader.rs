//! A cursor over the file that never reads past its end and says what it was reading.

use std::fmt;

use super::GgufError;

/// What is being read, for messages; formatted only when something is wrong.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// Parts 1 to 4 of the format.
    Header,
    /// The name of the n-th key.
    KeyName(u64),
    /// The value of a key.
    Key(&'a str),
    /// One string of an array.
    Item(&'a str, u64),
    /// The name of the n-th tensor.
    TensorName(u64),
    /// The description of a tensor.
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::KeyName(index) => write!(f, "the name of metadata key number {index}"),
            Self::Key(key) => write!(f, "metadata key {key:?}"),
            Self::Item(key, index) => write!(f, "item {index} of metadata key {key:?}"),
            Self::TensorName(index) => write!(f, "the name of tensor number {index}"),
            Self::Tensor(name) => write!(f, "tensor {name:?}"),
        }
    }
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes from the start of the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Fails unless `needed` more bytes are there; returns their number as a size of this machine.
    pub(super) fn check(&self, needed: u64, place: Place<'_>) -> Result<usize, GgufError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(needed) {
            Ok(n_bytes) if n_bytes <= left => Ok(n_bytes),
            Ok(_) | Err(_) => {
                Err(GgufError::Truncated { what: place.to_string(), at: self.at, needed, left })
            }
        }
    }

    pub(super) fn take(&mut self, needed: u64, place: Place<'_>) -> Result<&'a [u8], GgufError> {
        let n_bytes = self.check(needed, place)?;
        let taken = &self.bytes[self.at..self.at + n_bytes];
        self.at += n_bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, place: Place<'_>) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, place)?);
        Ok(array)
    }

    pub(super) fn bytes4(&mut self, place: Place<'_>) -> Result<[u8; 4], GgufError> {
        self.array(place)
    }

    pub(super) fn u32(&mut self, place: Place<'_>) -> Result<u32, GgufError> {
        self.array(place).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, place: Place<'_>) -> Result<u64, GgufError> {
        self.array(place).map(u64::from_le_bytes)
    }

    /// A length, then that many bytes of UTF-8. Borrowed from the file: nothing is allocated here.
    pub(super) fn string(
        &mut self,
        length_max: u64,
        place: Place<'_>,
    ) -> Result<&'a str, GgufError> {
        let length = self.u64(place)?;
        if length > length_max {
            return Err(GgufError::StringTooLong { what: place.to_string(), length, length_max });
        }
        let start = self.at;
        let bytes = self.take(length, place)?;
        std::str::from_utf8(bytes).map_err(|error| GgufError::Utf8 {
            what: place.to_string(),
            at: start + error.valid_up_to(),
        })
    }
}
