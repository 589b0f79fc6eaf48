//! A scheduler whose steps take virtual time, and who was served when.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pleach::tenants::{FairOrder, FlowSetting, FlowSettings, TokenPrices};
use pleach_engine::{
    backend::StepRunner,
    scheduler::{QueuePolicy, Queued, Scheduler, SchedulerLimits, Sequence, Ticket},
    sequence::{FlowId, SequenceEvent, SequenceId, SequenceRequest},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::fake::{
    FakeRunner,
    bench::{request, tokens},
};

/// What a step takes: a part of its own, and one for each row.
const STEP_TIME: Duration = Duration::from_millis(10);
const ROW_TIME: Duration = Duration::from_micros(200);

/// One submitted sequence.
#[derive(Debug)]
pub(crate) struct Follow {
    pub(crate) flow: FlowId,
    n_prompt: usize,
    pub(crate) arrived: Instant,
    /// Admissions there had been.
    pub(crate) arrived_at: usize,
    pub(crate) admitted: Option<Instant>,
    pub(crate) admitted_at: Option<usize>,
    pub(crate) has_ended: bool,
}

impl Follow {
    pub(crate) fn waited(&self) -> Option<Duration> {
        self.admitted.map(|admitted| admitted - self.arrived)
    }

    /// Sequences admitted while it waited.
    pub(crate) fn n_overtakers(&self) -> Option<usize> {
        self.admitted_at.map(|admitted_at| admitted_at - self.arrived_at)
    }
}

/// Notes the order of admissions, which events do not tell within a step.
#[derive(Debug)]
struct Noted {
    policy: Box<dyn QueuePolicy>,
    admissions: Arc<Mutex<Vec<usize>>>,
}

impl QueuePolicy for Noted {
    fn order(
        &mut self,
        waiting: &mut dyn Iterator<Item = Ticket>,
        n_max: usize,
        order: &mut Vec<Ticket>,
    ) {
        self.policy.order(waiting, n_max, order);
    }

    fn arrived(&mut self, queued: Queued) {
        self.policy.arrived(queued);
    }

    fn admitted(&mut self, queued: Queued, n_uncached: usize) {
        // Tickets count submissions, as the indices of a world do.
        self.admissions.lock().unwrap().push(usize::try_from(queued.ticket.0).unwrap());
        self.policy.admitted(queued, n_uncached);
    }

    fn left(&mut self, queued: Queued) {
        self.policy.left(queued);
    }

    fn served(&mut self, flow: FlowId, n_tokens: usize) {
        self.policy.served(flow, n_tokens);
    }

    fn ended(&mut self, flow: FlowId) {
        self.policy.ended(flow);
    }
}

pub(crate) struct World {
    limits: SchedulerLimits,
    prefix_cache: bool,
    pub(crate) scheduler: Scheduler,
    runner: FakeRunner,
    pub(crate) now: Instant,
    pub(crate) longest_step: Duration,
    pub(crate) all: Vec<Follow>,
    /// Indices into `all`, in order of admission.
    pub(crate) admissions: Vec<usize>,
    noted: Arc<Mutex<Vec<usize>>>,
    /// Of those that have not ended.
    streams: BTreeMap<usize, UnboundedReceiver<SequenceEvent>>,
    served: BTreeMap<FlowId, u64>,
}

impl World {
    pub(crate) fn new(
        limits: SchedulerLimits,
        prefix_cache: bool,
        policy: Box<dyn QueuePolicy>,
    ) -> Self {
        let noted = Arc::default();
        Self {
            limits,
            prefix_cache,
            scheduler: Scheduler::new(
                limits,
                Box::new(Noted { policy, admissions: Arc::clone(&noted) }),
            ),
            noted,
            runner: FakeRunner::new(limits.n_kv_blocks, limits.context, limits.max_step_rows),
            now: Instant::now(),
            longest_step: Duration::ZERO,
            all: Vec::new(),
            admissions: Vec::new(),
            streams: BTreeMap::new(),
            served: BTreeMap::new(),
        }
    }

    /// A prompt that shares no prefix with another.
    pub(crate) fn submit(&mut self, flow: u64, n_prompt: usize, n_completion: usize) -> usize {
        let seed = self.all.len();
        self.submit_prompt(flow, tokens(seed, n_prompt), n_completion)
    }

    pub(crate) fn submit_prompt(
        &mut self,
        flow: u64,
        prompt: Vec<u32>,
        n_completion: usize,
    ) -> usize {
        let index = self.all.len();
        let (sender, receiver) = unbounded_channel();
        let flow = FlowId(flow);
        let n_prompt = prompt.len();
        let wanted = SequenceRequest { flow, ..request(prompt, n_completion) };
        let id = SequenceId(index as u64);
        self.scheduler.submit(Sequence::new(id, wanted, self.prefix_cache, sender));
        self.streams.insert(index, receiver);
        self.all.push(Follow {
            flow,
            n_prompt,
            arrived: self.now,
            arrived_at: self.admissions.len(),
            admitted: None,
            admitted_at: None,
            has_ended: false,
        });
        index
    }

    /// Whether there was anything to run. Nobody waits while there is room.
    pub(crate) fn step(&mut self) -> bool {
        let Some(batch) = self.scheduler.schedule(self.now) else { return false };
        let n_rows = batch.n_rows();
        self.listen();
        let stats = self.scheduler.stats();
        let is_full = stats.running == self.limits.max_batch || n_rows == self.limits.max_step_rows;
        let is_roomy = stats.kv_blocks_total
            > stats.running + stats.kv_blocks_used + self.limits.context.div_ceil(16);
        assert!(
            stats.waiting == 0 || is_full || !is_roomy || self.prefix_cache,
            "{} wait, and {} run in {n_rows} rows",
            stats.waiting,
            stats.running
        );
        let sampled = self.runner.step(&batch).unwrap();
        drop(batch);
        let step_time = STEP_TIME + ROW_TIME * u32::try_from(n_rows).unwrap();
        self.longest_step = self.longest_step.max(step_time);
        self.now += step_time;
        self.scheduler.apply(sampled, self.now);
        self.listen();
        true
    }

    /// What a flow was served: its computed prompt tokens, and twice its completion tokens.
    pub(crate) fn served(&self, flow: u64) -> u64 {
        self.served.get(&FlowId(flow)).copied().unwrap_or(0)
    }

    /// Sequences of a flow that wait.
    pub(crate) fn n_waiting(&self, flow: u64) -> usize {
        let waits = |&&index: &&usize| {
            self.all[index].flow == FlowId(flow) && self.all[index].admitted.is_none()
        };
        self.streams.keys().filter(waits).count()
    }

    fn listen(&mut self) {
        self.streams.retain(|&index, stream| {
            let follow = &mut self.all[index];
            let served = self.served.entry(follow.flow).or_default();
            while let Ok(event) = stream.try_recv() {
                match event {
                    SequenceEvent::Admitted { at, cached_tokens } => {
                        follow.admitted = Some(at);
                        *served += (follow.n_prompt - cached_tokens) as u64;
                    }
                    SequenceEvent::Token(_) => *served += 2,
                    SequenceEvent::Finished { .. } => follow.has_ended = true,
                    SequenceEvent::PromptScores(_) | SequenceEvent::Failed(_) => {
                        panic!("unexpected {event:?}")
                    }
                }
            }
            !follow.has_ended
        });
        for index in self.noted.lock().unwrap().drain(..) {
            self.all[index].admitted_at = Some(self.admissions.len());
            self.admissions.push(index);
        }
    }
}

/// A policy and its settings: `(flow, weight, priority)`.
pub(crate) fn fair(flows: &[(u64, u32, u8)]) -> (Box<FairOrder>, Arc<FlowSettings>) {
    let settings =
        flows.iter().map(|&(flow, weight, priority)| (FlowId(flow), setting(weight, priority)));
    let settings = Arc::new(FlowSettings::new(settings.collect()));
    (Box::new(FairOrder::new(Arc::clone(&settings), TokenPrices::default())), settings)
}

pub(crate) fn setting(weight: u32, priority: u8) -> FlowSetting {
    FlowSetting { weight: NonZeroU32::new(weight).unwrap(), priority: i16::from(priority) }
}
