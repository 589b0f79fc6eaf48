//! A small team of threads for work that is split into chunks.
//!
//! The calling thread works too. Chunks are handed out by one atomic counter, so a thread that the system took away
//! delays at most the chunk it holds. A worker that finds nothing to do spins for a few microseconds (the next
//! operation of a step usually follows at once) and then sleeps: an idle team costs nothing.
#![expect(
    unsafe_code,
    reason = "a borrowed closure is shared with threads that outlive the borrow"
)]

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a worker looks for new work before it sleeps.
const SPIN: Duration = Duration::from_micros(60);
/// Looks between two readings of the clock.
const SPINS_PER_CLOCK: u32 = 64;
/// Most chunks of one call: 20 bits of the ticket.
const CHUNKS_MAX: u64 = (1 << 20) - 1;

/// The work of one call: a pointer to the caller's closure and the function that calls it.
type Work<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A team of `n_threads - 1` workers and the thread that calls [`Team::run`].
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// `epoch (24 bits) | chunks (20 bits) | next chunk (20 bits)`. Taking a ticket is one `fetch_add`; the epoch and
    /// the number of chunks come with it, so a late worker can tell that it took nothing.
    ticket: AtomicU64,
    /// Address of the current [`Work`] reference. Read only by holders of a valid ticket.
    work: AtomicPtr<Work<'static>>,
    done: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

fn epoch_of(ticket: u64) -> u64 {
    ticket >> 40
}

fn chunks_of(ticket: u64) -> u64 {
    (ticket >> 20) & CHUNKS_MAX
}

fn next_of(ticket: u64) -> u64 {
    ticket & CHUNKS_MAX
}

impl Team {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn new(n_threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..n_threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("pleach-cpu-{index}"))
                    .spawn(move || shared.work_until_stopped(index))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, workers })
    }

    /// Threads that work, the caller included.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(chunk, thread)` once for every chunk in `0..n_chunks`, on any thread in `0..n_threads`, and returns
    /// when all are done. Chunks are taken in ascending order.
    ///
    /// # Panics
    /// When a chunk panicked.
    pub(crate) fn run(&mut self, n_chunks: usize, work: impl Fn(usize, usize) + Sync) {
        if n_chunks <= 1 || self.workers.is_empty() {
            for chunk in 0..n_chunks {
                work(chunk, 0);
            }
            return;
        }
        assert!(n_chunks as u64 <= CHUNKS_MAX / 2, "too many chunks: {n_chunks}");
        let shared = &*self.shared;
        let mut work: Work<'_> = &work;
        // The pointer outlives every use: a worker reads it only with a valid ticket of this epoch, and this function
        // does not return before all chunks of the epoch are done.
        let address: *mut Work<'_> = &raw mut work;
        shared.work.store(address.cast::<Work<'static>>(), Ordering::Relaxed);
        shared.done.store(0, Ordering::Relaxed);
        let epoch = (epoch_of(shared.ticket.load(Ordering::Relaxed)) + 1) & ((1 << 24) - 1);
        shared.ticket.store((epoch << 40) | ((n_chunks as u64) << 20), Ordering::SeqCst);
        if *shared.sleepers.lock().unwrap_or_else(std::sync::PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        shared.take_chunks(0);
        let mut spins = 0u32;
        while shared.done.load(Ordering::Acquire) < n_chunks {
            spins += 1;
            if spins < 2000 {
                std::hint::spin_loop();
            } else {
                // A worker lost its processor in the middle of a chunk.
                std::thread::yield_now();
            }
        }
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a chunk of parallel work panicked"
        );
    }
}

impl Shared {
    /// Works on chunks of the current epoch until none is left.
    fn take_chunks(&self, thread: usize) {
        loop {
            let ticket = self.ticket.fetch_add(1, Ordering::AcqRel);
            if next_of(ticket) >= chunks_of(ticket) {
                return;
            }
            // SAFETY: the ticket is valid, so its epoch is not finished: `Team::run` still waits for this chunk and
            // keeps the closure and the reference to it alive. The pointer was stored before the ticket (SeqCst).
            let work = unsafe { *self.work.load(Ordering::Acquire) };
            let chunk = usize::try_from(next_of(ticket)).unwrap_or(usize::MAX);
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(chunk, thread)));
            if outcome.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn has_work(&self) -> bool {
        let ticket = self.ticket.load(Ordering::SeqCst);
        next_of(ticket) < chunks_of(ticket)
    }

    fn work_until_stopped(&self, thread: usize) {
        loop {
            self.take_chunks(thread);
            if !self.spin_for_work() {
                let mut sleepers =
                    self.sleepers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *sleepers += 1;
                // Work published before the count was raised would not wake this thread: look again under the lock.
                while !self.has_work() && !self.stop.load(Ordering::SeqCst) {
                    sleepers =
                        self.wake.wait(sleepers).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                *sleepers -= 1;
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Whether work appeared before [`SPIN`] was over.
    fn spin_for_work(&self) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..SPINS_PER_CLOCK {
                if self.has_work() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                return false;
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Taken and released so that no worker is between its look and its sleep.
        drop(self.shared.sleepers.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker never panics: chunks are caught.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("n_threads", &self.n_threads()).finish()
    }
}

/// Hands out disjoint parts of one slice to the chunks of a [`Team::run`].
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it only gives out parts through `Parts::part`, whose callers promise that they are disjoint.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as for `Sync`.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: std::marker::PhantomData }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No two live parts may overlap.
    ///
    /// # Panics
    /// When the part leaves the slice.
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Row `row` of a row-major matrix with this stride.
    ///
    /// A row goes to one chunk of a [`Team::run`] (or to one thread, if rows are per thread): that is what makes the
    /// parts disjoint, and every caller in this backend splits its work so.
    pub(crate) fn row(&self, row: usize, stride: usize) -> &'a mut [T] {
        // SAFETY: see above.
        unsafe { self.part(row * stride, stride) }
    }

    /// Address of element `index`, for strided writes by vector kernels.
    ///
    /// # Panics
    /// When it is outside the slice.
    pub(crate) fn at(&self, index: usize, len: usize) -> *mut T {
        assert!(
            index <= self.len && len <= self.len - index,
            "element {index}+{len} of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for n_threads in [1, 2, 3] {
            let mut team = Team::new(n_threads).unwrap();
            for round in 0..2000 {
                let n_chunks = round % 23;
                let counts: Vec<AtomicU32> = (0..n_chunks).map(|_| AtomicU32::new(0)).collect();
                team.run(n_chunks, |chunk, thread| {
                    assert!(thread < n_threads);
                    counts[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                if round % 500 == 0 {
                    std::thread::sleep(Duration::from_millis(2)); // Let the workers fall asleep.
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(2).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.run(8, |chunk, _| assert!(chunk != 5, "boom"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicU32::new(0);
        team.run(4, |chunk, _| {
            sum.fetch_add(u32::try_from(chunk).unwrap(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
    }
}
