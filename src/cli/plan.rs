//! `pleach plan`: what a training would take of memory and of time, here.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

mod compare;
mod timing;

use std::{io::IsTerminal as _, path::PathBuf};

use anyhow::{Context as _, ensure};
use pleach_trainer::{
    Sample, Targeted,
    recipe::{Auto, Compute, Method, Parent, Prepared, Recipe, TrainingMemory},
};
use serde::Serialize;

use self::{compare::Comparison, timing::Timing};
use super::train::{
    base::{ComputeArgs, OpenBase},
    load_parent,
    recipe_args::{RecipeArgs, check_precision},
    rows::{RowFile, read_rows},
    show_time,
};
use crate::{
    memory::{free_bytes, peak_bytes, resident_bytes, show_bytes},
    models::{DEFAULT_MODEL, resolve},
};

/// Of a made-up example, one part in so many is the prompt.
const PROMPT_PART: u32 = 8;

/// Say whether a training fits here, and how long it takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A known name, a GGUF file, or hf:OWNER/REPO[:FILE]
    #[arg(long, env = "PLEACH_MODEL", default_value = DEFAULT_MODEL, value_name = "NAME|PATH")]
    model: String,
    /// Rows to learn from, JSONL
    #[arg(long, value_name = "FILE", required_unless_present = "examples", conflicts_with_all = ["examples", "tokens"])]
    data: Option<PathBuf>,
    /// Rows to measure on, after every epoch
    #[arg(long, value_name = "FILE", requires = "data")]
    validation: Option<PathBuf>,
    /// Instead of a file: so many examples …
    #[arg(long, value_name = "N", requires = "tokens", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    examples: Option<u32>,
    /// … of so many tokens; a pair has two answers of as many
    #[arg(long, value_name = "N", requires = "examples", value_parser = clap::value_parser!(u32).range(2..=2048))]
    tokens: Option<u32>,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Seconds in which steps are timed; a step that takes longer is waited for
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Then trains, in a temporary folder, and says how far the plan was off
    #[arg(long)]
    compare: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What a training would take.
#[derive(Debug, Serialize)]
struct Plan {
    model: String,
    method: Method,
    settings: pleach_trainer::recipe::Resolved,
    threads: usize,
    isa: String,
    precision: &'static str,
    examples: usize,
    rows_of_an_epoch: usize,
    steps: u64,
    memory: Memory,
    time: Timing,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared: Option<Comparison>,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    /// Program, model, tokenizer and rows, before anything is trained.
    loaded_bytes: u64,
    #[serde(flatten)]
    training: TrainingMemory,
    /// At the peak of all.
    peak_bytes: u64,
    /// If every micro-batch were as long as one may be.
    reserved_bytes: u64,
    /// What is free now, beside what is loaded.
    free_bytes: Option<u64>,
    fits: Option<bool>,
}

impl Memory {
    /// `loaded` and `peak` of this process, before the training's memory is taken.
    fn new(training: TrainingMemory, loaded: u64, peak: u64, free: Option<u64>) -> Self {
        // The samples are loaded already.
        let with = |bytes: usize| {
            let more = bytes.saturating_sub(training.sample_bytes) as u64;
            (loaded + more).max(peak)
        };
        Self {
            loaded_bytes: loaded,
            training,
            peak_bytes: with(training.peak_bytes()),
            reserved_bytes: with(training.reserved_bytes()),
            free_bytes: free,
            fits: free.map(|free| training.peak_bytes() as u64 <= free),
        }
    }
}

/// Plans, and tells.
///
/// # Errors
/// What a training would fail of.
pub async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(!args.compare || args.data.is_some(), "--compare needs --data");
    let compute = args.compute.read()?;
    check_precision(args.recipe.precision.into(), compute.isa)?;
    let model = resolve(&args.model, std::io::stderr().is_terminal()).await?;
    tokio::task::spawn_blocking(move || {
        let base = OpenBase::open(&model, compute)?;
        let (prepared, parent) = prepare(&args, &base)?;
        let plan = plan(&args, &base, &prepared, compute)?;
        drop((parent, prepared, base));
        finish(&args, plan)
    })
    .await?
}

/// The samples, and from where they begin.
fn prepare(args: &Args, base: &OpenBase) -> anyhow::Result<(Prepared, Option<String>)> {
    let data = args.data.as_deref().map(|path| RowFile::open("--data", path)).transpose()?;
    let method = match (args.recipe.method, &data) {
        (Some(name), _) => name.into(),
        (None, Some(file)) => file.method()?,
        (None, None) => Method::Supervised,
    };
    let hyperparameters = args.recipe.hyperparameters();
    ensure!(
        hyperparameters.beta == Auto::Auto || method != Method::Supervised,
        "--beta is a setting of dpo and kto"
    );
    let (seed, precision) = (args.recipe.seed, args.recipe.precision.into());
    let recipe = Recipe { method, hyperparameters, seed, precision };
    let parent = args.recipe.adapter.as_deref().map(|folder| load_parent(folder, base));
    let (parent, digest): (Option<Parent>, _) = parent.transpose()?.unzip();
    let spec = base.spec();
    let Some(data) = data else {
        let (n, tokens) = (args.examples.unwrap_or(1), args.tokens.unwrap_or(2));
        ensure!(
            tokens as usize <= spec.context,
            "--tokens {tokens}: the context is {}",
            spec.context
        );
        let samples = (0..n).map(|index| made_up(method, index, tokens, spec.vocab)).collect();
        let prepared = Prepared::of_samples(recipe, samples, &[], parent, spec)?;
        return Ok((prepared, digest));
    };
    let validation = args.validation.as_deref();
    let validation = validation.map(|path| RowFile::open("--validation", path)).transpose()?;
    let loaded = read_rows(&data, validation.as_ref(), base)?;
    Ok((Prepared::new(recipe, &loaded, parent, spec)?, digest))
}

/// An example of so many tokens, of which all but the prompt are targets.
fn made_up(method: Method, index: u32, tokens: u32, vocab: usize) -> Sample {
    let prompt = tokens / PROMPT_PART;
    let vocab = u32::try_from(vocab).unwrap_or(u32::MAX);
    let sequence = |salt: u32| {
        // Different tokens, as texts have them: the embedding's rows are not all in the cache.
        let token = |at: u32| (index * 7919 + salt * 104_729 + at * 31) % vocab;
        let ids: Vec<u32> = (0..tokens).map(token).collect();
        Targeted::new(&ids, (0..tokens).map(|at| at > prompt))
    };
    match method {
        // Which is no method of the command line's.
        Method::Supervised | Method::Reinforcement => Sample::Supervised(sequence(0)),
        Method::Dpo => Sample::Preference { preferred: sequence(0), rejected: sequence(1) },
        Method::Kto => Sample::Rated { answer: sequence(0), desirable: index.is_multiple_of(2) },
    }
}

fn plan(
    args: &Args,
    base: &OpenBase,
    prepared: &Prepared,
    compute: Compute,
) -> anyhow::Result<Plan> {
    let training = prepared.memory(base.spec(), compute)?;
    let loaded = resident_bytes().context("the system does not tell the memory of a process")?;
    let memory = Memory::new(training, loaded, peak_bytes().unwrap_or(loaded), free_bytes());
    ensure!(
        memory.fits != Some(false),
        "it does not fit: {} are needed beside the model, {} are free; less --activation-memory, a lower --rank or \
         shorter rows need less",
        show_bytes(training.peak_bytes() as u64),
        show_bytes(memory.free_bytes.unwrap_or_default()),
    );
    let mut learner = prepared.learner(&base.frozen, compute)?;
    let time = timing::measure(prepared, &mut learner, f64::from(args.seconds))?;
    let rows = prepared.rows_of_steps();
    Ok(Plan {
        model: args.model.clone(),
        method: prepared.recipe().method,
        settings: *prepared.resolved(),
        threads: compute.threads,
        isa: compute.isa.to_string(),
        precision: prepared.recipe().precision.name(),
        examples: prepared.samples().len(),
        rows_of_an_epoch: rows.iter().take(prepared.steps_per_epoch() as usize).sum(),
        steps: prepared.total_steps(),
        memory,
        time,
        compared: None,
    })
}

fn finish(args: &Args, mut plan: Plan) -> anyhow::Result<()> {
    if args.compare {
        plan.compared = Some(compare::train(args, &plan)?);
    }
    if args.json {
        println!("{:#}", serde_json::to_value(&plan)?);
    } else {
        print(&plan);
    }
    Ok(())
}

fn print(plan: &Plan) {
    let Plan { memory, time, settings, .. } = plan;
    let bytes = |bytes: usize| show_bytes(bytes as u64);
    println!(
        "model       {}; {} threads, {} kernels, products in {}",
        plan.model, plan.threads, plan.isa, plan.precision
    );
    println!(
        "training    {}: rank {}, {} parameters; {} epochs, {} steps of {} rows; {} examples, {} tokens an epoch",
        plan.method.name(),
        settings.lora_rank,
        memory.training.n_parameters,
        settings.n_epochs,
        plan.steps,
        settings.batch_size,
        plan.examples,
        plan.rows_of_an_epoch,
    );
    let free = memory.free_bytes.map(|free| format!("; {} are free", show_bytes(free)));
    let fits = if memory.fits == Some(true) { ": it fits" } else { "" };
    println!(
        "memory      {} at the peak{}{fits}",
        show_bytes(memory.peak_bytes),
        free.unwrap_or_default()
    );
    for (what, bytes) in [
        ("program, model, rows", show_bytes(memory.loaded_bytes)),
        ("passes", bytes(memory.training.pass_bytes_touched)),
        ("adapter, gradients, moments", bytes(memory.training.adapter_bytes)),
        ("while a state is saved", bytes(memory.training.saving_bytes)),
    ] {
        println!("              {what:<28} {bytes:>10}");
    }
    println!(
        "              at most {} if every micro-batch were full; activations of {} layers are kept",
        show_bytes(memory.reserved_bytes),
        memory.training.kept_layers,
    );
    println!(
        "time        {}: {:.3} s a step, {:.0} tokens/s, from {} steps that were timed",
        show_time(time.total_s),
        time.steps_s / plan.steps.max(1) as f64,
        time.tokens_per_second,
        time.timed_steps,
    );
    if let Some(compared) = &plan.compared {
        println!("compared    {compared}");
    }
}
