//! `pleach verify onnx`: an exported folder beside our own engine.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use pleach_engine::{gguf::GgufFile, model::read_spec};
use pleach_export::{
    Manifest, Precision,
    verify::{Report, Runtime, VerifyOptions, verify_onnx},
};

use super::export::{AdapterFolder, load_adapters};
use crate::{memory::show_bytes, models};

/// Prove that an export computes what pleach computes, and time both.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    target: Target,
}

/// For which runtime it was made.
#[derive(Debug, clap::Subcommand)]
enum Target {
    /// A folder that `pleach export onnx` made.
    Onnx(OnnxArgs),
}

/// A folder that `pleach export onnx` made.
#[derive(Debug, clap::Args)]
struct OnnxArgs {
    /// The folder
    folder: PathBuf,
    /// The model that it was made of [default: where it was then]
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// A PEFT folder and its name in the export, where it is no longer where it was then; may be given again
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    adapters: Vec<AdapterFolder>,
    /// ONNX Runtime's shared library; tools/fetch-onnxruntime gets one
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Threads of ONNX Runtime and of pleach [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Let ONNX Runtime's threads spin while they wait
    #[arg(long)]
    spin: bool,
    /// Decode steps to time; 0 times nothing
    #[arg(long, default_value_t = 200)]
    steps: u32,
    /// Tokens of the prompt whose prefill is timed
    #[arg(long, default_value_t = 128)]
    prompt_tokens: u32,
    /// Sequences of a batch, timed beside a single one; 1 times no batch
    #[arg(long, default_value_t = 4)]
    batch: u32,
    /// Prompts to read, of 14 [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    prompts: Option<u16>,
    /// Also exports each adapter merged, into a temporary folder, and compares the two
    #[arg(long)]
    merged: bool,
    /// Writes the report as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// Verifies, tells what was found, and fails if a check did.
///
/// # Errors
/// A folder that cannot be verified, or one that computes something else.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Target::Onnx(args) = args.target;
    let manifest = Manifest::read(&args.folder)?;
    let model = match &args.model {
        Some(model) => models::resolve(model, std::io::stderr().is_terminal()).await?,
        None => PathBuf::from(&manifest.base.path),
    };
    tokio::task::spawn_blocking(move || run_now(&args, &manifest, &model)).await?
}

fn run_now(args: &OnnxArgs, manifest: &Manifest, model: &Path) -> anyhow::Result<()> {
    // Before anything takes time.
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let file = GgufFile::open(model).with_context(|| {
        format!("the model {} of the export; --model gives it", manifest.base.name)
    })?;
    let adapters = load_adapters(&folders(args, manifest), &read_spec(&file)?)?;
    let default = VerifyOptions::default();
    let options = VerifyOptions {
        threads: args.threads.map_or(default.threads, usize::from),
        spinning: args.spin,
        steps: args.steps as usize,
        prompt_tokens: args.prompt_tokens as usize,
        batch: args.batch as usize,
        prompts: args.prompts.map_or(default.prompts, usize::from),
        merged: args.merged,
    };
    let report = verify_onnx(&args.folder, &file, &adapters, &runtime, &options)?;
    print(&report);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    if !report.passed {
        let failed = report.checks.iter().filter(|check| !check.passed).count();
        bail!("{failed} of {} checks failed", report.checks.len());
    }
    Ok(())
}

/// Those that are given, and for the others the folders that they were in.
fn folders(args: &OnnxArgs, manifest: &Manifest) -> Vec<AdapterFolder> {
    let is_given = |name: &String| args.adapters.iter().any(|folder| folder.name == *name);
    let others = manifest
        .adapters
        .iter()
        .filter(|(name, adapter)| !is_given(name) && Path::new(&adapter.path).is_dir())
        .map(|(name, adapter)| AdapterFolder {
            name: name.clone(),
            dir: PathBuf::from(&adapter.path),
        });
    args.adapters.iter().cloned().chain(others).collect()
}

fn print(report: &Report) {
    let is_rounded = report.precision != Precision::F32 && report.accuracy_level > 0;
    let exact = &report.f32_activations;
    println!(
        "{} as {} {}, accuracy level {}{}; pleach {} ({}) beside ONNX Runtime {}, {} threads, spinning {}",
        report.base,
        report.form,
        report.precision,
        report.accuracy_level,
        if exact.is_empty() || !is_rounded {
            String::new()
        } else {
            format!(" (0: {})", exact.join(", "))
        },
        report.pleach,
        report.kernels,
        report.onnxruntime,
        report.threads,
        if report.spinning { "on" } else { "off" },
    );
    println!("\nagainst pleach with f32 activations:");
    println!(
        "     {:<12} {:<26} {:>5} {:>10} {:>9} {:>7} {:>8}  allowed",
        "adapter", "read as", "rows", "logit max", "KL", "top-1", "clear"
    );
    for check in &report.checks {
        println!(
            "{} {:<12} {:<26} {:>5} {:>10.1e} {:>9.1e} {:>5.1} % {:>6.1} %  {}",
            if check.passed { "pass" } else { "FAIL" },
            check.adapter.as_deref().unwrap_or("-"),
            check.what,
            check.rows,
            check.logit_max,
            check.kl,
            100.0 * check.top1,
            100.0 * check.clear_top1,
            check.limit,
        );
    }
    if !report.latencies.is_empty() {
        println!("\nmilliseconds:");
        println!(
            "{:<20} {:<12} {:<28} {:>5} {:>9} {:>9} {:>9}",
            "runtime", "adapter", "step", "n", "P50", "P95", "P99"
        );
    }
    for latency in &report.latencies {
        println!(
            "{:<20} {:<12} {:<28} {:>5} {:>9.2} {:>9.2} {:>9.2}",
            latency.runtime,
            latency.adapter.as_deref().unwrap_or("-"),
            latency.what,
            latency.n,
            latency.p50_ms,
            latency.p95_ms,
            latency.p99_ms,
        );
    }
    for memory in &report.memory {
        println!(
            "{:<20} {} resident when opened, {} at most",
            memory.runtime,
            show_bytes(memory.opened_bytes),
            show_bytes(memory.peak_bytes),
        );
    }
}
