//! Events, pinned buffers and graphs of a [`super::Device`].

use std::fmt;

use super::{
    CudaError,
    driver::{DriverEvent, DriverGraph},
    fake::FakeGraph,
    gpu::HostMemory,
};

/// A point in a stream's queue. Never reached before all that was enqueued earlier is done.
#[derive(Debug)]
pub struct Event {
    /// `None` on a fake device, where everything is done at once.
    pub(super) driver: Option<DriverEvent>,
}

impl Event {
    /// Waits for it.
    ///
    /// # Errors
    /// [`CudaError::Call`], also for errors of earlier launches.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.driver.as_ref().map_or(Ok(()), DriverEvent::wait)
    }

    /// Whether it has been reached.
    ///
    /// # Errors
    /// [`CudaError::Call`], also for errors of earlier launches.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        self.driver.as_ref().map_or(Ok(true), DriverEvent::is_done)
    }

    /// Milliseconds from this event to a later one, both timed; waits for both. Zero on a fake device.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn elapsed_ms(&self, later: &Self) -> Result<f32, CudaError> {
        match (&self.driver, &later.driver) {
            (Some(from), Some(to)) => from.elapsed_ms(to),
            (None, _) | (_, None) => Ok(0.0),
        }
    }
}

/// Page-locked memory, of which an asynchronous copy may be under way.
pub struct PinnedBuffer {
    pub(super) memory: Box<dyn HostMemory>,
    /// Behind the last copy.
    pub(super) busy: Option<Event>,
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} bytes)", self.memory.bytes().len())
    }
}

impl PinnedBuffer {
    /// Its bytes, when the last copy is done.
    ///
    /// # Errors
    /// [`CudaError::Call`] if waiting fails: the device is lost.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], CudaError> {
        self.wait()?;
        Ok(self.memory.bytes_mut())
    }

    pub(super) fn wait(&mut self) -> Result<(), CudaError> {
        if let Some(event) = &self.busy {
            event.wait()?;
            self.busy = None;
        }
        Ok(())
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // A failure means that the device is lost, and then nothing is copied any more.
        let _ = self.wait();
    }
}

/// Launches that are replayed as one.
#[derive(Debug)]
pub struct Graph {
    pub(super) kind: GraphKind,
}

#[derive(Debug)]
pub(super) enum GraphKind {
    Driver(DriverGraph),
    Fake(FakeGraph),
}

impl Graph {
    /// Enqueues all of it on the compute stream.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn replay(&self) -> Result<(), CudaError> {
        match &self.kind {
            GraphKind::Driver(graph) => graph.replay(),
            GraphKind::Fake(graph) => graph.replay(),
        }
    }
}
