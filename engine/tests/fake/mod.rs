//! A runner without a model: the token it chooses is a hash of all that it reads through the block table, so that a wrong
//! table, a stale cached block, a wrong position or a wrong adapter changes the output.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod audit;
pub(crate) mod bench;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pleach_engine::{
    backend::{RunError, StepRunner},
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    packed_adapter::{AdapterPacker, PackedAdapter, PlainPacker, ResidentAdapters},
    sampler::SampledToken,
    spec::{Architecture, ModelSpec, RopeScaling},
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
};

/// Tokens of the fake vocabulary. Few, so that stop tokens come up.
pub(crate) const VOCAB: usize = 50;

/// A prompt that holds this token can choose nothing.
pub(crate) const NAN_TOKEN: u32 = 49;

/// What one KV place holds.
#[derive(Clone, Copy, Debug, Default)]
struct KvEntry {
    token: u32,
    /// Hash of this token, its position and adapter, and the digest before it, as a real value depends on all before.
    digest: u64,
}

/// What a test may look at while the engine owns the runner.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) rows: AtomicUsize,
    pub(crate) steps: AtomicUsize,
    pub(crate) slots_removed: AtomicUsize,
}

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Accident {
    Error,
    Panic,
}

pub(crate) struct FakeRunner {
    spec: ModelSpec,
    max_rows: usize,
    kv: Vec<[KvEntry; KV_BLOCK_TOKENS]>,
    pub(crate) seen: Arc<Seen>,
    /// Happens in the next step, once.
    pub(crate) accident: Option<Accident>,
    /// A prompt beginning with this token has an accident.
    pub(crate) accident_token: Option<(u32, Accident)>,
    pub(crate) step_time: Duration,
    /// How long an adapter is on its way.
    pub(crate) install_time: Duration,
    slots: Arc<Mutex<Slots>>,
}

impl FakeRunner {
    pub(crate) fn new(n_blocks: usize, context: usize, max_rows: usize) -> Self {
        Self {
            spec: ModelSpec {
                architecture: Architecture::Llama,
                name: "fake".to_owned(),
                n_layers: 1,
                hidden: 4,
                n_heads: 1,
                n_kv_heads: 1,
                head_dim: 4,
                ffn: 4,
                vocab: VOCAB,
                context,
                rms_eps: 1e-5,
                rope_theta: 1e4,
                rope_scaling: RopeScaling::None,
            },
            max_rows,
            kv: vec![[KvEntry::default(); KV_BLOCK_TOKENS]; n_blocks],
            seen: Arc::default(),
            accident: None,
            accident_token: None,
            step_time: Duration::ZERO,
            install_time: Duration::ZERO,
            slots: Arc::default(),
        }
    }

    fn entry(&mut self, table: &[KvBlockId], position: usize) -> &mut KvEntry {
        &mut self.kv[table[position / KV_BLOCK_TOKENS].0 as usize][position % KV_BLOCK_TOKENS]
    }

    fn write(&mut self, batch: &StepBatch, sequence: &StepSequence) {
        for row in sequence.rows.clone() {
            let (token, position) = (batch.token_ids[row], batch.positions[row]);
            let before = match position {
                0 => 0,
                _ => self.entry(&sequence.block_table, position - 1).digest,
            };
            let adapter = sequence.adapter.map_or(u64::MAX, |slot| u64::from(slot.0));
            let digest = mix(before, &[u64::from(token), position as u64, adapter]);
            *self.entry(&sequence.block_table, position) = KvEntry { token, digest };
        }
    }

    fn sample(
        &mut self,
        batch: &StepBatch,
        sequence: &StepSequence,
        sample: &SampleRow,
    ) -> SampledToken {
        let position = batch.positions[sample.row];
        let read: Vec<KvEntry> =
            (0..=position).map(|p| *self.entry(&sequence.block_table, p)).collect();
        let seen: Vec<u32> = read.iter().map(|entry| entry.token).collect();
        if sample.params.needs_history() {
            assert_eq!(*sample.history, seen, "history and keys and values tell different tokens");
        }
        if seen.contains(&NAN_TOKEN) {
            return SampledToken::none();
        }
        let words: Vec<u64> = read.iter().map(|entry| entry.digest).collect();
        let hash =
            mix(mix(sample.sample_index, &words), &[sample.params.seed, sample.n_prompt as u64]);
        let mut token = u32::try_from(hash % u64::from(NAN_TOKEN)).unwrap();
        while sample.banned.contains(&token) {
            token = (token + 1) % NAN_TOKEN;
        }
        let n_top = u64::from(sample.params.logprobs.unwrap_or(0));
        SampledToken {
            token: sample.forced.unwrap_or(token),
            logprob: -((hash >> 40) as f32),
            top: (0..n_top)
                .map(|i| (u32::try_from((hash + i) % 50).unwrap(), -(i as f32)))
                .collect(),
        }
    }
}

impl StepRunner for FakeRunner {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn n_kv_blocks(&self) -> usize {
        self.kv.len()
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn step(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, RunError> {
        check(batch, self.max_rows, self.kv.len());
        std::thread::sleep(self.step_time);
        // Until the step's end.
        for slot in batch.sequences.iter().filter_map(|sequence| sequence.adapter) {
            assert!(!self.slots.lock().unwrap().removed.contains(&slot), "{slot:?} was removed");
        }
        self.seen.rows.fetch_add(batch.n_rows(), Ordering::Relaxed);
        self.seen.steps.fetch_add(1, Ordering::Relaxed);
        let bad = self.accident_token.filter(|(token, _)| batch.token_ids.contains(token));
        if let Some(accident) = self.accident.take().or(bad.map(|(_, accident)| accident)) {
            // What the contract allows: every block of the batch is ruined, also the shared ones.
            for block in batch.sequences.iter().flat_map(|sequence| &sequence.block_table) {
                self.kv[block.0 as usize] = [KvEntry { token: 0, digest: 0xBAD }; KV_BLOCK_TOKENS];
            }
            match accident {
                Accident::Error => return Err(RunError::Device("accident".to_owned())),
                Accident::Panic => panic!("accident"),
            }
        }
        for sequence in &batch.sequences {
            self.write(batch, sequence);
        }
        let mut sampled = Vec::new();
        for sample in &batch.sample_rows {
            let sequence = batch
                .sequences
                .iter()
                .find(|sequence| sequence.rows.contains(&sample.row))
                .unwrap();
            sampled.push(self.sample(batch, sequence, sample));
        }
        Ok(sampled)
    }

    fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(PlainPacker { spec: self.spec.clone(), capacity_bytes: 1 << 30 })
    }

    fn adapters(&self) -> Arc<dyn ResidentAdapters> {
        Arc::new(FakeResidents {
            install_time: self.install_time,
            slots: Arc::clone(&self.slots),
            seen: Arc::clone(&self.seen),
        })
    }
}

/// Slots are numbered and not used again. Who schedules without an engine names others.
#[derive(Debug, Default)]
struct Slots {
    n_installed: u32,
    removed: HashSet<AdapterSlot>,
}

/// Takes its time, and counts.
struct FakeResidents {
    install_time: Duration,
    slots: Arc<Mutex<Slots>>,
    seen: Arc<Seen>,
}

impl ResidentAdapters for FakeResidents {
    fn install(&self, _: &PackedAdapter) -> Result<AdapterSlot, RunError> {
        std::thread::sleep(self.install_time);
        let mut slots = self.slots.lock().unwrap();
        slots.n_installed += 1;
        Ok(AdapterSlot(slots.n_installed))
    }

    fn remove(&self, slot: AdapterSlot) {
        assert!(self.slots.lock().unwrap().removed.insert(slot), "{slot:?} was removed before");
        self.seen.slots_removed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every promise that a batch makes.
fn check(batch: &StepBatch, max_rows: usize, n_blocks: usize) {
    assert!((1..=max_rows).contains(&batch.n_rows()), "{} rows", batch.n_rows());
    assert_eq!(batch.positions.len(), batch.n_rows());
    let mut next_row = 0;
    for (index, sequence) in batch.sequences.iter().enumerate() {
        assert_eq!(sequence.rows.start, next_row, "rows tile the step");
        assert!(!sequence.rows.is_empty());
        next_row = sequence.rows.end;
        let positions = &batch.positions[sequence.rows.clone()];
        assert!(
            positions.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "positions are consecutive"
        );
        let last = positions[positions.len() - 1];
        assert_eq!(sequence.block_table.len(), last / KV_BLOCK_TOKENS + 1);
        assert!(sequence.block_table.iter().all(|block| (block.0 as usize) < n_blocks));
        let written = &sequence.block_table[positions[0] / KV_BLOCK_TOKENS..];
        for (other_index, other) in batch.sequences.iter().enumerate() {
            let shares = other.block_table.iter().any(|block| written.contains(block));
            assert!(
                index == other_index || !shares,
                "a block that is written belongs to one sequence"
            );
        }
    }
    assert_eq!(next_row, batch.n_rows());
    assert!(
        batch.sample_rows.windows(2).all(|pair| pair[0].row < pair[1].row),
        "sample rows ascend"
    );
    assert!(batch.sample_rows.iter().all(|sample| sample.row < batch.n_rows()));
}

fn mix(seed: u64, words: &[u64]) -> u64 {
    let mut hash = seed ^ 0x9E37_79B9_7F4A_7C15;
    for word in words {
        hash = (hash ^ word).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash ^= hash >> 29;
    }
    hash
}
