//! What is asked of this program.

use std::{path::PathBuf, process::Command, time::Duration};

use pleach::bench::{Endpoint, Length, Limit, Load, Mix, PromptForm, Settings};
use pleach_engine::spec::ModelSpec;
use serde::Serialize;

use crate::server::{BASE, clean};

const REQUEST_TIME_MAX: Duration = Duration::from_mins(10);
/// The reference adapters.
const PAIR: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adapters/pirate"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adapters/extract"),
];

/// What is measured; each has a file of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Throughput with many registered adapters against five, equal ranks.
    Many,
    /// The same with ranks from 4 to 64.
    ManyMixed,
    /// TTFT over four times more adapters than there are places on the device, against all resident.
    Pool,
    /// The same with no room in host memory either: misses are read from disk.
    PoolCold,
    /// ITL of others while adapters are loaded and unloaded without pause.
    Churn,
    /// Aliases moved under load: how soon it shows, and whether any token is not of the generation that is named.
    Swap,
    /// Fairness over tenants when one asks a hundred times as much.
    Tenants,
    /// From the start of a process with a store of many adapters to its first answers.
    Restart,
    /// Processor time of bringing one adapter from its files to the form of the CPU's kernels.
    Load,
}

/// Reach with many adapters: real server, real model, in turns against a reference.
#[derive(Debug, clap::Parser)]
#[command(bin_name = "cargo bench -p pleach --bench adapters --")]
pub(crate) struct Args {
    /// What to measure.
    #[arg(value_enum)]
    pub(crate) scenarios: Vec<Scenario>,
    /// Model: a known name or a GGUF file.
    #[arg(long, default_value = pleach::models::DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Registered adapters (many, restart), or different ones that requests ask for (pool) [default: 1000, or 64].
    #[arg(long)]
    pub(crate) adapters: Option<usize>,
    /// Rank of adapters.
    #[arg(long, default_value_t = 16)]
    pub(crate) rank: usize,
    /// Clients, each sending its next request when it has its answer [default: 8; many: 5, then 8; churn, swap: 4].
    #[arg(long)]
    pub(crate) clients: Option<usize>,
    /// Prompt tokens.
    #[arg(long, default_value_t = 128)]
    pub(crate) prompt_tokens: u32,
    /// Output tokens [default: 64; churn: 512].
    #[arg(long)]
    pub(crate) output_tokens: Option<u32>,
    /// Requests of one run of a load [default: 8 for each client; pool: 25].
    #[arg(long)]
    pub(crate) requests: Option<u64>,
    /// Pairs of runs that count.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// A pair of runs does not count when others used more than this share of the machine during one of them.
    #[arg(long, default_value_t = 0.05)]
    pub(crate) busy: f64,
    /// Loads at a time (churn).
    #[arg(long, default_value_t = 1)]
    pub(crate) loaders: usize,
    /// Times that the alias is moved (swap).
    #[arg(long, default_value_t = 10_000)]
    pub(crate) swaps: usize,
    /// PEFT folders whose answers differ from the first token on (swap).
    #[arg(long, num_args = 2, value_names = ["DIR", "DIR"], default_values = PAIR)]
    pub(crate) pair: Vec<PathBuf>,
    /// The report as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The program to measure [default: the one of this build].
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_pleach"))]
    pub(crate) pleach: PathBuf,
    /// Where adapters and state are written while it runs: up to 20 GB for a thousand of rank 16.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub(crate) scratch: PathBuf,
    /// Further flags of every server, such as `--device cuda:0`.
    #[arg(last = true)]
    pub(crate) serve: Vec<String>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

/// [`Args`] with the model at hand.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) args: Args,
    pub(crate) model_path: PathBuf,
    pub(crate) spec: ModelSpec,
}

/// A load without its adapters.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LoadShape {
    pub(crate) clients: usize,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) requests: u64,
    /// Requests ask for adapters in turn, so that those in flight differ as much as they can; else at random, evenly.
    pub(crate) in_turn: bool,
}

impl Options {
    pub(crate) fn program(&self) -> Command {
        clean(Command::new(&self.args.pleach))
    }

    /// What was asked for, else the scenario's own.
    pub(crate) fn load(&self, clients: usize, output_tokens: u32, per_client: u64) -> LoadShape {
        let clients = self.args.clients.unwrap_or(clients).max(1);
        LoadShape {
            clients,
            prompt_tokens: self.args.prompt_tokens,
            output_tokens: self.args.output_tokens.unwrap_or(output_tokens),
            requests: self.args.requests.unwrap_or(clients as u64 * per_client),
            in_turn: false,
        }
    }
}

impl LoadShape {
    /// One run of it, spread over `adapters`: prompts of random token ids, no two alike under one seed.
    pub(crate) fn settings(self, url: &str, adapters: &[String], seed: u64) -> Settings {
        let length = |tokens| Length { min: tokens, max: tokens };
        Settings {
            url: url.to_owned(),
            model: BASE.to_owned(),
            adapters: adapters.to_vec(),
            mix: if self.in_turn { Mix::Distinct } else { Mix::Uniform },
            endpoint: Endpoint::Completions,
            prompt_form: PromptForm::Ids,
            prompt_tokens: length(self.prompt_tokens),
            shared_prefix: 0,
            output_tokens: length(self.output_tokens),
            ignore_eos: true,
            temperature: Some(0.0),
            load: Load::Concurrency(self.clients),
            limit: Limit::Requests(self.requests),
            warmup: 0,
            seed,
            timeout: REQUEST_TIME_MAX,
            api_key: None,
            samples: true,
        }
    }
}
