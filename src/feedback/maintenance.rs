//! Deleting what was to be kept for a time only.

use std::time::Duration;

use pleach_store::Store;
use tokio::time::{MissedTickBehavior, interval};

/// How often. Nobody sees what is over, so it need not be soon.
const SWEEP_EVERY: Duration = Duration::from_mins(5);

/// Deletes completions, files and uploads whose time is over, and bytes that nothing has, for as long as the process runs
/// and the store is open.
pub fn sweep_now_and_then(store: &Store) {
    let store = store.clone();
    tokio::spawn(async move {
        let mut ticks = interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !store.is_closed() {
            ticks.tick().await;
            match store.sweep_expired().await {
                Ok(expired) if expired == pleach_store::Expired::default() => {}
                Ok(expired) => tracing::info!(?expired, "deleted what was kept long enough"),
                Err(error) => tracing::warn!(%error, "what is over is deleted later"),
            }
            if let Err(error) = store.sweep_blobs().await {
                tracing::warn!(%error, "garbage among the blobs is left for later");
            }
        }
    });
}
