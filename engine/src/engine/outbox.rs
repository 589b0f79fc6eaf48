//! How events leave the owner thread: one message a step to a thread of their own, which hands them to their sequences.
//!
//! ```text
//! owner thread:  step ──> events of all its sequences ──> flush ──┐ one message, one wake-up
//! events thread: wakes the task of each sequence  <───────────────┘ while the next step runs
//! ```
//!
//! Waking a task costs more than choosing its token: with the wake-ups on the owner thread, the device would wait for as
//! many of them as there are sequences.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::sequence::SequenceEvent;

/// Events with their receivers, in the order in which they happened.
type Batch = Vec<(UnboundedSender<SequenceEvent>, SequenceEvent)>;

/// What happened since the last flush. Clones share it; only the owner thread writes, so that the lock is always free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox(Arc<Mutex<Batch>>);

impl Outbox {
    /// Adds an event. It leaves at the next flush, also when its sequence is gone by then.
    pub(crate) fn push(&self, receiver: &UnboundedSender<SequenceEvent>, event: SequenceEvent) {
        let mut batch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        batch.push((receiver.clone(), event));
    }

    fn take(&self) -> Option<Batch> {
        let mut batch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The next step has about as many.
        let n_events = Some(batch.len()).filter(|&n_events| n_events > 0)?;
        Some(std::mem::replace(&mut *batch, Vec::with_capacity(n_events)))
    }
}

/// The events thread, seen from the owner thread. Dropping it waits until every event has been handed over, also when
/// the owner thread panics: an event left in the outbox would keep its listener waiting for ever.
#[derive(Debug)]
pub(super) struct Delivery {
    outbox: Outbox,
    /// Unbounded, but it holds no more than the sequences' own queues would, which `max_tokens` bounds. `None` only while
    /// it is dropped.
    batches: Option<mpsc::Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Delivery {
    /// Starts the thread.
    pub(super) fn start(outbox: Outbox) -> std::io::Result<Self> {
        let (batches, receiver) = mpsc::channel::<Batch>();
        let thread = thread::Builder::new().name("pleach-events".to_owned()).spawn(move || {
            for (sequence, event) in receiver.into_iter().flatten() {
                // That nobody listens is noticed before the next step.
                let _ = sequence.send(event);
            }
        })?;
        Ok(Self { outbox, batches: Some(batches), thread: Some(thread) })
    }

    /// Sends what is in the outbox on its way.
    pub(super) fn flush(&self) {
        if let (Some(batches), Some(batch)) = (&self.batches, self.outbox.take()) {
            // The thread ends only after this sender.
            let _ = batches.send(batch);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.flush();
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // It cannot panic: sending to a channel does not.
            let _ = thread.join();
        }
    }
}
