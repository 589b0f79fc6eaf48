//! One pass: forward over a micro-batch, and backward from the weights of its targets.

use std::sync::Arc;

use crate::{
    adapter_weights::AdapterWeights,
    cpu::{CpuError, threads::Team},
    site::Site,
    spec::ModelSpec,
    train::{
        AdapterGradients, AdapterShape, Likely, MemoryNeed, MicroBatch, Progress, Purpose, Slopes,
        TrainError, TrainOptions, UnitCost,
    },
};

use super::{
    base::FrozenBase,
    dropout::Masks,
    input::PassInput,
    memory::{Memory, group_values},
    ops::Op,
    plan::BatchPlan,
    program::Builder,
};

/// Where a pass stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Forward,
    Scored,
    Backward,
    Learned,
}

/// Memory and threads for passes over one model, with adapters of one shape.
///
/// ```text
/// begin → advance … Done → logps → begin_backward → advance … Done → take_gradients
/// ```
/// A pass whose `advance` panicked must not be used again.
pub struct TrainPass {
    pub(super) input: PassInput,
    shape: AdapterShape,
    options: TrainOptions,
    pub(super) team: Team,
    pub(super) memory: Memory,
    need: MemoryNeed,
    pub(super) gradients: AdapterGradients,
    /// Log-probability of every target; before the sums are finished, its logit.
    pub(super) logps: Vec<f32>,
    /// Whether the target was the likeliest token.
    pub(super) hits: Vec<bool>,
    /// Logarithm of the sum of exponentials of all logits, of every head row.
    pub(super) lse: Vec<f32>,
    /// The likeliest tokens of every head row, `[head rows, top_k]`, the likeliest first; before the sums are finished,
    /// their logits.
    pub(super) top: Vec<Likely>,
    pub(super) top_k: usize,
    /// `dL/dlogp` of every target.
    pub(super) d_logps: Vec<f32>,
    /// `dL/dh` of every feature.
    pub(super) d_features: Vec<f32>,
    state: State,
    learns: bool,
    program: Vec<Op>,
    /// The next chunk: operation, chunk.
    cursor: (usize, usize),
}

impl std::fmt::Debug for TrainPass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainPass")
            .field("state", &self.state)
            .field("memory", &self.need)
            .finish_non_exhaustive()
    }
}

impl TrainPass {
    /// Takes all memory that passes will need.
    ///
    /// # Errors
    /// [`TrainError::Cpu`] where the processor lacks the instruction set or a thread cannot be started,
    /// [`TrainError::Precision`], [`TrainError::Setting`].
    pub fn new(
        base: &FrozenBase,
        shape: &AdapterShape,
        options: TrainOptions,
    ) -> Result<Self, TrainError> {
        if !options.isa.is_available() {
            return Err(CpuError::NoSuchIsa(options.isa).into());
        }
        options.precision.check(options.isa)?;
        for (setting, value) in [("rows_max", options.rows_max), ("threads", options.threads)] {
            if value == 0 {
                return Err(TrainError::Setting { setting, value: 0.0, expected: "at least 1" });
            }
        }
        let spec = base.spec();
        Ok(Self {
            memory: Memory::new(spec, shape, &options),
            need: Memory::need(spec, shape, &options),
            input: PassInput::new(Arc::clone(&base.0), &options),
            shape: shape.clone(),
            team: Team::new(options.threads).map_err(CpuError::Thread)?,
            options,
            gradients: AdapterGradients::default(),
            logps: Vec::new(),
            hits: Vec::new(),
            lse: Vec::new(),
            top: Vec::new(),
            top_k: 0,
            d_logps: Vec::new(),
            d_features: Vec::new(),
            state: State::Idle,
            learns: false,
            program: Vec::new(),
            cursor: (0, 0),
        })
    }

    /// Bytes that [`Self::new`] would take. (Pages that no batch was long enough to write to take none.)
    pub fn memory_need(
        spec: &ModelSpec,
        shape: &AdapterShape,
        options: &TrainOptions,
    ) -> MemoryNeed {
        Memory::need(spec, shape, options)
    }

    /// Begins a pass, whatever became of the one before. Without an adapter the scores are the base's.
    ///
    /// # Errors
    /// What does not fit, by name: see [`TrainError`]. The pass is idle then.
    pub fn begin(
        &mut self,
        batch: MicroBatch,
        adapter: Option<Arc<AdapterWeights>>,
        purpose: Purpose,
    ) -> Result<(), TrainError> {
        self.state = State::Idle;
        self.check(&batch, adapter.as_deref())?;
        let (dropout, top_k) = match purpose {
            Purpose::Score => (None, 0),
            Purpose::Rank { top_k } => (None, top_k.min(self.input.base.spec.vocab)),
            Purpose::Learn { dropout } => (dropout, 0),
        };
        if let Some(dropout) = dropout
            && !(0.0..1.0).contains(&dropout.probability)
        {
            let value = f64::from(dropout.probability);
            let expected = "at least 0 and below 1";
            return Err(TrainError::Setting { setting: "dropout", value, expected });
        }
        let (n_targets, n_head_rows) = (batch.targets().len(), batch.head_rows().len());
        let room = group_values(&self.memory);
        self.input.plan = BatchPlan::new(batch, &self.input.base.spec, room);
        self.input.masks = dropout.and_then(Masks::new);
        self.input.adapter = adapter;
        self.learns = matches!(purpose, Purpose::Learn { .. });
        refill(&mut self.logps, n_targets, 0.0);
        refill(&mut self.hits, n_targets, false);
        refill(&mut self.lse, n_head_rows, 0.0);
        self.top_k = top_k;
        let none = Likely { token: 0, logp: f32::NEG_INFINITY };
        refill(&mut self.top, n_head_rows * top_k, none);
        self.program = self.builder().forward();
        (self.cursor, self.state) = ((0, 0), State::Forward);
        Ok(())
    }

    /// Begins the backward half; what the adapter's gradients come to is added to `gradients`.
    ///
    /// # Errors
    /// [`TrainError::Order`] unless a pass for learning, with an adapter, is scored; [`TrainError::Slopes`].
    ///
    /// # Panics
    /// When the gradients are not of the adapter's shape.
    pub fn begin_backward(
        &mut self,
        slopes: Slopes<'_>,
        gradients: AdapterGradients,
    ) -> Result<(), TrainError> {
        let order = |needs| TrainError::Order { call: "a backward half", needs };
        let Some(adapter) = self.input.adapter.as_deref() else { return Err(order("an adapter")) };
        if self.state != State::Scored || !self.learns {
            return Err(order("a forward half for learning, done"));
        }
        let batch = &self.input.plan.batch;
        for (what, found, expected) in [
            ("logps", slopes.logps.len(), batch.targets().len()),
            ("features", slopes.features.len(), batch.features().len() * self.hidden()),
        ] {
            if found != expected {
                return Err(TrainError::Slopes { what, found, expected });
            }
        }
        assert!(gradients.fit(adapter), "gradients of another adapter");
        for (kept, given) in
            [(&mut self.d_logps, slopes.logps), (&mut self.d_features, slopes.features)]
        {
            kept.clear();
            kept.extend_from_slice(given);
        }
        self.gradients = gradients;
        self.program = self.builder().backward();
        (self.cursor, self.state) = ((0, 0), State::Backward);
        Ok(())
    }

    /// Works unit by unit while `go_on`, asked before each with its cost, says so.
    pub fn advance(&mut self, mut go_on: impl FnMut(UnitCost) -> bool) -> Progress {
        while let Some(op) = self.program.get(self.cursor.0).cloned() {
            let (n_chunks, chunk_work) = self.extent(&op);
            let threads = self.team.n_threads();
            let per_unit = self.options.unit_work / chunk_work.max(1);
            let per_unit = usize::try_from(per_unit).unwrap_or(n_chunks);
            let per_unit = per_unit.max(1).next_multiple_of(threads);
            while self.cursor.1 < n_chunks {
                let chunks = self.cursor.1..n_chunks.min(self.cursor.1 + per_unit);
                if !go_on(UnitCost { work: chunks.len() as u64 * chunk_work }) {
                    return Progress::Paused;
                }
                self.cursor.1 = chunks.end;
                self.run_op(&op, chunks);
            }
            self.cursor = (self.cursor.0 + 1, 0);
        }
        self.state = match self.state {
            State::Forward => State::Scored,
            State::Backward => State::Learned,
            State::Idle | State::Scored | State::Learned => self.state,
        };
        Progress::Done
    }

    /// Works to the end of this half.
    pub fn run(&mut self) {
        self.advance(|_| true);
    }

    /// Multiply-adds (or a like amount of other work) that this half has yet to do.
    pub fn work_left(&self) -> u64 {
        let ops = self.program.iter().enumerate().skip(self.cursor.0);
        let left = ops.map(|(index, op)| {
            let (n_chunks, work) = self.extent(op);
            let done = if index == self.cursor.0 { self.cursor.1 } else { 0 };
            n_chunks.saturating_sub(done) as u64 * work
        });
        left.sum()
    }

    /// Log-probability of every target of the batch, in their order; natural logarithms.
    ///
    /// # Errors
    /// [`TrainError::Order`] before the forward half is done.
    pub fn logps(&self) -> Result<&[f32], TrainError> {
        self.scored("logps").map(|()| self.logps.as_slice())
    }

    /// Whether each target was the likeliest token there, in the order of [`Self::logps`].
    ///
    /// # Errors
    /// As [`Self::logps`].
    pub fn hits(&self) -> Result<&[bool], TrainError> {
        self.scored("hits").map(|()| self.hits.as_slice())
    }

    /// The likeliest tokens at every row with targets or features, `[head rows, k]`, the likeliest first, `k` being
    /// [`Purpose::Rank`]'s or the vocabulary's size; of equally likely ones, the lowest. Empty under other purposes.
    ///
    /// # Errors
    /// As [`Self::logps`].
    pub fn likeliest(&self) -> Result<&[Likely], TrainError> {
        self.scored("likeliest").map(|()| self.top.as_slice())
    }

    /// Feature `index` of the batch: the hidden state, `[hidden]`, after the final norm.
    ///
    /// # Errors
    /// As [`Self::logps`].
    ///
    /// # Panics
    /// When there is no such feature.
    pub fn feature(&self, index: usize) -> Result<&[f32], TrainError> {
        self.scored("feature")?;
        let row = self.input.plan.batch.features()[index];
        Ok(&self.memory[self.memory.head_input].row(row)[..self.hidden()])
    }

    fn hidden(&self) -> usize {
        self.input.base.spec.hidden
    }

    fn scored(&self, call: &'static str) -> Result<(), TrainError> {
        match self.state {
            State::Scored | State::Backward | State::Learned => Ok(()),
            State::Idle | State::Forward => {
                Err(TrainError::Order { call, needs: "a forward half, done" })
            }
        }
    }

    /// The gradients, with what this pass added. The pass lets go of adapter and batch.
    ///
    /// # Errors
    /// [`TrainError::Order`] before the backward half is done.
    pub fn take_gradients(&mut self) -> Result<AdapterGradients, TrainError> {
        if self.state != State::Learned {
            return Err(TrainError::Order {
                call: "take_gradients",
                needs: "a backward half, done",
            });
        }
        self.state = State::Idle;
        self.input.adapter = None;
        Ok(std::mem::take(&mut self.gradients))
    }

    /// The batch of the pass.
    pub fn batch(&self) -> &MicroBatch {
        &self.input.plan.batch
    }

    /// What the pass takes.
    pub fn memory(&self) -> MemoryNeed {
        self.need
    }

    fn builder(&self) -> Builder<'_> {
        Builder {
            memory: &self.memory,
            shape: self.input.adapter.is_some().then_some(&self.shape),
            n_layers: self.input.base.spec.n_layers,
            head_tiles: self.input.base.head.n_tiles(),
            n_groups: self.input.plan.groups.len(),
            has_targets: !self.input.plan.batch.targets().is_empty(),
            has_features: !self.input.plan.batch.features().is_empty(),
            dropout: self.input.masks.is_some(),
            precision: self.input.precision,
        }
    }

    fn check(
        &self,
        batch: &MicroBatch,
        adapter: Option<&AdapterWeights>,
    ) -> Result<(), TrainError> {
        let spec = &self.input.base.spec;
        let (rows, rows_max) = (batch.n_rows(), self.options.rows_max);
        if rows > rows_max {
            return Err(TrainError::TooManyRows { rows, rows_max });
        }
        if let Some(rows) = batch.sequences().map(|rows| rows.len()).max()
            && rows > spec.context
        {
            return Err(TrainError::TooLong { rows, context: spec.context });
        }
        let tokens = batch.token_ids().iter().copied();
        let mut tokens = tokens.chain(batch.targets().iter().map(|target| target.token));
        if let Some(token) = tokens.find(|&token| token as usize >= spec.vocab) {
            return Err(TrainError::NoSuchToken { token, vocab: spec.vocab });
        }
        let Some(adapter) = adapter else { return Ok(()) };
        adapter.check(spec)?;
        adapter.check_plain("the trainer")?;
        let found = AdapterShape::of(adapter);
        let rank_in = |shape: &AdapterShape, site: Site| {
            shape.sites.iter().find(|entry| entry.0 == site).map_or(0, |entry| entry.1)
        };
        for &(site, _) in found.sites.iter().chain(&self.shape.sites) {
            let (found, expected) = (rank_in(&found, site), rank_in(&self.shape, site));
            if found != expected {
                return Err(TrainError::Shape { site, found, expected });
            }
        }
        Ok(())
    }
}

fn refill<T: Clone>(values: &mut Vec<T>, n: usize, value: T) {
    values.clear();
    values.resize(n, value);
}
