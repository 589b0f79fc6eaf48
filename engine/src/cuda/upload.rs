//! Copies to the device from other threads than the one that makes its launches.
#![expect(unsafe_code, reason = "asynchronous copies are promises of the caller")]

use std::fmt;

use super::{CudaError, DevicePtr, PinnedBuffer, arena::ArenaBounds, gpu::CopyStream};

/// A stream and pinned memory of its own: one thread at a time copies through it, beside steps. See
/// [`super::Device::upload_lane`].
pub struct UploadLane {
    // Before `buffers`, though either order would do: a buffer waits for its own copy.
    stream: Box<dyn CopyStream>,
    bounds: ArenaBounds,
    /// In turn: one is filled while the other is on its way.
    buffers: [PinnedBuffer; 2],
    next: usize,
}

impl fmt::Debug for UploadLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadLane").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl UploadLane {
    pub(super) fn new(
        stream: Box<dyn CopyStream>,
        bounds: ArenaBounds,
        buffers: [PinnedBuffer; 2],
    ) -> Self {
        Self { stream, bounds, buffers, next: 0 }
    }

    /// Copies bytes; those that are still on their way when it returns are no longer read from `bytes`.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::Call`].
    pub fn upload(&mut self, bytes: &[u8], to: DevicePtr) -> Result<(), CudaError> {
        self.bounds.range("upload", to, bytes.len())?;
        let piece_bytes = self.buffers[0].memory.bytes().len().max(1);
        for (index, piece) in bytes.chunks(piece_bytes).enumerate() {
            let range = self.bounds.range("upload", to.at(index * piece_bytes), piece.len())?;
            let buffer = &mut self.buffers[self.next];
            self.next = 1 - self.next;
            let staged = &mut buffer.bytes_mut()?[..piece.len()];
            staged.copy_from_slice(piece);
            // SAFETY: the buffer is pinned. It hands its bytes out, and is freed, only after `busy`, which is recorded
            // behind the copy; if recording fails, the whole stream is waited for.
            unsafe { self.stream.write_async(range, staged) }?;
            match self.stream.record() {
                Ok(event) => buffer.busy = Some(event),
                Err(error) => {
                    self.stream.synchronize()?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits until all of it is on the device: launches that are made from then on find it there.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn finish(&mut self) -> Result<(), CudaError> {
        self.stream.synchronize()
    }
}
