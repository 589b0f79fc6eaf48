//! The training that was planned, made: how far the plan was off.

use std::{ffi::OsString, fmt, process::Command};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use super::{Args, Plan};
use crate::{cli::train::show_time, memory::show_bytes};

/// What a training took, beside what was planned.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Comparison {
    seconds: f64,
    peak_bytes: u64,
    /// What was planned by what was measured, less 1.
    seconds_error: f64,
    /// The same of memory.
    peak_error: f64,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it took {} (planned {:+.0} %) and {} at its peak (planned {:+.0} %)",
            show_time(self.seconds),
            100.0 * self.seconds_error,
            show_bytes(self.peak_bytes),
            100.0 * self.peak_error,
        )
    }
}

/// Trains as a process of its own.
///
/// # Errors
/// When it fails.
pub(super) fn train(args: &Args, plan: &Plan) -> anyhow::Result<Comparison> {
    let folder = std::env::temp_dir().join(format!("pleach-plan-{}", std::process::id()));
    let program = std::env::current_exe().context("this program cannot be found again")?;
    let trained = Command::new(program).args(arguments(args)).arg("--out").arg(&folder).output();
    let report = std::fs::read(folder.join("report.json"));
    // It may not have been made.
    let _ = std::fs::remove_dir_all(&folder);
    let trained = trained.context("the training cannot be started")?;
    let told = String::from_utf8_lossy(&trained.stderr);
    ensure!(trained.status.success(), "the training failed: {}", told.trim());
    let report: Value = serde_json::from_slice(&report.context("the training left no report")?)?;
    let seconds = report["seconds"].as_f64().context("the report has no seconds")?;
    let peak_bytes = report["memory"]["peak_bytes"].as_u64();
    let peak_bytes = peak_bytes.context("the report has no peak of memory")?;
    Ok(Comparison {
        seconds,
        peak_bytes,
        seconds_error: plan.time.total_s / seconds - 1.0,
        peak_error: plan.memory.peak_bytes as f64 / peak_bytes as f64 - 1.0,
    })
}

/// The same settings for `pleach train`.
fn arguments(args: &Args) -> Vec<OsString> {
    let recipe = &args.recipe;
    let mut arguments: Vec<OsString> =
        ["train", "--quiet", "--model", &args.model].map(OsString::from).to_vec();
    let mut add = |flag: &str, value: Option<OsString>| {
        if let Some(value) = value {
            arguments.extend([flag.into(), value]);
        }
    };
    let number = |value: Option<u32>| value.map(|value| value.to_string().into());
    let real = |value: Option<f64>| value.map(|value| value.to_string().into());
    let [threads, isa, activation_memory] = args.compute.flags();
    let precision = pleach_engine::train::ProductPrecision::from(recipe.precision);
    let method = recipe.method.map(|name| pleach_trainer::recipe::Method::from(name).name());
    for (flag, value) in [
        ("--data", args.data.clone().map(Into::into)),
        ("--validation", args.validation.clone().map(Into::into)),
        ("--adapter", recipe.adapter.clone().map(Into::into)),
        ("--method", method.map(Into::into)),
        ("--rank", number(recipe.rank)),
        ("--epochs", number(recipe.epochs)),
        ("--batch-size", number(recipe.batch_size)),
        ("--learning-rate-multiplier", real(recipe.learning_rate_multiplier)),
        ("--beta", real(recipe.beta)),
        ("--seed", Some(recipe.seed.to_string().into())),
        ("--precision", Some(precision.name().into())),
        ("--threads", threads),
        ("--isa", isa),
        ("--activation-memory", activation_memory),
    ] {
        add(flag, value);
    }
    arguments
}
