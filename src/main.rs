//! The `pleach` program: reads arguments and starts.
#![expect(clippy::print_stderr, reason = "errors go to the person at the terminal")]

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use pleach::cli::{self, Cli};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli { command, log } = Cli::parse();
    match start(command, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", cli::describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn start(command: cli::Command, log: &str) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(log)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(cli::run(command));
    // Work that is stuck on a blocking thread, such as a read of standard input, must not keep the process.
    runtime.shutdown_background();
    result
}
