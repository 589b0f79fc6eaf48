//! Reach with many adapters: real server, real model, random adapters, each scenario against its reference or its bound.
//!
//! `cargo bench -p pleach --bench adapters -- SCENARIO… [--rounds N] [--json FILE] [-- SERVE FLAGS]`, `--help` for all.
//!
//! Comparisons run in turns on one machine. A pair of runs during which other programs used more than `--busy` of it does
//! not count. Ratios are medians over pairs, with least and most beside them; percentiles are exact. The load generator
//! is `pleach bench`'s, in this process, on the same cores as the server. Fails when a bound is missed.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool: results on standard output, progress beside them"
)]

mod churn;
mod cpu;
mod load;
mod many;
mod options;
mod outcome;
mod peft;
mod pool;
mod restart;
mod server;
mod swap;
mod tenants;
mod turns;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser as _, ValueEnum as _};
use pleach_engine::{gguf::GgufFile, model::read_spec};
use serde_json::{Map, Value, json};

use crate::{
    cpu::Machine,
    options::{Args, Options, Scenario},
    outcome::Outcome,
};

// One thread: the server needs the cores more, and times are taken on the thread that the bytes arrive on.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.scenarios.is_empty() {
        println!("no scenario given, nothing measured (--help)");
        return ExitCode::SUCCESS;
    }
    match run(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", pleach::cli::describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether every bound is met.
async fn run(args: Args) -> anyhow::Result<bool> {
    let model_path = pleach::models::resolve(&args.model, false).await?;
    let spec = read_spec(&GgufFile::open(&model_path)?)?;
    let options = Options { args, model_path, spec };
    let machine = Machine::look();
    println!(
        "{}, {} cores, {} kernels, {}; {}; serve flags: {:?}\n",
        machine.cpu,
        machine.cores,
        machine.kernels,
        machine.os,
        options.spec.name,
        options.args.serve
    );
    let mut scenarios = Map::new();
    let mut is_met = true;
    for &scenario in &options.args.scenarios {
        let name = scenario
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned());
        eprintln!("{name} …");
        let outcome = measure(&options, scenario).await.with_context(|| name.clone())?;
        println!("{}", outcome.table);
        is_met &= outcome.is_met;
        scenarios.insert(name, outcome.json);
    }
    if let Some(path) = &options.args.json {
        let report = report(&options, &machine, &scenarios);
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(is_met)
}

async fn measure(options: &Options, scenario: Scenario) -> anyhow::Result<Outcome> {
    match scenario {
        Scenario::Many => many::measure(options, false).await,
        Scenario::ManyMixed => many::measure(options, true).await,
        Scenario::Pool => pool::measure(options, false).await,
        Scenario::PoolCold => pool::measure(options, true).await,
        Scenario::Churn => churn::measure(options).await,
        Scenario::Swap => swap::measure(options).await,
        Scenario::Tenants => tenants::measure(options).await,
        Scenario::Restart => restart::measure(options).await,
        Scenario::Load => load::measure(options),
    }
}

fn report(options: &Options, machine: &Machine, scenarios: &Map<String, Value>) -> Value {
    json!({
        "machine": machine,
        "model": options.spec.name,
        "serve_flags": options.args.serve,
        "pleach_version": env!("CARGO_PKG_VERSION"),
        "busy": options.args.busy,
        "scenarios": scenarios,
    })
}
