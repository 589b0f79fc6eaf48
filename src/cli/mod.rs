//! The command line: one file per subcommand, each with its `Args` and `run`.
#![expect(clippy::doc_markdown, reason = "comments on commands and flags are the help text")]

pub mod bench;
pub mod chat;
pub mod doctor;
pub mod pull;
pub mod serve;

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
    }
}
