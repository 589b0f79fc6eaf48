//! Memory of weights: large, aligned, in huge pages where the system has them.
//!
//! A step reads every weight once. With pages of 4 KiB that is a miss of the address translation for every 4 KiB, which
//! in a virtual machine costs more than the memory itself; so weights lie close together in few mappings, and whole
//! 2 MiB of those are asked for as huge pages (`madvise(2)`, `MADV_HUGEPAGE`).
#![expect(unsafe_code, reason = "parts of one allocation have owners of their own")]

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

use memmap2::MmapMut;

/// Where vectors and cache lines begin.
const ALIGN: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a [`Word`].
const WORD: usize = size_of::<u32>();

/// 64-byte aligned memory, zero at first. Pages that were never written cost nothing.
#[derive(Debug)]
pub(crate) struct AlignedBytes {
    start: NonNull<u8>,
    n_bytes: usize,
    /// Keeps the memory.
    _chunk: Arc<Chunk>,
}

// SAFETY: it is the only owner of its bytes: an arena gives none of them twice.
unsafe impl Send for AlignedBytes {}
// SAFETY: as for `Send`; shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// On memory of its own, in ordinary pages: for what is filled bit by bit.
    pub(crate) fn zeroed(n_bytes: usize) -> Self {
        let mut words = words(n_bytes);
        let start = first_aligned(words.as_mut_ptr().cast(), ALIGN);
        Self { start, n_bytes, _chunk: Arc::new(Chunk::Words(words)) }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `n_bytes` initialized bytes of the chunk, which lives as long as this.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.n_bytes) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.n_bytes) }
    }
}

/// Values of four bytes, zero at first; sixteen of them, from a multiple of sixteen on, are one cache line.
#[derive(Debug, Default)]
pub(crate) struct Lines<T> {
    bytes: Option<AlignedBytes>,
    values: PhantomData<T>,
}

/// A type of which every four bytes are a value.
///
/// # Safety
/// They are, and its alignment is at most theirs.
pub(crate) unsafe trait Word: Copy {}

// SAFETY: every pattern of bits is a number, or not a number.
unsafe impl Word for f32 {}
// SAFETY: every pattern of bits is a number.
unsafe impl Word for u32 {}

impl<T: Word> Lines<T> {
    pub(crate) fn zeroed(n_values: usize) -> Self {
        Self { bytes: Some(AlignedBytes::zeroed(n_values * WORD)), values: PhantomData }
    }
}

impl<T: Word> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Some(bytes) = &self.bytes else { return &[] };
        let bytes = bytes.as_slice();
        // SAFETY: aligned, initialized, and a value whatever they are.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / WORD) }
    }
}

impl<T: Word> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let Some(bytes) = &mut self.bytes else { return &mut [] };
        let bytes = bytes.as_mut_slice();
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / WORD) }
    }
}

/// Gives out parts of large chunks, one after another. What was given out lives on without the arena.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Size of a chunk, unless a part is larger.
    chunk_bytes: usize,
    chunk: Option<Arc<Chunk>>,
    /// The free rest of the chunk.
    next: NonNull<u8>,
    n_left: usize,
}

// SAFETY: the free rest of the chunk is nobody else's.
unsafe impl Send for Arena {}
// SAFETY: nothing is read or written through a shared reference.
unsafe impl Sync for Arena {}

impl Arena {
    /// With 0, each part has memory of its own.
    pub(crate) fn new(chunk_bytes: usize) -> Self {
        Self { chunk_bytes, chunk: None, next: NonNull::dangling(), n_left: 0 }
    }

    /// Bytes of value 0.
    pub(crate) fn take(&mut self, n_bytes: usize) -> AlignedBytes {
        let padded = n_bytes.next_multiple_of(ALIGN);
        let chunk = match &self.chunk {
            Some(chunk) if padded <= self.n_left => Arc::clone(chunk),
            _ => {
                let n_chunk = self.chunk_bytes.max(padded);
                let (chunk, start) = Chunk::new(n_chunk);
                (self.next, self.n_left) = (start, n_chunk);
                Arc::clone(self.chunk.insert(Arc::new(chunk)))
            }
        };
        let start = self.next;
        self.n_left -= padded;
        // SAFETY: at most one past the end of the chunk.
        self.next = unsafe { start.add(padded) };
        AlignedBytes { start, n_bytes, _chunk: chunk }
    }
}

/// One allocation, never read or written through this value.
#[derive(Debug)]
#[expect(dead_code, reason = "the fields own the memory that pointers lead to")]
enum Chunk {
    Words(Vec<u64>),
    Map(MmapMut),
}

impl Chunk {
    /// At least `n_bytes` zeros from the given place on.
    fn new(n_bytes: usize) -> (Self, NonNull<u8>) {
        if n_bytes >= HUGE_PAGE
            && let Ok(mut map) = MmapMut::map_anon(n_bytes + HUGE_PAGE)
        {
            let start = first_aligned(map.as_mut_ptr(), HUGE_PAGE);
            #[cfg(target_os = "linux")]
            {
                let offset = start.as_ptr() as usize - map.as_ptr() as usize;
                // Only whole pages: a page that is used in part would take memory that nobody counts. A refusal means
                // ordinary pages.
                let _ = map.advise_range(
                    memmap2::Advice::HugePage,
                    offset,
                    n_bytes / HUGE_PAGE * HUGE_PAGE,
                );
            }
            return (Self::Map(map), start);
        }
        let mut words = words(n_bytes);
        let start = first_aligned(words.as_mut_ptr().cast(), ALIGN);
        (Self::Words(words), start)
    }
}

/// Zeros, from the system's zeroed pages, and room to align.
fn words(n_bytes: usize) -> Vec<u64> {
    vec![0; (n_bytes + ALIGN).div_ceil(size_of::<u64>())]
}

/// The first place from `start` on that is a multiple of `align`; the caller has `align` bytes to spare.
fn first_aligned(start: *mut u8, align: usize) -> NonNull<u8> {
    let offset = start.align_offset(align).min(align);
    // SAFETY: within the allocation by the caller's promise, so not null.
    unsafe { NonNull::new_unchecked(start.add(offset)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_zero_and_apart() {
        for chunk_bytes in [0, 1 << 10, 3 << 20] {
            let mut arena = Arena::new(chunk_bytes);
            let sizes = [1, 64, 65, 4096, 0, 3 << 20, 5 << 20, 7];
            let mut parts: Vec<_> = sizes.iter().map(|&n| arena.take(n)).collect();
            drop(arena);
            for (value, part) in (1..).zip(&mut parts) {
                assert!(part.as_slice().iter().all(|&byte| byte == 0));
                assert_eq!(part.as_slice().as_ptr().align_offset(ALIGN), 0);
                part.as_mut_slice().fill(value);
            }
            for ((value, part), n) in (1..).zip(&parts).zip(sizes) {
                assert_eq!(part.n_bytes(), n);
                assert!(part.as_slice().iter().all(|&byte| byte == value));
            }
        }
    }

    #[test]
    fn a_part_outlives_the_others() {
        let mut arena = Arena::new(1 << 20);
        let [first, mut second] = [arena.take(100), arena.take(100)];
        drop(first);
        drop(arena);
        second.as_mut_slice()[99] = 1;
        assert_eq!(second.as_slice().iter().map(|&byte| u32::from(byte)).sum::<u32>(), 1);
    }

    #[test]
    fn lines_are_aligned_zero_and_keep_what_is_written() {
        let mut lines = Lines::<f32>::zeroed(37);
        assert_eq!(*lines, [0.0; 37]);
        assert_eq!(lines.as_ptr().align_offset(ALIGN), 0);
        lines[36] = 1.5;
        assert_eq!(std::mem::take(&mut lines)[35..], [0.0, 1.5]);
        assert!(lines.is_empty());
    }

    #[test]
    fn zeroed_is_aligned() {
        for n in [0, 1, 64, 1000] {
            let bytes = AlignedBytes::zeroed(n);
            assert_eq!(bytes.as_slice(), vec![0; n]);
            assert_eq!(bytes.as_slice().as_ptr().align_offset(ALIGN), 0);
        }
    }
}
