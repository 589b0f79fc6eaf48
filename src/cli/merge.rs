//! `pleach merge`: a new adapter of several, off-line.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]
#![expect(clippy::print_stderr, reason = "warnings go to the person who waits")]

mod loss_table;

use std::{
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use pleach_adapters::{
    GenerationDigest, LoadedAdapter,
    compose::{COMPOSED_SCALE_MAX, MergeError, MergeMethod, Merged, Part, SumError, merge},
    load_peft,
    peft::{PeftFiles, Shapes, save_peft},
};
use pleach_engine::spec::ModelSpec;

use self::loss_table::LossTable;
use crate::memory::show_bytes;

/// Largest tensor file: there is no model to compare it with.
const TENSOR_FILE_BYTES_MAX: u64 = 1 << 36;

/// Merge PEFT adapters into a new one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PEFT folder and its weight, 1 if none is given; may be given again.
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]", required = true)]
    inputs: Vec<Input>,
    /// How, under the names of PEFT's add_weighted_adapter.
    #[arg(long, value_enum, default_value_t)]
    method: Method,
    /// Rank that svd leaves [default: the largest rank of the adapters].
    #[arg(long)]
    rank: Option<usize>,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Tell nothing but the new generation.
    #[arg(long, short)]
    quiet: bool,
}

/// How adapters become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    /// Exact: ranks add up.
    #[default]
    Cat,
    /// Sums of the factors: of equal ranks, and rough.
    Linear,
    /// The nearest of a lower rank.
    Svd,
}

/// One adapter.
#[derive(Clone, Debug, PartialEq)]
struct Input {
    dir: PathBuf,
    weight: f32,
}

impl FromStr for Input {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((dir, weight)) = text.rsplit_once('=') else {
            return Ok(Self { dir: text.into(), weight: 1.0 });
        };
        let parsed: f32 =
            weight.parse().map_err(|_| format!("the weight {weight:?} is not a number"))?;
        if !(-COMPOSED_SCALE_MAX..=COMPOSED_SCALE_MAX).contains(&parsed) {
            return Err(format!(
                "the weight {weight} is outside -{COMPOSED_SCALE_MAX}..={COMPOSED_SCALE_MAX}"
            ));
        }
        Ok(Self { dir: dir.into(), weight: parsed })
    }
}

/// Merges, writes the folder and tells its generation.
///
/// # Errors
/// An adapter that cannot be read or merged, or a folder that cannot be written.
pub async fn run(args: Args) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || run_now(&args)).await?
}

fn run_now(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rank.is_none() || args.method == Method::Svd, "--rank is for --method svd only");
    refuse_used(&args.out)?;
    let (adapters, spec) = load(&args.inputs)?;
    if !args.quiet {
        warn_of_other_bases(&args.inputs, &adapters);
    }
    let merged = merge_with_bar(args, &adapters)?;
    let digest = write(&args.out, &merged, &spec, &adapters)?;
    if args.quiet {
        println!("{digest}");
        return Ok(());
    }
    if !merged.losses.is_empty() {
        println!("{}", LossTable(&merged.losses));
    }
    let ranks = merged.weights.sites.iter().map(|site| site.rank);
    println!(
        "{}: {} adapters, {} sites, rank up to {}, {}",
        args.out.display(),
        adapters.len(),
        merged.weights.sites.len(),
        ranks.max().unwrap_or_default(),
        show_bytes((merged.weights.n_values() * size_of::<f32>()) as u64),
    );
    println!("generation {digest}");
    Ok(())
}

/// Nothing that is there is written over.
fn refuse_used(out: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("--out {}: the folder is not empty", out.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("--out {}", out.display())),
    }
}

/// All adapters, checked against the shapes that the first ones tell.
fn load(inputs: &[Input]) -> anyhow::Result<(Vec<LoadedAdapter>, ModelSpec)> {
    let mut shapes = Shapes::default();
    let mut files = Vec::new();
    for Input { dir, .. } in inputs {
        let of_adapter = || dir.display().to_string();
        let read = PeftFiles::read(dir, TENSOR_FILE_BYTES_MAX).with_context(of_adapter)?;
        shapes.learn(&read).with_context(of_adapter)?;
        files.push(read);
    }
    let spec = shapes.spec();
    let mut adapters = Vec::new();
    for (files, Input { dir, .. }) in files.into_iter().zip(inputs) {
        adapters.push(files.load(&spec).with_context(|| dir.display().to_string())?);
    }
    Ok((adapters, spec))
}

/// Shapes alone do not tell one base from another.
fn warn_of_other_bases(inputs: &[Input], adapters: &[LoadedAdapter]) {
    let mut named = adapters
        .iter()
        .zip(inputs)
        .filter_map(|(adapter, input)| Some((adapter.base_model_name.as_ref()?, &input.dir)));
    let Some((first, first_dir)) = named.next() else { return };
    for (other, dir) in named.filter(|(name, _)| *name != first) {
        eprintln!(
            "warning: {} was trained on {other}, {} on {first}: a merged adapter is right on one base only",
            dir.display(),
            first_dir.display()
        );
    }
}

fn merge_with_bar(args: &Args, adapters: &[LoadedAdapter]) -> anyhow::Result<Merged> {
    let parts: Vec<_> = adapters
        .iter()
        .zip(&args.inputs)
        .map(|(adapter, input)| Part { weights: &adapter.weights, scale: input.weight })
        .collect();
    let method = match args.method {
        Method::Cat => MergeMethod::Cat,
        Method::Linear => MergeMethod::Linear,
        Method::Svd => MergeMethod::Svd { rank: args.rank },
    };
    // Without a terminal it draws nothing.
    let bar = if args.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("merging [{bar:30}] {pos}/{len} sites {eta}")?;
    bar.set_style(style.progress_chars("=> "));
    let merged = merge(&parts, method, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    merged.map_err(|error| match &error {
        MergeError::Sum(SumError::Kind { part, .. }) => {
            anyhow!("{}: {error}", args.inputs[*part].dir.display())
        }
        MergeError::Sum(SumError::Rank { .. }) => {
            anyhow!("{error}; --method svd makes a lower rank of them")
        }
        MergeError::Rank { .. }
        | MergeError::RanksDiffer { .. }
        | MergeError::Nothing
        | MergeError::BiasWithEmbedding => error.into(),
    })
}

/// Writes the folder and reads it back: what is told is the generation of what lies there.
fn write(
    out: &Path,
    merged: &Merged,
    spec: &ModelSpec,
    adapters: &[LoadedAdapter],
) -> anyhow::Result<GenerationDigest> {
    let base = adapters.iter().find_map(|adapter| adapter.base_model_name.as_deref());
    let to_out = || out.display().to_string();
    std::fs::create_dir_all(out).with_context(to_out)?;
    save_peft(out, &merged.weights, spec, base).with_context(to_out)?;
    let written = load_peft(out, spec).with_context(to_out)?;
    ensure!(
        written.digest == GenerationDigest::of(&merged.weights),
        "{}: the folder does not hold what was written; is the disk full or shared?",
        out.display()
    );
    Ok(written.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_and_their_weights() {
        let parse = |text: &str| text.parse::<Input>();
        let input = |dir: &str, weight| Ok(Input { dir: dir.into(), weight });
        assert_eq!(parse("a/b"), input("a/b", 1.0));
        assert_eq!(parse("a=0.25"), input("a", 0.25));
        assert_eq!(parse("a=-2"), input("a", -2.0));
        assert_eq!(parse("run=3/lr=1e-4/final=1"), input("run=3/lr=1e-4/final", 1.0));
        assert_eq!(parse("a=b"), Err("the weight \"b\" is not a number".to_owned()));
        for bad in ["a=nan", "a=inf", "a=-101"] {
            let error = parse(bad).unwrap_err();
            assert!(error.ends_with("is outside -100..=100"), "{error}");
        }
    }
}
