//! Device memory that is given out and taken back: a region of the arena for adapters, first fit, neighbours joined.

use std::collections::BTreeMap;

/// Every piece begins at a multiple of this many bytes.
const ALIGN: usize = 256;

/// Offsets into a region of `n_bytes`.
#[derive(Debug)]
pub(super) struct BytePool {
    /// Free pieces: offset to length, never adjacent.
    free: BTreeMap<usize, usize>,
    n_bytes: usize,
}

impl BytePool {
    pub(super) fn new(n_bytes: usize) -> Self {
        let n_bytes = n_bytes / ALIGN * ALIGN;
        let free = if n_bytes > 0 { BTreeMap::from([(0, n_bytes)]) } else { BTreeMap::new() };
        Self { free, n_bytes }
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    pub(super) fn free_bytes(&self) -> usize {
        self.free.values().sum()
    }

    /// The offset of `n_bytes` bytes, or `None` if no free piece is long enough.
    pub(super) fn take(&mut self, n_bytes: usize) -> Option<usize> {
        let n_bytes = n_bytes.max(1).checked_next_multiple_of(ALIGN)?;
        let (&offset, &length) = self.free.iter().find(|&(_, &length)| length >= n_bytes)?;
        self.free.remove(&offset);
        if length > n_bytes {
            self.free.insert(offset + n_bytes, length - n_bytes);
        }
        Some(offset)
    }

    /// Takes back what `take(n_bytes)` gave.
    pub(super) fn give_back(&mut self, offset: usize, n_bytes: usize) {
        let mut length = n_bytes.max(1).next_multiple_of(ALIGN);
        let mut offset = offset;
        assert!(offset + length <= self.n_bytes, "piece {offset}+{length} is outside the pool");
        if let Some((&next, &next_length)) = self.free.range(offset..).next() {
            assert!(offset + length <= next, "piece {offset}+{length} is free already");
            if offset + length == next {
                self.free.remove(&next);
                length += next_length;
            }
        }
        if let Some((&previous, &previous_length)) = self.free.range(..offset).next_back() {
            assert!(
                previous + previous_length <= offset,
                "piece {offset}+{length} is free already"
            );
            if previous + previous_length == offset {
                length += previous_length;
                offset = previous;
            }
        }
        self.free.insert(offset, length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_come_back(sizes in prop::collection::vec(1usize..5000, 1..60), seed: u64) {
            let mut pool = BytePool::new(100_000);
            let total = pool.free_bytes();
            let mut held: Vec<(usize, usize)> = Vec::new();
            let mut state = seed;
            for size in sizes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if state >> 62 == 0 && !held.is_empty() {
                    let (offset, size) = held.swap_remove((state >> 8) as usize % held.len());
                    pool.give_back(offset, size);
                }
                if let Some(offset) = pool.take(size) {
                    prop_assert!(offset.is_multiple_of(ALIGN));
                    for &(other, other_size) in &held {
                        prop_assert!(offset + size <= other || other + other_size <= offset);
                    }
                    held.push((offset, size));
                }
            }
            for (offset, size) in held {
                pool.give_back(offset, size);
            }
            prop_assert_eq!(pool.free_bytes(), total);
            prop_assert_eq!(pool.free.len(), 1);
        }
    }
}
