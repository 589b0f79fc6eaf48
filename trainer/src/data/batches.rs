//! Which records an optimizer step learns from, and how they are packed into micro-batches.
//!
//! ```text
//! epoch:  a permutation of the records by (seed, epoch)
//! step:   the next `batch_size` records of it; their gradients are summed, then the weights change
//! micro-batch: some of them, packed one after another up to a budget of tokens; one pass forward and back
//! ```
//!
//! Everything is a function of lengths, settings, seed and position, so a run goes on from a [`Position`] as if it had
//! never stopped.

use std::cmp::Reverse;

use super::counter_rng::CounterRng;

/// Stream of the seed.
const STREAM_EPOCHS: u64 = 0x6570_6f63_6800;

/// In which order records come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Another random one in every epoch.
    #[default]
    Shuffled,
    /// As they are.
    Sequential,
    /// As listed, in every epoch; records may come more than once or not at all.
    Explicit(Vec<u32>),
}

/// How the records of a step are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// The longest first, each into the first micro-batch that has room: fewer passes.
    #[default]
    FirstFitDecreasing,
    /// In the order of the step; a micro-batch ends when the next record doesn't fit.
    InOrder,
}

/// How records become batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSettings {
    /// Records of an optimizer step.
    pub batch_size: usize,
    /// Tokens of a micro-batch. A record that is longer is a micro-batch of its own.
    pub tokens_max: usize,
    /// The order.
    pub order: Order,
    /// The packing.
    pub packing: Packing,
    /// Another seed is another order.
    pub seed: u64,
}

/// Where a run is: what comes next.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Position {
    /// From 0.
    pub epoch: u32,
    /// Optimizer step in the epoch, from 0.
    pub step: u32,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// Where it is.
    pub position: Position,
    /// Its records, in order.
    pub records: Vec<u32>,
    /// The same records in micro-batches, none of them empty.
    pub micro_batches: Vec<Vec<u32>>,
}

/// The batches of a run.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    settings: BatchSettings,
    lengths: Vec<u32>,
}

impl BatchPlan {
    /// A plan for records of these lengths in tokens.
    ///
    /// # Panics
    /// If a step or a micro-batch may hold nothing, or an explicit order names a record that is not there.
    pub fn new(lengths: Vec<u32>, settings: BatchSettings) -> Self {
        assert!(settings.batch_size > 0 && settings.tokens_max > 0, "batches must hold something");
        if let Order::Explicit(order) = &settings.order {
            let known = |record: &u32| (*record as usize) < lengths.len();
            assert!(order.iter().all(known), "the order names a record that is not there");
        }
        Self { settings, lengths }
    }

    /// Optimizer steps of an epoch; the last may have fewer records.
    pub fn steps_per_epoch(&self) -> u32 {
        let n_records = match &self.settings.order {
            Order::Explicit(order) => order.len(),
            Order::Shuffled | Order::Sequential => self.lengths.len(),
        };
        u32::try_from(n_records.div_ceil(self.settings.batch_size)).unwrap_or(u32::MAX)
    }

    /// The steps of an epoch.
    pub fn epoch(&self, epoch: u32) -> EpochPlan<'_> {
        let n_records = u32::try_from(self.lengths.len()).unwrap_or(u32::MAX);
        let order = match &self.settings.order {
            Order::Sequential => (0..n_records).collect(),
            Order::Explicit(order) => order.clone(),
            Order::Shuffled => {
                let stream = STREAM_EPOCHS + u64::from(epoch);
                CounterRng::new(self.settings.seed, stream).permutation(n_records)
            }
        };
        EpochPlan { plan: self, epoch, order }
    }

    /// All steps from `position` to the end of the epoch before `n_epochs`.
    pub fn steps_from(&self, position: Position, n_epochs: u32) -> impl Iterator<Item = StepPlan> {
        (position.epoch..n_epochs).flat_map(move |epoch| {
            let first = if epoch == position.epoch { position.step } else { 0 };
            let plan = self.epoch(epoch);
            (first..self.steps_per_epoch()).filter_map(move |step| plan.step(step))
        })
    }
}

/// The steps of one epoch.
#[derive(Clone, Debug)]
pub struct EpochPlan<'a> {
    plan: &'a BatchPlan,
    epoch: u32,
    order: Vec<u32>,
}

impl EpochPlan<'_> {
    /// A step; `None` after the last.
    pub fn step(&self, step: u32) -> Option<StepPlan> {
        let settings = &self.plan.settings;
        let records = self.order.chunks(settings.batch_size).nth(step as usize)?.to_vec();
        let micro_batches = match settings.packing {
            Packing::InOrder => in_order(&records, &self.plan.lengths, settings.tokens_max),
            Packing::FirstFitDecreasing => {
                first_fit_decreasing(&records, &self.plan.lengths, settings.tokens_max)
            }
        };
        let position = Position { epoch: self.epoch, step };
        Some(StepPlan { position, records, micro_batches })
    }
}

fn in_order(records: &[u32], lengths: &[u32], tokens_max: usize) -> Vec<Vec<u32>> {
    let mut micro_batches: Vec<Vec<u32>> = Vec::new();
    let mut room = 0;
    for &record in records {
        let n_tokens = lengths[record as usize] as usize;
        match micro_batches.last_mut() {
            Some(last) if n_tokens <= room => {
                room -= n_tokens;
                last.push(record);
            }
            _ => {
                room = tokens_max.saturating_sub(n_tokens);
                micro_batches.push(vec![record]);
            }
        }
    }
    micro_batches
}

/// At most 11/9 of the fewest possible micro-batches, plus one (Johnson 1973). Records of one length keep their order.
fn first_fit_decreasing(records: &[u32], lengths: &[u32], tokens_max: usize) -> Vec<Vec<u32>> {
    let mut records = records.to_vec();
    records.sort_by_key(|record| Reverse(lengths[*record as usize]));
    let mut micro_batches: Vec<(usize, Vec<u32>)> = Vec::new();
    for record in records {
        let n_tokens = lengths[record as usize] as usize;
        match micro_batches.iter_mut().find(|(room, _)| n_tokens <= *room) {
            Some((room, micro_batch)) => {
                *room -= n_tokens;
                micro_batch.push(record);
            }
            None => micro_batches.push((tokens_max.saturating_sub(n_tokens), vec![record])),
        }
    }
    micro_batches.into_iter().map(|(_, micro_batch)| micro_batch).collect()
}
