//! The engine's owner thread and the handle that others use.
//!
//! One thread owns the [`StepRunner`]. Everything that can make it work is one closed `enum Command` on one bounded
//! channel. When nothing is to be done the thread sleeps in that channel. What it has to say leaves through an
//! [`Outbox`], so that others wake the listeners.

mod gaps;
mod lease;
mod outbox;
mod owner;
mod step_times;
mod turns;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

pub use gaps::{BeforeStep, GapPlanner, GuestTerms, PlannedStep};
pub use lease::AdapterLease;
use outbox::Delivery;
pub(crate) use outbox::Outbox;
pub use owner::panic_message;
use owner::{Command, EngineOwner};
pub use step_times::RunningTime;
use tokio::sync::{mpsc, watch};
pub use turns::{Guest, Turn};
use turns::{StepClock, Turns};

use crate::{
    backend::{RunError, StepRunner},
    packed_adapter::{AdapterPacker, PackedAdapter, ResidentAdapters},
    scheduler::{Fifo, LivePlace, QueuePolicy, Scheduler, SchedulerLimits, Sequence},
    sequence::{SequenceEvent, SequenceId, SequenceRequest},
    spec::ModelSpec,
};

/// Room in the command channel for what is not a sequence: shut-down.
const OTHER_COMMANDS_MAX: usize = 8;

/// Limits of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most sequences in a step.
    pub max_batch: usize,
    /// Most rows in a step: decode rows first, the rest is prefill.
    pub max_step_rows: usize,
    /// Most sequences waiting when the batch is full; one more is refused.
    pub max_queue: usize,
    /// Reuse keys and values of equal prefixes.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_batch: 32, max_step_rows: 256, max_queue: 1024, prefix_cache: true }
    }
}

/// Why a sequence was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    /// `max_queue` sequences wait already.
    #[error("the queue is full: {queued} sequences wait")]
    QueueFull {
        /// Sequences waiting.
        queued: usize,
    },
    /// Prompt and one token do not fit the context or the KV pool.
    #[error("prompt of {prompt} tokens, at most {limit} fit")]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// Most prompt tokens.
        limit: usize,
    },
    /// A token id outside the vocabulary, an empty prompt, or no token to complete it with.
    #[error("invalid prompt: {0}")]
    InvalidPrompt(String),
    /// The engine has stopped or is stopping.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// Numbers that dashboards and routers read. A snapshot; counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences in steps.
    pub running: usize,
    /// Sequences in the queue.
    pub waiting: usize,
    /// Blocks of the KV pool.
    pub kv_blocks_total: usize,
    /// Blocks held by sequences (cached but unused blocks count as free).
    pub kv_blocks_used: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Sequences sent back to the queue because the KV pool was full.
    pub preemptions: u64,
    /// Prompt tokens computed or found.
    pub prompt_tokens: u64,
    /// Completion tokens chosen.
    pub completion_tokens: u64,
    /// Steps run.
    pub steps: u64,
    /// How long steps took, all together.
    pub step_time: Duration,
    /// How long guests computed between steps and while there were none, all together.
    pub guest_time: Duration,
    /// The time between two tokens that 99 of 100 do not exceed, of those between which no guest computed; `None` until
    /// there were enough.
    pub undisturbed_itl_p99: Option<Duration>,
}

/// Starts, feeds and stops one engine. Cheap to clone. When the last clone goes, the engine ends with its last sequence.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    spec: ModelSpec,
    limits: SchedulerLimits,
    config: EngineConfig,
    next_id: AtomicU64,
    /// Sequences that have not ended, wherever they are.
    live: Arc<AtomicUsize>,
    is_stopping: AtomicBool,
    commands: mpsc::Sender<Command>,
    outbox: Outbox,
    packer: Arc<dyn AdapterPacker>,
    adapters: Arc<dyn ResidentAdapters>,
    stats: Arc<Mutex<EngineStats>>,
    turns: Arc<Turns>,
    /// Its sender is dropped when the owner thread has ended.
    ended: watch::Receiver<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// Moves the runner to a thread of its own and starts it. Who waits comes out first come, first served.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(runner: Box<dyn StepRunner>, config: EngineConfig) -> std::io::Result<Self> {
        Self::start_with_policy(runner, config, Box::new(Fifo))
    }

    /// [`start`](Self::start) with an order of one's own for those who wait.
    ///
    /// `max_step_rows` is lowered to what the runner can do, and `max_batch` to `max_step_rows`; both are at least 1.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start_with_policy(
        runner: Box<dyn StepRunner>,
        config: EngineConfig,
        policy: Box<dyn QueuePolicy>,
    ) -> std::io::Result<Self> {
        let max_step_rows = config.max_step_rows.min(runner.max_rows()).max(1);
        let limits = SchedulerLimits {
            max_batch: config.max_batch.clamp(1, max_step_rows),
            max_step_rows,
            n_kv_blocks: runner.n_kv_blocks(),
            context: runner.spec().context,
            vocab: runner.spec().vocab,
        };
        let live_max = limits.max_batch.saturating_add(config.max_queue);
        // Tokio's bound for the capacity of a channel is far above any sensible queue.
        let capacity =
            live_max.saturating_add(OTHER_COMMANDS_MAX).min(tokio::sync::Semaphore::MAX_PERMITS);
        let (commands, receiver) = mpsc::channel(capacity);
        let (ended_sender, ended) = watch::channel(());
        let scheduler = Scheduler::new(limits, policy);
        let stats = Arc::new(Mutex::new(scheduler.stats()));
        let spec = runner.spec().clone();
        let (packer, adapters) = (runner.adapter_packer(), runner.adapters());
        let outbox = Outbox::default();
        let turns = Arc::new(Turns::default());
        let owner = EngineOwner {
            runner,
            scheduler,
            commands: receiver,
            delivery: Delivery::start(outbox.clone())?,
            stats: Arc::clone(&stats),
            clock: StepClock::new(Arc::clone(&turns)),
            max_batch: limits.max_batch,
            ending: None,
        };
        thread::Builder::new().name("pleach-engine".to_owned()).spawn(move || {
            // Outlives the owner, also when that panics.
            let _ended = ended_sender;
            owner.run();
        })?;
        let shared = Shared {
            spec,
            limits,
            config,
            next_id: AtomicU64::new(0),
            live: Arc::default(),
            is_stopping: AtomicBool::new(false),
            commands,
            outbox,
            packer,
            adapters,
            stats,
            turns,
            ended,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.shared.spec
    }

    /// The limits that steps have, after the runner's own are taken into account.
    pub fn limits(&self) -> SchedulerLimits {
        self.shared.limits
    }

    /// Most prompt tokens that a sequence may have: bounded by the model's context and by the KV pool.
    pub fn max_prompt_tokens(&self) -> usize {
        self.shared.limits.max_prompt_tokens()
    }

    /// Most sequences at a time, running and waiting.
    pub fn max_live(&self) -> usize {
        self.shared.limits.max_batch.saturating_add(self.shared.config.max_queue)
    }

    /// Whether new sequences are refused for good: shut-down has begun, or the owner thread has ended.
    pub fn is_stopping(&self) -> bool {
        self.shared.is_stopping.load(Ordering::Acquire) || self.shared.commands.is_closed()
    }

    /// Queues a sequence. Never blocks.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was queued then.
    pub fn submit(&self, request: SequenceRequest) -> Result<SequenceStream, SubmitError> {
        let shared = &*self.shared;
        if self.is_stopping() {
            return Err(SubmitError::ShuttingDown);
        }
        self.check(&request)?;
        let max_batch = shared.limits.max_batch;
        let place = LivePlace::take(&shared.live, self.max_live())
            .map_err(|live| SubmitError::QueueFull { queued: live.saturating_sub(max_batch) })?;
        let id = SequenceId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = mpsc::unbounded_channel();
        let sequence = Sequence::new(id, request, shared.config.prefix_cache, sender)
            .within_engine(place, shared.outbox.clone());
        match shared.commands.try_send(Command::Submit(Box::new(sequence))) {
            Ok(()) => {
                shared.turns.hurry();
                Ok(SequenceStream { id, events })
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(SubmitError::QueueFull { queued: shared.config.max_queue })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SubmitError::ShuttingDown),
        }
    }

    /// Packs adapters for this engine, on any thread.
    pub fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::clone(&self.shared.packer)
    }

    /// Makes an adapter resident, beside the steps; see [`ResidentAdapters::install`] for how long that takes.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`] while others take too much room; when the device failed, or the engine is stopping.
    pub fn install_adapter(&self, adapter: &PackedAdapter) -> Result<AdapterLease, RunError> {
        if self.is_stopping() {
            return Err(RunError::Device("the engine is shutting down".to_owned()));
        }
        let adapters = Arc::clone(&self.shared.adapters);
        let slot = adapters.install(adapter)?;
        tracing::debug!(slot = slot.0, "adapter installed");
        Ok(AdapterLease::new(slot, adapters))
    }

    /// The newest numbers: those after the last step, whose events arrive a moment later. Never blocks.
    pub fn stats(&self) -> EngineStats {
        let stats = *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        EngineStats { guest_time: self.shared.turns.guest_time(), ..stats }
    }

    /// Takes in who computes on the cores of steps while none runs; `None` while somebody else does.
    pub fn guest(&self) -> Option<Guest> {
        self.shared.turns.guest()
    }

    /// Refuses new sequences, lets running and waiting ones finish for at most `grace`, cancels the rest, and waits
    /// until the owner thread has ended. Idempotent; of several deadlines the earliest counts.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.is_stopping.store(true, Ordering::Release);
        let deadline = Instant::now().checked_add(grace);
        // Fails when the thread has ended already.
        let _ = self.shared.commands.send(Command::Shutdown { deadline }).await;
        self.shared.turns.hurry();
        let mut ended = self.shared.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    fn check(&self, request: &SequenceRequest) -> Result<(), SubmitError> {
        let limit = self.max_prompt_tokens();
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(SubmitError::InvalidPrompt("no tokens".to_owned()));
        }
        if prompt > limit {
            return Err(SubmitError::TooLong { prompt, limit });
        }
        let vocab = self.shared.spec.vocab;
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(SubmitError::InvalidPrompt(format!(
                "token {token} is outside the vocabulary of {vocab}"
            )));
        }
        if request.max_tokens == 0 {
            return Err(SubmitError::InvalidPrompt(
                "nothing to complete: max_tokens is 0".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The events of one sequence. Dropping it cancels the sequence before the next step is planned.
#[derive(Debug)]
pub struct SequenceStream {
    id: SequenceId,
    /// Unbounded on the sender's side; holds at most `max_tokens + 3` events.
    events: mpsc::UnboundedReceiver<SequenceEvent>,
}

impl SequenceStream {
    /// The sequence's id.
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// The next event; `None` after the last one. (Without a last one, if the engine died.)
    pub async fn recv(&mut self) -> Option<SequenceEvent> {
        self.events.recv().await
    }

    /// [`recv`](Self::recv) for a future or stream written by hand.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<SequenceEvent>> {
        self.events.poll_recv(context)
    }

    /// [`recv`](Self::recv) for a thread outside any async runtime.
    pub fn blocking_recv(&mut self) -> Option<SequenceEvent> {
        self.events.blocking_recv()
    }
}
