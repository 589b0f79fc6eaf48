//! One allocation on the device, cut up once at start, with an account of who got what.

use std::fmt;

use super::CudaError;
use crate::backend::RunError;

/// Every part begins at a multiple of this, so that any vector load and any bulk copy is aligned.
pub const ARENA_ALIGN: u64 = 256;

/// An address in device memory. Arithmetic on it is plain; only [`super::Device`] looks behind it, with checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// Points nowhere: the one value for "absent" in structs that kernels take.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    ///
    /// # Panics
    /// If it is beyond the address space.
    #[must_use]
    pub const fn at(self, bytes: usize) -> Self {
        Self(self.0.checked_add(bytes as u64).expect("a device address within the address space"))
    }

    /// Whether it points nowhere.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::LowerHex for DevicePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A range that its arena has checked: the ticket for a copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArenaRange {
    at: DevicePtr,
    bytes: usize,
}

impl ArenaRange {
    pub(super) fn at(self) -> DevicePtr {
        self.at
    }

    pub(super) fn bytes(self) -> usize {
        self.bytes
    }
}

/// What an arena had given out at some time, and so ever since.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArenaBounds {
    begin: u64,
    end: u64,
}

impl ArenaBounds {
    /// A range, if it lies within.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`] with `what` is to be done there.
    pub(super) fn range(
        self,
        what: &'static str,
        at: DevicePtr,
        bytes: usize,
    ) -> Result<ArenaRange, CudaError> {
        let Self { begin, end } = self;
        if at.0 >= begin && at.0.checked_add(bytes as u64).is_some_and(|range_end| range_end <= end)
        {
            return Ok(ArenaRange { at, bytes });
        }
        Err(CudaError::OutOfRange { what, at: at.0, bytes, begin, end })
    }
}

/// What one purpose has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLine {
    /// For what.
    pub what: &'static str,
    /// Bytes, with the padding to [`ARENA_ALIGN`].
    pub bytes: u64,
    /// In how many parts.
    pub parts: usize,
}

/// A bump allocator over one range of device memory. Nothing is ever given back: what it holds lives as long as the model.
#[derive(Debug)]
pub struct Arena {
    base: DevicePtr,
    bytes: u64,
    used: u64,
    lines: Vec<ArenaLine>,
}

impl Arena {
    /// Takes over `bytes` bytes at `base`, which is a multiple of [`ARENA_ALIGN`]. The device of the ranges that it hands
    /// out must own them: so only [`super::Device`] makes an arena.
    ///
    /// # Panics
    /// If `base` is not aligned, or the range leaves the address space.
    pub(super) fn new(base: DevicePtr, bytes: u64) -> Self {
        assert!(
            base.0.is_multiple_of(ARENA_ALIGN),
            "an arena begins at a multiple of {ARENA_ALIGN}"
        );
        assert!(base.0.checked_add(bytes).is_some(), "an arena lies within the address space");
        Self { base, bytes, used: 0, lines: Vec::new() }
    }

    /// Gives out `bytes` bytes, not cleared.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`] with `what` and what is left.
    pub fn take(&mut self, what: &'static str, bytes: usize) -> Result<DevicePtr, RunError> {
        let out_of_memory = RunError::OutOfMemory {
            what,
            needed: bytes,
            free: usize::try_from(self.free_bytes()).unwrap_or(usize::MAX),
        };
        let Some(padded) = (bytes as u64).checked_next_multiple_of(ARENA_ALIGN) else {
            return Err(out_of_memory);
        };
        if padded > self.free_bytes() {
            return Err(out_of_memory);
        }
        let ptr = DevicePtr(self.base.0 + self.used);
        self.used += padded;
        match self.lines.iter_mut().find(|line| line.what == what) {
            Some(line) => {
                line.bytes += padded;
                line.parts += 1;
            }
            None => self.lines.push(ArenaLine { what, bytes: padded, parts: 1 }),
        }
        Ok(ptr)
    }

    /// What was given out so far.
    pub(super) fn given(&self) -> ArenaBounds {
        ArenaBounds { begin: self.base.0, end: self.base.0 + self.used }
    }

    /// First byte.
    pub fn base(&self) -> DevicePtr {
        self.base
    }

    /// Bytes given out.
    pub fn used_bytes(&self) -> u64 {
        self.used
    }

    /// Bytes left.
    pub fn free_bytes(&self) -> u64 {
        self.bytes - self.used
    }

    /// The account, in order of first use. The lines sum up to [`Self::used_bytes`].
    pub fn lines(&self) -> &[ArenaLine] {
        &self.lines
    }
}

/// The account as a table, for the log at start.
impl fmt::Display for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ArenaLine { what, bytes, parts } in &self.lines {
            writeln!(f, "{:>10.1} MiB  {what} ({parts})", *bytes as f64 / f64::from(1 << 20))?;
        }
        write!(f, "{:>10.1} MiB  free", self.free_bytes() as f64 / f64::from(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_disjoint_and_accounted() {
        let mut arena = Arena::new(DevicePtr(0x1000), 4096);
        let a = arena.take("weights", 1).unwrap();
        let b = arena.take("kv", 257).unwrap();
        let c = arena.take("weights", 256).unwrap();
        assert_eq!((a.0, b.0, c.0), (0x1000, 0x1100, 0x1300));
        assert_eq!(
            arena.lines(),
            [
                ArenaLine { what: "weights", bytes: 512, parts: 2 },
                ArenaLine { what: "kv", bytes: 512, parts: 1 }
            ]
        );
        assert_eq!(arena.lines().iter().map(|l| l.bytes).sum::<u64>(), arena.used_bytes());
        assert_eq!(arena.used_bytes() + arena.free_bytes(), 4096);
    }

    #[test]
    fn a_full_arena_names_what_did_not_fit() {
        let mut arena = Arena::new(DevicePtr(0x1000), 1024);
        arena.take("weights", 512).unwrap();
        for needed in [513, usize::MAX] {
            let error = arena.take("kv", needed).unwrap_err();
            let RunError::OutOfMemory { what, needed: told, free } = error else {
                panic!("{error}")
            };
            assert_eq!((what, told, free), ("kv", needed, 512));
        }
        arena.take("kv", 512).unwrap();
        assert_eq!(arena.free_bytes(), 0);
        arena.take("nothing", 0).unwrap();
        assert!(arena.take("more", 1).is_err());
    }

    #[test]
    fn only_what_was_given_out_is_held() {
        let mut arena = Arena::new(DevicePtr(0x1000), 4096);
        let a = arena.take("a", 512).unwrap();
        for (at, bytes) in [(a, 512), (a.at(511), 1), (a.at(512), 0)] {
            let range = arena.given().range("upload", at, bytes).unwrap();
            assert_eq!((range.at(), range.bytes()), (at, bytes));
        }
        for (at, bytes) in
            [(a, 513), (DevicePtr(0xfff), 1), (a.at(512), 1), (DevicePtr(u64::MAX), 2)]
        {
            let message = arena.given().range("upload", at, bytes).unwrap_err().to_string();
            assert!(
                message.starts_with("upload of ") && message.ends_with("0x1000..0x1200"),
                "{message}"
            );
        }
    }
}
