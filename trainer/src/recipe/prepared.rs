//! A recipe with its rows and its model: all that a learner needs, and in which order.

use pleach_engine::{
    cpu::{FrozenBase, Isa},
    spec::ModelSpec,
    train::TrainOptions,
};

use super::{
    Method, Parent, Recipe, RecipeError, Resolved, RowsOf,
    memory::rows_of,
    rows::{Prompt, batches, prompts, samples},
};
use crate::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, Schedule,
    data::{BatchPlan, BatchSettings, Loaded, Order, Packing, Position, StepPlan},
    objective::{Dpo, Kto, PolicyGradient},
};

/// Memory for activations that are kept for the backward half; what does not fit is computed again.
pub const ACTIVATION_BYTES: usize = 256 << 20;
/// Least rows of a micro-batch: short examples go through together.
const MICRO_BATCH_ROWS: usize = 512;
/// Steps of a hundred in which the learning rate rises.
const WARMUP_PERCENT: u64 = 5;

/// With what is computed. It changes how long a training takes and how much memory, never what it comes to, but for the
/// kernels.
#[derive(Clone, Copy, Debug)]
pub struct Compute {
    /// Kernels.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
    /// Bytes for activations, [`ACTIVATION_BYTES`] for example.
    pub activation_bytes: usize,
    /// Multiply-adds between two questions whether to go on.
    pub unit_work: u64,
}

/// What is learned from, and measured on.
#[derive(Debug)]
enum Material {
    Samples {
        train: Vec<Sample>,
        validation: Vec<Vec<Sample>>,
    },
    /// Answers to them are sampled on the way.
    Prompts {
        train: Vec<Prompt>,
        validation: Vec<Prompt>,
    },
}

/// All that is trained, and how.
#[derive(Debug)]
pub struct Prepared {
    recipe: Recipe,
    resolved: Resolved,
    parent: Option<Parent>,
    lora: LoraSettings,
    material: Material,
    plan: BatchPlan,
    rows_max: usize,
    data_sha256: [u8; 32],
}

impl Prepared {
    /// Makes samples of all rows and chooses what was left open.
    ///
    /// # Errors
    /// [`RecipeError::Method`], [`RecipeError::Rank`].
    pub fn new(
        recipe: Recipe,
        loaded: &Loaded,
        parent: Option<Parent>,
        spec: &ModelSpec,
    ) -> Result<Self, RecipeError> {
        let (train, validation) = (&loaded.data.items, &loaded.validation.items);
        let prepared = if recipe.method == Method::Reinforcement {
            let train = prompts(train, RowsOf::Training)?;
            let validation = prompts(validation, RowsOf::Validation)?;
            Self::of_prompts(recipe, train, validation, parent, spec)?
        } else {
            let train = samples(train, recipe.method, RowsOf::Training)?;
            let validation = samples(validation, recipe.method, RowsOf::Validation)?;
            Self::of_samples(recipe, train, &validation, parent, spec)?
        };
        Ok(Self { data_sha256: loaded.data.digest(), ..prepared })
    }

    /// The same of samples that are there already; the digest of the data is zero.
    ///
    /// # Errors
    /// [`RecipeError::Rank`].
    pub fn of_samples(
        recipe: Recipe,
        samples: Vec<Sample>,
        validation: &[Sample],
        parent: Option<Parent>,
        spec: &ModelSpec,
    ) -> Result<Self, RecipeError> {
        let lengths: Vec<u32> = samples.iter().map(n_tokens).collect();
        let longest = lengths.iter().copied().chain(validation.iter().map(n_tokens)).max();
        // KTO also takes an answer after another's prompt.
        let longest =
            longest.unwrap_or_default() as usize * if recipe.method == Method::Kto { 2 } else { 1 };
        let material = Material::Samples { train: samples, validation: batches(validation) };
        Self::of_material(recipe, material, (lengths, longest), parent, spec)
    }

    /// Answers are at most as long as the context leaves room for.
    fn of_prompts(
        recipe: Recipe,
        train: Vec<Prompt>,
        validation: Vec<Prompt>,
        parent: Option<Parent>,
        spec: &ModelSpec,
    ) -> Result<Self, RecipeError> {
        let n_answer = recipe.resolve(train.len(), spec.hidden).exploration;
        let n_answer = n_answer.map_or(0, |exploration| exploration.max_completion_tokens as usize);
        let length = |prompt: &Prompt| (prompt.tokens.len() + n_answer).min(spec.context);
        let lengths: Vec<u32> =
            train.iter().map(|prompt| u32::try_from(length(prompt)).unwrap_or(u32::MAX)).collect();
        let longest = train.iter().map(length).max().unwrap_or_default();
        let material = Material::Prompts { train, validation };
        Self::of_material(recipe, material, (lengths, longest), parent, spec)
    }

    /// `lengths` are those of the records in tokens, and that of the longest sequence of them and of what is measured on.
    fn of_material(
        recipe: Recipe,
        material: Material,
        (lengths, longest): (Vec<u32>, usize),
        parent: Option<Parent>,
        spec: &ModelSpec,
    ) -> Result<Self, RecipeError> {
        let mut resolved = recipe.resolve(lengths.len(), spec.hidden);
        let lora = match &parent {
            None => LoraSettings::all_linear(resolved.lora_rank as usize),
            Some(parent) => parent.lora(),
        };
        let rank = u32::try_from(lora.rank).unwrap_or(u32::MAX);
        let asked = recipe.hyperparameters.lora_rank.or(rank);
        if parent.is_some() && asked != rank {
            return Err(RecipeError::Rank { asked, parent: lora.rank });
        }
        resolved.lora_rank = rank;
        let rows_max = longest.max(MICRO_BATCH_ROWS);
        let plan = BatchPlan::new(
            lengths,
            BatchSettings {
                batch_size: resolved.batch_size as usize,
                tokens_max: rows_max,
                order: Order::Shuffled,
                packing: Packing::default(),
                seed: recipe.seed,
            },
        );
        Ok(Self { recipe, resolved, parent, lora, material, plan, rows_max, data_sha256: [0; 32] })
    }

    /// What was asked for.
    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// What it came to.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Whether it goes on from an adapter.
    pub fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Rows that each step puts through the model, those of references not among them, from the first step on: what a
    /// step's time goes with.
    pub fn rows_of_steps(&self) -> Vec<usize> {
        let rows: Vec<usize> = self.samples().iter().map(rows_of).collect();
        let of_step = |step: StepPlan| step.records.iter().map(|&i| rows[i as usize]).sum();
        self.steps_from(Position::default()).map(of_step).collect()
    }

    /// Sites, ranks and scale.
    pub fn lora(&self) -> &LoraSettings {
        &self.lora
    }

    /// What is learned from; nothing where it is sampled on the way.
    pub fn samples(&self) -> &[Sample] {
        match &self.material {
            Material::Samples { train, .. } => train,
            Material::Prompts { .. } => &[],
        }
    }

    /// Rows to measure on, in batches.
    pub fn validation(&self) -> &[Vec<Sample>] {
        match &self.material {
            Material::Samples { validation, .. } => validation,
            Material::Prompts { .. } => &[],
        }
    }

    /// What answers are sampled to, and with which answers it is measured; nothing where samples are there already.
    pub fn prompts(&self) -> (&[Prompt], &[Prompt]) {
        match &self.material {
            Material::Samples { .. } => (&[], &[]),
            Material::Prompts { train, validation } => (train, validation),
        }
    }

    /// Rows of the longest pass.
    pub(super) fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// SHA-256 of all rows, whatever their order.
    pub fn data_sha256(&self) -> [u8; 32] {
        self.data_sha256
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u32 {
        self.plan.steps_per_epoch()
    }

    /// Steps of all epochs.
    pub fn total_steps(&self) -> u64 {
        u64::from(self.plan.steps_per_epoch()) * u64::from(self.resolved.n_epochs)
    }

    /// What is minimized.
    pub fn objective(&self) -> Objective {
        let beta = self.resolved.beta;
        match self.recipe.method {
            Method::Supervised => Objective::Sft,
            Method::Dpo => Objective::Dpo(Dpo { beta, ..Dpo::default() }),
            Method::Kto => Objective::Kto(Kto { beta, ..Kto::default() }),
            Method::Reinforcement => Objective::PolicyGradient(PolicyGradient {
                kl_weight: beta,
                ..PolicyGradient::default()
            }),
        }
    }

    /// Settings of the engine's passes.
    pub fn train_options(&self, compute: Compute) -> TrainOptions {
        let Compute { isa, threads, activation_bytes, unit_work } = compute;
        let (precision, rows_max) = (self.recipe.precision, self.rows_max);
        TrainOptions { isa, precision, threads, rows_max, activation_bytes, unit_work }
    }

    /// A learner before its first step: of the parent's weights or fresh ones.
    ///
    /// # Errors
    /// Of [`Learner::new`].
    pub fn learner(&self, base: &FrozenBase, compute: Compute) -> Result<Learner, RecipeError> {
        let total_steps = self.total_steps();
        let optimizer = OptimizerSettings {
            learning_rate: self.resolved.learning_rate,
            schedule: Schedule::Linear,
            warmup_steps: total_steps * WARMUP_PERCENT / 100,
            total_steps,
            ..OptimizerSettings::default()
        };
        let (objective, seed) = (self.objective(), self.recipe.seed);
        let settings = LearnerSettings { objective, optimizer, dropout: 0.0, seed };
        let begin = match &self.parent {
            Some(parent) => parent.weights().as_ref().clone(),
            None => self.lora.fresh(base.spec(), seed)?,
        };
        let reference = self.parent.as_ref().map(|parent| parent.weights().clone());
        let options = self.train_options(compute);
        Ok(Learner::new(base, begin, reference, settings, options)?)
    }

    /// All steps from a position on.
    pub fn steps_from(&self, position: Position) -> impl Iterator<Item = StepPlan> {
        self.plan.steps_from(position, self.resolved.n_epochs)
    }

    /// The samples of a step.
    pub fn batch(&self, step: &StepPlan) -> Vec<Sample> {
        let samples = self.samples();
        step.records.iter().filter_map(|&index| samples.get(index as usize).cloned()).collect()
    }

    /// The prompts of a step.
    pub fn prompts_of(&self, step: &StepPlan) -> Vec<&Prompt> {
        let (prompts, _) = self.prompts();
        step.records.iter().filter_map(|&index| prompts.get(index as usize)).collect()
    }

    /// Whether it is measured after a step.
    pub fn is_evaluated(&self, step: &StepPlan) -> bool {
        let interval = self.resolved.exploration.and_then(|exploration| exploration.eval_interval);
        let done = u64::from(step.position.epoch) * u64::from(self.steps_per_epoch())
            + u64::from(step.position.step)
            + 1;
        match interval {
            None => self.is_epoch_end(step),
            Some(interval) => {
                done.is_multiple_of(u64::from(interval)) || done == self.total_steps()
            }
        }
    }

    /// Whether a step is the last of its epoch.
    pub fn is_epoch_end(&self, step: &StepPlan) -> bool {
        step.position.step + 1 == self.plan.steps_per_epoch()
    }

    /// The position after a step.
    pub fn next(&self, step: &StepPlan) -> Position {
        if self.is_epoch_end(step) {
            Position { epoch: step.position.epoch + 1, step: 0 }
        } else {
            Position { step: step.position.step + 1, ..step.position }
        }
    }
}

/// Tokens of all sequences of a sample.
fn n_tokens(sample: &Sample) -> u32 {
    let n: usize = sample.sequences().iter().map(|sequence| sequence.tokens.len()).sum();
    u32::try_from(n).unwrap_or(u32::MAX)
}
