//! `pleach bench`: a load generator for any server that speaks the `OpenAI` API.
#![expect(clippy::print_stdout, reason = "the report goes to standard output")]

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};

use super::chat::server::{list_models, trim_url};
use crate::bench::{self, Endpoint, Length, Limit, Load, Mix, PromptForm, Settings};

/// Requests for each client when neither a number nor a duration is given.
const REQUESTS_PER_CLIENT: u64 = 10;
/// Requests when arrivals have a rate and neither a number nor a duration is given.
const REQUESTS_AT_RATE: u64 = 100;

/// Measure the latency and throughput of a server.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server, with or without /v1 at the end.
    #[arg(long, env = "PLEACH_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Name of the base model; by default the first that the server lists.
    #[arg(long)]
    model: Option<String>,
    /// What is asked.
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    endpoint: Endpoint,
    /// Clients, each sending its next request when it has its answer.
    #[arg(long, default_value_t = 8, conflicts_with = "rate")]
    concurrency: usize,
    /// Arrivals per second, whether earlier ones are answered or not; "inf" for all at once.
    #[arg(long)]
    rate: Option<f64>,
    /// Evenness of arrivals: 1 is Poisson, less comes in bursts.
    #[arg(long, default_value_t = 1.0, requires = "rate")]
    burstiness: f64,
    /// Number of requests.
    #[arg(long, conflicts_with = "duration")]
    requests: Option<u64>,
    /// Send for so many seconds, then wait for the last answers.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Length of prompts: N, or A..B for uniform.
    #[arg(long, default_value = "128", value_name = "N|A..B")]
    prompt_tokens: Length,
    /// Length of outputs: N, or A..B for uniform.
    #[arg(long, default_value = "64", value_name = "N|A..B")]
    output_tokens: Length,
    /// So many tokens at the beginning are the same in all prompts.
    #[arg(long, default_value_t = 0, value_name = "N")]
    shared_prefix: u32,
    /// Prompts of words or of token ids; by default words for chat, ids for completions.
    #[arg(long, value_enum)]
    prompt_form: Option<PromptForm>,
    /// Adapters to ask for, separated by commas; "all" for every one that the server lists.
    #[arg(long, value_delimiter = ',', value_name = "A,B,…|all")]
    adapters: Vec<String>,
    /// How adapters are mixed: uniform, zipf[:S], distinct (in turn), base (none of them).
    #[arg(long, default_value = "uniform")]
    mix: Mix,
    /// Sent as a bearer token.
    #[arg(long, env = "PLEACH_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// What prompts, lengths and arrivals are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Requests sent first, which count for nothing.
    #[arg(long, default_value_t = 0, value_name = "N")]
    warmup: u64,
    /// Ask for exactly the output length by `ignore_eos` and `min_tokens`; turn it off for servers that refuse these.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    ignore_eos: bool,
    /// Sampling temperature; by default the server's.
    #[arg(long)]
    temperature: Option<f64>,
    /// Seconds that one request may take.
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS")]
    timeout: f64,
    /// Write the report here as JSON; "-" for standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put each request into the JSON.
    #[arg(long, requires = "json")]
    samples: bool,
}

/// Runs the load and prints the report.
///
/// # Errors
/// Bad settings, no server, or not a single request that succeeded.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let json = args.json.clone();
    let settings = settings(args).await?;
    // A runtime with one thread: the server on the same machine needs the cores more than we do, and times are taken
    // on the thread that the bytes arrive on.
    let report = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(bench::run(&settings, true))
    });
    let report = report.await.context("the load generator panicked")??;
    match &json {
        Some(path) if path.as_os_str() == "-" => {
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Some(path) => {
            print!("{report}");
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => print!("{report}"),
    }
    let is_useless = report.overall.n_ok == 0 && !report.interrupted;
    ensure!(!is_useless, "not a single request succeeded");
    Ok(())
}

/// From what was typed to what the run needs.
async fn settings(args: Args) -> anyhow::Result<Settings> {
    let url = trim_url(&args.url);
    ensure!(args.concurrency > 0, "--concurrency 0 would send nothing");
    ensure!(args.rate.is_none_or(|rate| rate > 0.0), "--rate must be above 0");
    ensure!(args.burstiness > 0.0 && args.burstiness.is_finite(), "--burstiness must be above 0");
    let prompt_form = match (args.prompt_form, args.endpoint) {
        (Some(PromptForm::Ids), Endpoint::Chat) => {
            bail!("--prompt-form ids needs --endpoint completions")
        }
        (Some(form), _) => form,
        (None, Endpoint::Chat) => PromptForm::Words,
        (None, Endpoint::Completions) => PromptForm::Ids,
    };
    let load = match args.rate {
        Some(rate) => Load::Rate { rate, burstiness: args.burstiness },
        None => Load::Concurrency(args.concurrency),
    };
    let limit = match (args.requests, args.duration) {
        (Some(count), _) => Limit::Requests(count),
        (None, Some(seconds)) => Limit::Duration(seconds_of("--duration", seconds)?),
        (None, None) if args.rate.is_some() => Limit::Requests(REQUESTS_AT_RATE),
        (None, None) => Limit::Requests(args.concurrency as u64 * REQUESTS_PER_CLIENT),
    };
    ensure!(
        !(args.rate == Some(f64::INFINITY) && matches!(limit, Limit::Duration(_))),
        "--rate inf sends all requests at once: give --requests instead of --duration"
    );
    let timeout = seconds_of("--timeout", args.timeout)?;
    let wants_all = args.adapters.iter().any(|name| name == "all");
    let mut adapters: Vec<String> =
        args.adapters.into_iter().filter(|name| !name.is_empty() && name != "all").collect();
    let model = match args.model {
        Some(model) if !wants_all => model,
        model => {
            let listed = list_models(&url, args.api_key.as_deref()).await?;
            if wants_all {
                adapters = listed
                    .iter()
                    .filter(|card| card.parent.is_some())
                    .map(|card| card.id.clone())
                    .collect();
                ensure!(!adapters.is_empty(), "{url} lists no adapters");
            }
            let first = listed.into_iter().find(|card| card.parent.is_none()).map(|card| card.id);
            model.or(first).with_context(|| format!("{url} lists no model: give --model"))?
        }
    };
    Ok(Settings {
        url,
        model,
        adapters,
        mix: args.mix,
        endpoint: args.endpoint,
        prompt_form,
        prompt_tokens: args.prompt_tokens,
        shared_prefix: args.shared_prefix,
        output_tokens: args.output_tokens,
        ignore_eos: args.ignore_eos,
        temperature: args.temperature,
        load,
        limit,
        warmup: args.warmup,
        seed: args.seed,
        timeout,
        api_key: args.api_key,
        samples: args.samples,
    })
}

fn seconds_of(flag: &str, seconds: f64) -> anyhow::Result<Duration> {
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero());
    duration.with_context(|| format!("{flag} {seconds}: not a number of seconds above 0"))
}
