//! The queue between requests and the store.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pleach_store::{KEEP_DAYS, Owner, Store};
use pleach_trainer::data::Redactor;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::Record;
use crate::{telemetry::Telemetry, tenants::Caller};

/// Most completions that wait.
pub const QUEUE_MAX: usize = 4096;
/// Most bytes of completions that wait.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Completions that are written by one commit.
const BATCH_MAX: usize = 128;
/// How long a commit may take; completions of one that takes longer are given up.
const WRITE_TIME_MAX: Duration = Duration::from_secs(20);
/// How long anybody waits for what was kept a moment ago.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(10);

/// Keeps completions, later and elsewhere.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    /// Whether the operator's completions are kept that did not ask for it.
    of_operator: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    // A std mutex: held for a few moves, never over an await.
    queue: Mutex<Queue>,
    /// Something waits, or nobody will come any more.
    changed: Notify,
    /// How many that waited were written or given up.
    n_done: watch::Sender<u64>,
    /// Compiled when it is first needed: most servers keep nothing.
    redactor: OnceLock<Redactor>,
    telemetry: Arc<Telemetry>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Record>,
    bytes: usize,
    by_owner: HashMap<Owner, usize>,
    /// All that ever waited.
    n_taken: u64,
    is_closed: bool,
}

impl Capture {
    /// Begins to keep. The writer ends when this is dropped and all was written.
    pub fn start(store: Store, telemetry: Arc<Telemetry>, of_operator: bool) -> Arc<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Notify::new(),
            n_done: watch::Sender::new(0),
            redactor: OnceLock::new(),
            telemetry,
        });
        tokio::spawn(write_all(Arc::clone(&shared), store));
        Arc::new(Self { shared, of_operator: AtomicBool::new(of_operator) })
    }

    /// Whether a caller's completion is to be kept: what the request says, or else what its tenant wants.
    pub fn wants(&self, caller: &Caller, store: Option<bool>) -> bool {
        store.unwrap_or_else(|| match caller.tenant() {
            Some(tenant) => tenant.settings().capture,
            None => self.of_operator.load(Ordering::Relaxed),
        })
    }

    /// For how many days a caller's completions are kept.
    pub fn keep_days(caller: &Caller) -> u32 {
        caller.tenant().map_or(KEEP_DAYS, |tenant| tenant.settings().keep_days)
    }

    /// Takes a completion to be kept, or drops it, which is counted: when too many wait, or too many of its owner's. An
    /// owner may have as many waiting as it leaves free.
    pub fn offer(&self, record: Record) {
        let bytes = record.bytes();
        let taken = {
            let mut queue = self.shared.queue();
            let n_own = queue.by_owner.get(&record.owner).copied().unwrap_or_default();
            let n_free = QUEUE_MAX.saturating_sub(queue.waiting.len());
            let has_room = n_own < n_free && queue.bytes.saturating_add(bytes) <= QUEUE_BYTES_MAX;
            if has_room {
                *queue.by_owner.entry(record.owner.clone()).or_default() += 1;
                queue.bytes += bytes;
                queue.n_taken += 1;
                queue.waiting.push_back(record);
            }
            has_room
        };
        if taken {
            self.shared.changed.notify_one();
        } else {
            self.shared.telemetry.count_captured("dropped", 1);
        }
    }

    /// Takes personal data and secrets out of a text.
    ///
    /// # Errors
    /// When the patterns do not compile: a bug.
    pub async fn redact(&self, text: String) -> Result<String, String> {
        let shared = Arc::clone(&self.shared);
        let redact = move || Ok(shared.redactor()?.conversation().redact(&text).into_owned());
        let redacted = tokio::task::spawn_blocking(redact).await;
        redacted.unwrap_or_else(|_| Err("redaction panicked".to_owned()))
    }

    /// Whether completions wait to be written.
    pub fn is_busy(&self) -> bool {
        self.shared.queue().n_taken > *self.shared.n_done.borrow()
    }

    /// Waits until all that was taken by now is written or given up, but not without end.
    pub async fn settled(&self) {
        let n_taken = self.shared.queue().n_taken;
        let mut n_done = self.shared.n_done.subscribe();
        // Whether it took too long or the writer is gone: what was written is there.
        let _ = timeout(SETTLE_TIME_MAX, n_done.wait_for(|n_done| *n_done >= n_taken)).await;
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn redactor(&self) -> Result<&Redactor, String> {
        if let Some(compiled) = self.redactor.get() {
            return Ok(compiled);
        }
        let compiled = Redactor::new().map_err(|error| error.to_string())?;
        Ok(self.redactor.get_or_init(|| compiled))
    }

    /// What is written next; empty when nothing waits. `None`: nothing will come.
    fn take(&self) -> Option<Vec<Record>> {
        let mut queue = self.queue();
        let n_next = queue.waiting.len().min(BATCH_MAX);
        let next: Vec<_> = queue.waiting.drain(..n_next).collect();
        for record in &next {
            queue.bytes = queue.bytes.saturating_sub(record.bytes());
            if let Some(n_own) = queue.by_owner.get_mut(&record.owner) {
                *n_own -= 1;
                if *n_own == 0 {
                    queue.by_owner.remove(&record.owner);
                }
            }
        }
        if next.is_empty() && queue.is_closed { None } else { Some(next) }
    }
}

async fn write_all(shared: Arc<Shared>, store: Store) {
    while let Some(batch) = shared.take() {
        if batch.is_empty() {
            shared.changed.notified().await;
            continue;
        }
        let n_records = batch.len() as u64;
        let result = match write(&store, &shared, batch).await {
            Ok(()) => "kept",
            Err(error) => {
                tracing::warn!(error, n_records, "completions are not kept");
                "failed"
            }
        };
        shared.telemetry.count_captured(result, n_records);
        shared.n_done.send_modify(|n_done| *n_done += n_records);
    }
}

/// Redacts and writes, all or none.
async fn write(store: &Store, shared: &Arc<Shared>, mut batch: Vec<Record>) -> Result<(), String> {
    let shared = Arc::clone(shared);
    let redact = move || {
        let redactor = shared.redactor()?;
        for record in &mut batch {
            record.redact(redactor);
        }
        let stored = batch.into_iter().map(Record::into_stored).collect::<Result<Vec<_>, _>>();
        stored.map_err(|error| error.to_string())
    };
    let stored = tokio::task::spawn_blocking(redact).await;
    let stored = stored.map_err(|_| "redaction panicked".to_owned())??;
    match timeout(WRITE_TIME_MAX, store.put_completions(&stored)).await {
        Err(_) => Err("the store takes too long".to_owned()),
        Ok(written) => written.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use pleach_store::{Metadata, TenantId};

    use super::*;
    use crate::{
        feedback::{CompletionBody, KeptSampling, KeptUsage},
        telemetry::{ServerFacts, TierFacts},
    };

    /// One that nothing is written from.
    fn unwritten() -> Capture {
        let facts = ServerFacts {
            model_name: "tiny".to_owned(),
            context: 8,
            kv_blocks: 8,
            prefix_cache: true,
        };
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Notify::new(),
            n_done: watch::Sender::new(0),
            redactor: OnceLock::new(),
            telemetry: Arc::new(Telemetry::new(&facts).unwrap()),
        });
        Capture { shared, of_operator: AtomicBool::new(false) }
    }

    fn record(owner: &Owner, n_bytes: usize) -> Record {
        Record {
            owner: owner.clone(),
            id: "chatcmpl-0".to_owned(),
            model: "tiny".to_owned(),
            generation: None,
            episode: None,
            user_sha256: None,
            metadata: Metadata::new(),
            created_ms: 0,
            keep_days: 1,
            n_bytes,
            body: CompletionBody {
                messages: Vec::new(),
                template_variables: serde_json::Map::new(),
                choices: Vec::new(),
                usage: KeptUsage::default(),
                fingerprint: String::new(),
                parts: Vec::new(),
                sampling: KeptSampling {
                    temperature: 1.0,
                    top_p: 1.0,
                    top_k: 0,
                    min_p: 0.0,
                    repetition_penalty: 1.0,
                    frequency_penalty: 0.0,
                    presence_penalty: 0.0,
                    seed: None,
                    max_tokens: None,
                },
                redacted: std::collections::BTreeMap::new(),
            },
        }
    }

    fn n_dropped(capture: &Capture) -> usize {
        let text = capture.shared.telemetry.render(
            &pleach_engine::engine::EngineStats::default(),
            &[],
            &TierFacts::default(),
        );
        let text = String::from_utf8(text.unwrap()).unwrap();
        let series = "pleach_captured_completions_total{result=\"dropped\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |count| count.parse().unwrap())
    }

    #[test]
    fn who_floods_leaves_room_and_what_is_dropped_is_counted() {
        let capture = unwritten();
        let flood = Owner::Tenant(TenantId::parse("ten_0000000000000001").unwrap());
        for _ in 0..QUEUE_MAX {
            capture.offer(record(&flood, 1));
        }
        assert_eq!(capture.shared.queue().waiting.len(), QUEUE_MAX / 2);
        assert_eq!(n_dropped(&capture), QUEUE_MAX / 2);
        for _ in 0..100 {
            capture.offer(record(&Owner::Shared, 1));
        }
        assert_eq!(capture.shared.queue().by_owner[&Owner::Shared], 100);
        // What would take too much memory is dropped, however few wait.
        capture.offer(record(&Owner::Shared, QUEUE_BYTES_MAX));
        assert_eq!(n_dropped(&capture), QUEUE_MAX / 2 + 1);
        assert!(capture.is_busy());

        let mut n_taken = 0;
        while let Some(batch) = capture.shared.take().filter(|batch| !batch.is_empty()) {
            assert!(batch.len() <= BATCH_MAX);
            n_taken += batch.len();
        }
        assert_eq!(n_taken, QUEUE_MAX / 2 + 100);
        let queue = capture.shared.queue();
        assert_eq!((queue.bytes, queue.by_owner.len()), (0, 0));
        drop(queue);
        let shared = Arc::clone(&capture.shared);
        assert!(shared.take().is_some(), "more may come");
        drop(capture);
        assert!(shared.take().is_none());
    }
}
