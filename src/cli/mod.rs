//! The command line: one file per subcommand, each with its `Args` and `run`.
#![expect(clippy::doc_markdown, reason = "comments on commands and flags are the help text")]
#![allow(rustdoc::broken_intra_doc_links, reason = "brackets in help text are no links")]

pub mod bench;
pub mod chat;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod gpu_check;
pub mod merge;
pub mod plan;
pub mod pull;
pub mod serve;
pub mod tenant;
pub mod train;
pub mod verify;

use clap::{Parser, Subcommand};

/// Serve one quantized base model with another LoRA adapter for every request.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log, as in `info` or `pleach=debug`.
    #[arg(long, global = true, env = "PLEACH_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model and its adapters over the OpenAI API.
    Serve(Box<serve::Args>),
    /// Fetch a model and print its path.
    Pull(pull::Args),
    /// Talk to a running server in the terminal.
    Chat(chat::Args),
    /// Load a server and measure P50, P95 and P99 of its latencies.
    Bench(bench::Args),
    /// Say what is here: processor, memory, GPUs, models, server.
    Doctor(doctor::Args),
    /// Train an adapter on a file of rows, without a server.
    Train(Box<train::Args>),
    /// Say whether a training fits here, and how long it takes.
    Plan(Box<plan::Args>),
    /// Measure base and adapters on a file of rows.
    Eval(eval::Args),
    /// Merge PEFT adapters into a new one.
    Merge(merge::Args),
    /// Write a model and its adapters for ONNX Runtime.
    Export(export::Args),
    /// Prove that an export computes what pleach computes, and time both.
    Verify(verify::Args),
    /// Make, change and list tenants and their API keys.
    Tenant(tenant::Args),
    /// Check a GPU: every kernel against its definition, a model against the CPU.
    GpuCheck(gpu_check::Args),
}

/// An error and its causes in one line. A cause that the error before it already tells is not told again: libraries
/// write it into their own text as often as not.
pub fn describe(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// Runs a subcommand to its end.
///
/// # Errors
/// What kept it from its end.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Pull(args) => pull::run(args).await,
        Command::Chat(args) => chat::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Train(args) => train::run(*args).await,
        Command::Plan(args) => plan::run(*args).await,
        Command::Eval(args) => eval::run(args).await,
        Command::Merge(args) => merge::run(args).await,
        Command::Export(args) => export::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Tenant(args) => tenant::run(args).await,
        Command::GpuCheck(args) => gpu_check::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no folder: {0}")]
    struct Folder(#[source] std::io::Error);

    #[test]
    fn a_cause_is_told_once() {
        let folder = Folder(std::io::Error::other("not there"));
        let error = anyhow::Error::new(folder).context("cannot load");
        assert_eq!(describe(&error), "cannot load: no folder: not there");
        assert_eq!(describe(&anyhow::anyhow!("inner").context("outer")), "outer: inner");
    }
}
