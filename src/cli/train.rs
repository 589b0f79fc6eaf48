//! `pleach train`: an adapter from a file of rows, without a server.
#![expect(clippy::print_stderr, reason = "what concerns the person who waits goes to the terminal")]

pub(super) mod base;
mod course;
mod curves;
mod finish;
mod plot;
pub(super) mod recipe_args;
pub(super) mod rows;
mod screen;
mod setup;
mod work;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use pleach_adapters::load_peft;
use pleach_trainer::recipe::{Parent, Prepared};

pub(super) use self::screen::show_time;
use self::{
    base::{ComputeArgs, OpenBase},
    course::{Course, Ended},
    finish::Facts,
    recipe_args::{RecipeArgs, check_precision},
    rows::{print_report, read_rows, refuse_failures},
    screen::Screen,
    setup::{Setup, model_of},
    work::WorkFolder,
};
use super::serve::StopSignals;
use crate::{memory, models};

/// Exit status after an interrupt, as shells report it.
const EXIT_INTERRUPTED: i32 = 130;

/// A training is gone on with as it began.
const BESIDE_RESUME: [&str; 14] = [
    "data",
    "validation",
    "method",
    "adapter",
    "rank",
    "epochs",
    "batch_size",
    "learning_rate_multiplier",
    "beta",
    "seed",
    "precision",
    "suffix",
    "validate_every",
    "patience",
];

/// Train an adapter on a file of rows, without a server.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A known name, a GGUF file, or hf:OWNER/REPO[:FILE] [default: smollm2-135m-instruct]
    #[arg(long, env = "PLEACH_MODEL", value_name = "NAME|PATH")]
    model: Option<String>,
    /// Rows to learn from, JSONL
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    data: Option<PathBuf>,
    /// Rows to measure on: what is written is the adapter that was best on them
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// The folder to make: adapter, results.csv, loss.svg, report.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Part of the adapter's name in the report
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// Measures on the validation rows after so many steps [default: an epoch]
    #[arg(long, value_name = "STEPS", requires = "validation", value_parser = clap::value_parser!(u64).range(1..))]
    validate_every: Option<u64>,
    /// Ends after so many measures in a row without progress
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    patience: u32,
    /// Goes on with the training that was stopped in --out, with its settings
    #[arg(long, conflicts_with_all = BESIDE_RESUME)]
    resume: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Tells nothing but the new generation
    #[arg(long, short)]
    quiet: bool,
}

/// Trains until it is done or the first SIGINT or SIGTERM; then it can be gone on with. A second signal ends the process at
/// once, and what was saved last can be gone on with.
///
/// # Errors
/// Rows that cannot be learned from, a model that cannot be read, a folder that cannot be written.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut signals = StopSignals::catch().context("cannot wait for signals")?;
    // Before anything takes time.
    let compute = args.compute.read()?;
    let (work, setup) = begin(&args)?;
    check_precision(setup.precision, compute.isa)?;
    let model = models::resolve(&setup.model, std::io::stderr().is_terminal()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let of_thread = Arc::clone(&stop);
    let out = args.out.clone();
    let mut training = tokio::task::spawn_blocking(move || {
        let base = OpenBase::open(&model, compute)?;
        train(&args, &setup, &work, &base, compute, &of_thread)
    });
    let ended = tokio::select! {
        ended = &mut training => ended??,
        signal = signals.next() => {
            eprintln!("{signal}: stopping after this step; once more stops at once");
            stop.store(true, Ordering::Relaxed);
            tokio::select! {
                ended = &mut training => ended??,
                _ = signals.next() => std::process::exit(EXIT_INTERRUPTED),
            }
        }
    };
    if let Ended::Interrupted { step, total } = ended {
        let out = out.display();
        eprintln!(
            "stopped after step {step} of {total}; pleach train --resume --out {out} goes on"
        );
        std::process::exit(EXIT_INTERRUPTED);
    }
    Ok(())
}

/// Makes the folder, or finds what was begun in it.
fn begin(args: &Args) -> anyhow::Result<(WorkFolder, Setup)> {
    if args.resume {
        let work = WorkFolder::existing(&args.out)?;
        let setup = work.setup()?;
        if let Some(model) = &args.model {
            ensure!(
                model_of(Some(model)) == setup.model,
                "--model {model}: the training in {} is of {}",
                args.out.display(),
                setup.model
            );
        }
        setup.check_files()?;
        return Ok((work, setup));
    }
    let setup = Setup::of(args)?;
    Ok((WorkFolder::new(&args.out)?, setup))
}

fn train(
    args: &Args,
    setup: &Setup,
    work: &WorkFolder,
    base: &OpenBase,
    compute: pleach_trainer::recipe::Compute,
    stop: &AtomicBool,
) -> anyhow::Result<Ended> {
    let loaded = read_rows(&setup.data, setup.validation.as_ref(), base)?;
    if !args.quiet && !args.resume {
        print_report(&loaded.report);
    }
    refuse_failures(&loaded.report)?;
    let parent = setup.adapter.as_deref().map(|folder| load_parent(folder, base)).transpose()?;
    let (parent, parent_digest) = parent.unzip();
    let setup = Setup { base_sha256: base.sha256.clone(), parent: parent_digest, ..setup.clone() };
    let prepared = Prepared::new(setup.recipe(), &loaded, parent, base.spec())?;
    let report = loaded.report.clone();
    drop(loaded);
    let need = prepared.memory(base.spec(), compute)?;
    let free = memory::free_bytes();
    let mut screen = Screen::new(args.quiet, prepared.total_steps());
    screen.begin(&setup, base, &prepared, &need, compute);
    if let Some(free) = free.filter(|free| (need.peak_bytes() as u64) > *free) {
        screen.warn(&format!(
            "{} are free: less --activation-memory, a lower --rank or shorter rows need less",
            memory::show_bytes(free)
        ));
    }
    let learner = prepared.learner(&base.frozen, compute)?;
    // From here on there is something to go on with.
    work.keep(&setup)?;
    let mut course = Course::begin(&prepared, learner, base, work, setup.clone())?;
    let ended = course.run(&mut screen, stop)?;
    screen.end();
    if let Ended::Done = ended {
        let facts = Facts { setup: &setup, base, prepared: &prepared, report: &report, need };
        finish::write(&args.out, work, course.finish()?, &facts, args.quiet)?;
    }
    Ok(ended)
}

/// An adapter to go on from, with its generation.
pub(super) fn load_parent(folder: &Path, base: &OpenBase) -> anyhow::Result<(Parent, String)> {
    let at = || format!("--adapter {}", folder.display());
    let loaded = load_peft(folder, base.spec()).with_context(at)?;
    let digest = loaded.digest.to_string();
    Ok((Parent::new(Arc::new(loaded.weights)).with_context(at)?, digest))
}
