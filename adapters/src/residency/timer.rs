//! One task that wakes the tiers when a decision was put off to a time.

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Calls `wake` whenever the deadline passes; ends when the sender is gone or `wake` says so.
pub(super) async fn run(
    mut deadline: watch::Receiver<Option<Instant>>,
    wake: impl Fn() -> Option<()>,
) {
    loop {
        let at = *deadline.borrow_and_update();
        let is_open = match at {
            None => deadline.changed().await.is_ok(),
            Some(at) => match timeout_at(at, deadline.changed()).await {
                Ok(changed) => changed.is_ok(),
                // The decision that follows sets another deadline, or none: never one that has passed.
                Err(_) => wake().is_some(),
            },
        };
        if !is_open {
            return;
        }
    }
}
