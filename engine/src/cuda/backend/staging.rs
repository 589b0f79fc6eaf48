//! Pinned memory that adapters pass through on their way to the device, filled by the threads that bring them: the step
//! loop then only enqueues copies, whatever their size.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{
    backend::RunError,
    cuda::{Device, PinnedBuffer},
};

use super::packer::PackedBytes;

/// Bytes of a buffer.
pub(super) const BUFFER_BYTES: usize = 8 << 20;
/// Buffers: what can be on its way at a time.
const BUFFERS: usize = 8;

/// The buffers that nobody has.
#[derive(Debug)]
pub(super) struct Staging {
    n_buffers: usize,
    free: Mutex<Vec<PinnedBuffer>>,
    came_back: Condvar,
    /// Held by who waits for room: a large adapter is not passed by small ones for ever.
    line: Mutex<()>,
}

/// An adapter in pinned memory. Its buffers go back when it is dropped, busy as they may be.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) form: Arc<PackedBytes>,
    /// The form's bytes, [`BUFFER_BYTES`] in each but the last.
    pub(super) buffers: Mutex<Vec<PinnedBuffer>>,
    staging: Arc<Staging>,
}

impl Staging {
    pub(super) fn new(device: &Device) -> Result<Self, RunError> {
        let buffers = (0..BUFFERS).map(|_| device.pinned(BUFFER_BYTES));
        Ok(Self::over(buffers.collect::<Result<_, _>>()?))
    }

    pub(super) fn over(buffers: Vec<PinnedBuffer>) -> Self {
        let n_buffers = buffers.len();
        let (free, came_back, line) = (Mutex::new(buffers), Condvar::new(), Mutex::new(()));
        Self { n_buffers, free, came_back, line }
    }

    /// Copies an adapter, as soon as there is room; `None` if there never is. For threads that may wait.
    pub(super) fn stage(
        self: &Arc<Self>,
        form: Arc<PackedBytes>,
    ) -> Result<Option<Staged>, RunError> {
        let n_buffers = form.bytes.len().div_ceil(BUFFER_BYTES);
        if n_buffers > self.n_buffers {
            return Ok(None);
        }
        let buffers = Mutex::new(self.take(n_buffers));
        // Made first, so that the buffers go back if a copy before cannot be waited for.
        let staged = Staged { form, buffers, staging: Arc::clone(self) };
        for (buffer, bytes) in
            lock(&staged.buffers).iter_mut().zip(staged.form.bytes.chunks(BUFFER_BYTES))
        {
            buffer.bytes_mut()?[..bytes.len()].copy_from_slice(bytes);
        }
        Ok(Some(staged))
    }

    fn take(&self, n_buffers: usize) -> Vec<PinnedBuffer> {
        let _line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = lock(&self.free);
        while free.len() < n_buffers {
            free = self.came_back.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        let rest = free.len() - n_buffers;
        free.split_off(rest)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let mut buffers = std::mem::take(&mut *lock(&self.buffers));
        // In front: the next to be taken are those that came back long ago, and are no longer busy.
        let mut free = lock(&self.staging.free);
        free.splice(0..0, buffers.drain(..));
        drop(free);
        self.staging.came_back.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
