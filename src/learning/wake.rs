//! Waking all who wait for something to happen, so that none misses it.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

/// Counts what has happened.
#[derive(Debug)]
pub struct Wake(watch::Sender<u64>);

/// Somebody who waits.
#[derive(Debug)]
pub struct Waiter(watch::Receiver<u64>);

impl Default for Wake {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Wake {
    /// Something has happened.
    pub fn all(&self) {
        self.0.send_modify(|n| *n += 1);
    }

    /// Somebody who waits for what happens from now on.
    pub fn waiter(&self) -> Waiter {
        Waiter(self.0.subscribe())
    }
}

impl Waiter {
    /// Waits until something has happened since the last time, but no longer than that.
    pub async fn wait(&mut self, time_max: Duration) {
        // Woken, out of time, or nobody can wake any more: it is time to look.
        let _ = timeout(time_max, self.0.changed()).await;
    }
}
