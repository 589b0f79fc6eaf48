//! What this process says of the rounds that it has claimed: that it lives, for as long as somebody here follows them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use pleach_store::Store;
use tokio::{sync::watch, time::sleep};

/// Rounds that this process follows, by id.
#[derive(Debug, Default)]
pub(super) struct Followed {
    ids: watch::Sender<BTreeSet<String>>,
}

/// A round that is followed, until this is dropped.
#[derive(Debug)]
pub(super) struct Following {
    followed: Arc<Followed>,
    id: String,
}

impl Followed {
    /// A round is followed from now on; `None` if it is already.
    pub(super) fn follow(self: &Arc<Self>, id: &str) -> Option<Following> {
        let is_new = self.ids.send_if_modified(|ids| ids.insert(id.to_owned()));
        is_new.then(|| Following { followed: Arc::clone(self), id: id.to_owned() })
    }

    /// Waits until none is followed.
    pub(super) async fn ended(&self) {
        // The sender is here, so there is no error.
        let _ = self.ids.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    fn ids(&self) -> Vec<String> {
        self.ids.borrow().iter().cloned().collect()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.followed.ids.send_if_modified(|ids| ids.remove(&self.id));
    }
}

/// Says that `runner` lives, again and again, whatever else keeps it busy. Never ends by itself.
pub(super) async fn beat(store: Store, runner: Arc<str>, followed: Arc<Followed>, every: Duration) {
    loop {
        sleep(every).await;
        if let Err(error) = store.beat_rounds(&runner, &followed.ids()).await {
            tracing::warn!(%error, "it is not told that rounds are followed here");
        }
    }
}

#[cfg(test)]
mod tests {
    use pleach_store::{Blobs, NewRound, Owner};
    use serde_json::Value;

    use super::*;

    const SILENCE: Duration = Duration::from_secs(1);

    /// Of one store, as another process sees it.
    async fn open(folder: &std::path::Path) -> Store {
        let blobs = Blobs::in_folder(folder.join("blobs")).unwrap();
        Store::open(folder.join("database").to_str().unwrap(), blobs).await.unwrap()
    }

    async fn new_round(store: &Store, name: &str) -> String {
        let new = NewRound { name, parent: None, rebuild_of: None, progress: Value::Null };
        store.create_round(&Owner::Shared, &new).await.unwrap();
        store.claim_round("one", SILENCE, true).await.unwrap().unwrap().id
    }

    #[tokio::test]
    async fn who_follows_keeps_its_rounds_whatever_else_it_does_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let (store, other) = (open(folder.path()).await, open(folder.path()).await);
        let (held, left) = (new_round(&store, "held").await, new_round(&store, "left").await);
        let followed = Arc::new(Followed::default());
        let following = followed.follow(&held).unwrap();
        assert!(followed.follow(&held).is_none(), "once is enough");
        // Whoever followed this one is gone, as after a panic.
        drop(followed.follow(&left).unwrap());
        let every = Duration::from_millis(20);
        let beats = tokio::spawn(beat(store, "one".into(), Arc::clone(&followed), every));
        let claimed = async |times: u32| {
            let mut claimed = Vec::new();
            for _ in 0..times {
                let round = other.claim_round("other", SILENCE, true).await.unwrap();
                claimed.extend(round.map(|round| round.id));
                other.beat_rounds("other", &claimed).await.unwrap();
                sleep(SILENCE / 10).await;
            }
            claimed
        };
        // Longer than a process may be silent.
        assert_eq!(claimed(15).await, std::slice::from_ref(&left));
        drop(following);
        let last = claimed(15).await;
        assert!(last.contains(&held), "{last:?}");
        beats.abort();
    }
}
