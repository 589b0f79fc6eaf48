//! What the program needs, made of what the user typed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use pleach_engine::{cpu::Isa, engine::EngineConfig, model::Activations, train::ProductPrecision};

use super::{adapter_args, args::Args};
use crate::{
    adapter_service::AdapterSettings,
    http::state::HttpLimits,
    memory::parse_bytes,
    models::{self, DEFAULT_MODEL},
    serving::{DeviceChoice, LoadSettings, StorePlace},
    tenants::OperatorKey,
    training::TrainingLimits,
};

/// Below `PLEACH_HOME`.
const DATABASE_FILE: &str = "pleach.db";
/// Below `PLEACH_HOME`.
const BLOBS_FOLDER: &str = "blobs";
const PORT_DEFAULT: u16 = 8000;
const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// A day; more is a typing error.
const GRACE_SECONDS_MAX: f64 = 86_400.0;
/// No step is as short as the one, and nobody reads as slowly as the other.
const ITL_BUDGET_MS_MIN: f64 = 0.1;
const ITL_BUDGET_MS_MAX: f64 = 60_000.0;
/// More threads than any machine that we know has cores.
const THREADS_MAX: usize = 1024;
const MAX_BATCH_MAX: usize = 4096;
/// Of a GPU, whose steps are bound by reading weights up to many rows.
const GPU_MAX_BATCH: usize = 128;
/// Prefill of so many rows takes some tens of milliseconds of an 8B model: what a step may add to the ITL of others.
const GPU_MAX_STEP_ROWS: usize = 1024;
const MAX_STEP_ROWS_MAX: usize = 1 << 16;
const BODY_BYTES_MAX: u64 = 1 << 30;

/// Everything that `pleach serve` was asked to do, checked.
#[derive(Debug)]
pub struct Settings {
    /// Name or path of the model; fetching it is the first thing to do.
    pub model: String,
    /// Where to listen.
    pub address: SocketAddr,
    /// How long running requests have to finish.
    pub grace: Duration,
    /// Where everything that survives the process is.
    pub store: StorePlace,
    /// Whether to serve everyone when there is no key.
    insecure: bool,
    names: Vec<String>,
    adapters: Vec<(String, PathBuf)>,
    at_work: AdapterSettings,
    adapter_bytes: Option<u64>,
    device: DeviceChoice,
    isa: Isa,
    threads: usize,
    activations: Activations,
    kv_bytes: Option<u64>,
    gpu_memory_share: Option<f64>,
    engine: EngineConfig,
    limits: HttpLimits,
    operator_key: Option<OperatorKey>,
    capture: bool,
    training: TrainingLimits,
    training_precision: ProductPrecision,
}

impl Settings {
    /// Checks what was typed.
    ///
    /// # Errors
    /// The first flag whose value cannot be used.
    pub fn from_args(args: &Args) -> anyhow::Result<Self> {
        let device: DeviceChoice = args.device.as_deref().unwrap_or("auto").parse()?;
        let activations: Activations =
            args.activations.as_deref().unwrap_or("int8").parse().context("--activations")?;
        let host = args.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        if let Some(key) = &args.api_key {
            ensure!(!key.trim().is_empty(), "--api-key is empty");
        }
        let model = args.model.clone().unwrap_or_else(|| DEFAULT_MODEL.to_owned());
        let names = if args.served_model_name.is_empty() {
            vec![name_of_model(&model)]
        } else {
            args.served_model_name.clone()
        };
        let isa = read_isa(args.isa.as_deref())?;
        Ok(Self {
            address: SocketAddr::new(host, args.port.unwrap_or(PORT_DEFAULT)),
            grace: read_grace(args.shutdown_grace)?,
            store: read_store_place(args.database.as_deref(), args.blobs.as_deref())?,
            insecure: args.insecure == Some(true),
            names,
            adapters: adapter_args::read_adapters(args)?,
            at_work: adapter_args::read_settings(args)?,
            adapter_bytes: args
                .adapter_memory
                .as_deref()
                .map(|text| read_bytes("--adapter-memory", text))
                .transpose()?,
            device,
            isa,
            threads: read_threads(args.threads)?,
            activations,
            kv_bytes: args
                .kv_memory
                .as_deref()
                .map(|text| read_bytes("--kv-memory", text))
                .transpose()?,
            gpu_memory_share: args.gpu_memory_utilization.map(read_share).transpose()?,
            engine: read_engine(args, device.gpu(activations).is_some())?,
            limits: read_limits(args)?,
            capture: args.capture == Some(true),
            training: read_training(args)?,
            training_precision: read_precision(args, isa)?,
            operator_key: args.api_key.as_deref().map(|key| OperatorKey::new(key.trim())),
            model,
        })
    }

    /// Whether the server is open to everyone who reaches it. `has_keys`: there are keys in the store.
    ///
    /// # Errors
    /// When it would be, beyond this machine, and nobody said that it may.
    pub fn check_exposure(&self, has_keys: bool) -> anyhow::Result<bool> {
        let host = self.address.ip();
        let is_open = self.operator_key.is_none() && !has_keys && !host.is_loopback();
        ensure!(
            !is_open || self.insecure,
            "without a key only this machine can be served, but --host is {host}: give --api-key, make a key with \
             `pleach tenant key add`, or say --insecure to serve everyone"
        );
        Ok(is_open)
    }

    /// Shared adapters, each with its folder.
    pub fn adapters(&self) -> &[(String, PathBuf)] {
        &self.adapters
    }

    /// How adapters are taken in.
    pub fn adapter_settings(&self) -> &AdapterSettings {
        &self.at_work
    }

    /// Limits on what clients send.
    pub fn limits(&self) -> HttpLimits {
        self.limits
    }

    /// The operator's key.
    pub fn operator_key(&self) -> Option<OperatorKey> {
        self.operator_key.clone()
    }

    /// What to load, once the model file is here.
    pub fn load_settings(&self, model_path: PathBuf) -> LoadSettings {
        LoadSettings {
            model_path,
            model_names: self.names.clone(),
            adapters: self.adapters.clone(),
            adapter_settings: self.at_work.clone(),
            adapter_bytes: self.adapter_bytes,
            device: self.device,
            isa: self.isa,
            threads: self.threads,
            activations: self.activations,
            kv_bytes: self.kv_bytes,
            gpu_memory_share: self.gpu_memory_share,
            engine: self.engine.clone(),
            limits: self.limits,
            operator_key: self.operator_key.clone(),
            capture: self.capture,
            training: self.training,
            training_precision: self.training_precision,
        }
    }
}

/// The name by which a model is served: the file's name for a path, the repository for a hub reference, else the name itself.
pub(in crate::cli) fn name_of_model(model: &str) -> String {
    if let Some(reference) = model.strip_prefix("hf:") {
        return reference.split(':').next().unwrap_or(reference).to_owned();
    }
    let path = Path::new(model);
    let is_path = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
        || model.contains(std::path::MAIN_SEPARATOR);
    let name = if is_path {
        path.file_stem().map_or(model.into(), |stem| stem.to_string_lossy())
    } else {
        model.into()
    };
    // Spaces and commas cannot be part of a model name.
    name.replace([' ', ','], "-")
}

/// `--database` and `--blobs`; what is not given is in the data folder.
pub(in crate::cli) fn read_store_place(
    database: Option<&str>,
    blobs: Option<&str>,
) -> anyhow::Result<StorePlace> {
    let place = |given: Option<&str>, flag: &str, name: &str| {
        if let Some(given) = given {
            ensure!(!given.trim().is_empty(), "{flag} is empty");
            return Ok(given.to_owned());
        }
        let home = models::home()
            .with_context(|| format!("there is no data folder here: give {flag} or PLEACH_HOME"))?;
        let path = home.join(name);
        let text = path.to_str();
        text.map(str::to_owned)
            .with_context(|| format!("{} is no UTF-8: give {flag}", path.display()))
    };
    Ok(StorePlace {
        database: place(database, "--database", DATABASE_FILE)?,
        blobs: place(blobs, "--blobs", BLOBS_FOLDER)?,
    })
}

pub(in crate::cli) fn read_isa(name: Option<&str>) -> anyhow::Result<Isa> {
    let Some(name) = name else { return Ok(Isa::detect()) };
    let isa: Isa = name.parse().context("--isa")?;
    ensure!(
        isa.is_available(),
        "--isa {isa}: this processor cannot run it; the best that it can is {}",
        Isa::detect()
    );
    Ok(isa)
}

pub(in crate::cli) fn read_threads(threads: Option<usize>) -> anyhow::Result<usize> {
    let threads = threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    in_range("--threads", threads, THREADS_MAX)
}

pub(in crate::cli) fn read_bytes(flag: &'static str, text: &str) -> anyhow::Result<u64> {
    parse_bytes(text).map_err(anyhow::Error::msg).context(flag)
}

fn read_share(share: f64) -> anyhow::Result<f64> {
    ensure!(
        share > 0.0 && share <= 1.0,
        "--gpu-memory-utilization {share} is not a share between 0 and 1"
    );
    Ok(share)
}

fn read_engine(args: &Args, on_gpu: bool) -> anyhow::Result<EngineConfig> {
    let mut default = EngineConfig::default();
    if on_gpu {
        (default.max_batch, default.max_step_rows) = (GPU_MAX_BATCH, GPU_MAX_STEP_ROWS);
    }
    let max_batch =
        in_range("--max-batch", args.max_batch.unwrap_or(default.max_batch), MAX_BATCH_MAX)?;
    // Every running sequence needs a row.
    let max_step_rows = args.max_step_rows.unwrap_or(default.max_step_rows.max(max_batch));
    let max_step_rows = in_range("--max-step-rows", max_step_rows, MAX_STEP_ROWS_MAX)?;
    ensure!(
        max_step_rows >= max_batch,
        "--max-step-rows {max_step_rows} is less than --max-batch {max_batch}: every running sequence needs a row"
    );
    Ok(EngineConfig {
        max_batch,
        max_step_rows,
        max_queue: args.max_queue.unwrap_or(default.max_queue),
        prefix_cache: args.no_prefix_cache != Some(true),
    })
}

fn read_limits(args: &Args) -> anyhow::Result<HttpLimits> {
    let default = HttpLimits::default();
    let Some(text) = args.body_limit.as_deref() else { return Ok(default) };
    let bytes = read_bytes("--body-limit", text)?;
    ensure!((1..=BODY_BYTES_MAX).contains(&bytes), "--body-limit {text} is outside 1B..=1GiB");
    Ok(HttpLimits { body_bytes_max: usize::try_from(bytes)?, ..default })
}

fn read_training(args: &Args) -> anyhow::Result<TrainingLimits> {
    let itl_budget = args.training_itl_budget.map(|ms| {
        ensure!(
            (ITL_BUDGET_MS_MIN..=ITL_BUDGET_MS_MAX).contains(&ms),
            "--training-itl-budget {ms} is outside {ITL_BUDGET_MS_MIN}..={ITL_BUDGET_MS_MAX} milliseconds"
        );
        Ok(Duration::from_secs_f64(ms / 1000.0))
    });
    let memory = args.training_memory.as_deref();
    let memory = memory.map(|text| read_bytes("--training-memory", text)).transpose()?;
    Ok(TrainingLimits { itl_budget: itl_budget.transpose()?, memory_bytes: memory })
}

/// # Errors
/// A name that is none, and a precision that kernels or processor lack.
fn read_precision(args: &Args, isa: Isa) -> anyhow::Result<ProductPrecision> {
    let flag = "--training-precision";
    let Some(name) = args.training_precision.as_deref() else { return Ok(ProductPrecision::F32) };
    let precision: ProductPrecision = name.parse().context(flag)?;
    precision.check(isa).with_context(|| format!("{flag} {name}"))?;
    Ok(precision)
}

fn read_grace(seconds: Option<f64>) -> anyhow::Result<Duration> {
    let Some(seconds) = seconds else { return Ok(GRACE_DEFAULT) };
    ensure!(
        (0.0..=GRACE_SECONDS_MAX).contains(&seconds),
        "--shutdown-grace {seconds} is outside 0..={GRACE_SECONDS_MAX} seconds"
    );
    Ok(Duration::from_secs_f64(seconds))
}

pub(super) fn in_range(flag: &str, value: usize, most: usize) -> anyhow::Result<usize> {
    ensure!((1..=most).contains(&value), "{flag} {value} is outside 1..={most}");
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &Args) -> String {
        format!("{:#}", Settings::from_args(args).unwrap_err())
    }

    #[test]
    fn values_that_cannot_be_used_are_refused_by_flag() {
        let text = |text: &str| Some(text.to_owned());
        for (args, expected) in [
            (Args { device: text("cuda:x"), ..Args::default() }, "--device \"cuda:x\""),
            (Args { device: text("tpu"), ..Args::default() }, "--device"),
            (Args { activations: text("int4"), ..Args::default() }, "int4"),
            (Args { isa: text("mmx"), ..Args::default() }, "mmx"),
            (Args { threads: Some(0), ..Args::default() }, "--threads 0"),
            (Args { kv_memory: text("lots"), ..Args::default() }, "--kv-memory"),
            (
                Args { gpu_memory_utilization: Some(1.5), ..Args::default() },
                "--gpu-memory-utilization 1.5",
            ),
            (Args { max_batch: Some(0), ..Args::default() }, "--max-batch 0"),
            (
                Args { max_batch: Some(8), max_step_rows: Some(4), ..Args::default() },
                "--max-step-rows 4",
            ),
            (Args { adapter: vec!["x".to_owned()], ..Args::default() }, "NAME=DIR"),
            (Args { adapter: vec!["=x".to_owned()], ..Args::default() }, "NAME=DIR"),
            (Args { lora_modules: vec!["{}".to_owned()], ..Args::default() }, "--lora-modules"),
            (Args { lora_modules: vec!["[1]".to_owned()], ..Args::default() }, "--lora-modules"),
            (Args { lora_modules: vec!["x".to_owned()], ..Args::default() }, "NAME=DIR"),
            (Args { max_loras: Some(0), ..Args::default() }, "--max-loras 0"),
            (Args { max_lora_rank: Some(0), ..Args::default() }, "--max-lora-rank 0"),
            (Args { adapter_memory: text("much"), ..Args::default() }, "--adapter-memory"),
            (
                Args { adapter_root: vec!["no/where".into()], ..Args::default() },
                "--adapter-root no/where",
            ),
            (Args { api_key: text(" "), ..Args::default() }, "--api-key"),
            (Args { shutdown_grace: Some(-1.0), ..Args::default() }, "--shutdown-grace"),
            (Args { shutdown_grace: Some(f64::NAN), ..Args::default() }, "--shutdown-grace"),
            (Args { body_limit: text("0"), ..Args::default() }, "--body-limit"),
            (Args { training_itl_budget: Some(0.0), ..Args::default() }, "--training-itl-budget 0"),
            (
                Args { training_itl_budget: Some(f64::NAN), ..Args::default() },
                "--training-itl-budget NaN",
            ),
            (Args { training_memory: text("much"), ..Args::default() }, "--training-memory"),
            (
                Args { training_precision: text("f16"), ..Args::default() },
                "--training-precision: unknown precision \"f16\": f32 or bf16",
            ),
        ] {
            let message = error(&args);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn without_a_key_only_this_machine_is_served() {
        let host = |host: &str| Some(host.parse().unwrap());
        let check = |args: &Args, has_keys| {
            let checked = Settings::from_args(args).unwrap().check_exposure(has_keys);
            checked.map_err(|error| error.to_string())
        };
        let open = |text| Args { host: host(text), ..Args::default() };
        for address in ["0.0.0.0", "::", "192.0.2.1"] {
            assert!(check(&open(address), false).unwrap_err().contains("--api-key"));
            assert_eq!(check(&open(address), true), Ok(false), "keys in the store are keys");
            let with_key = Args { api_key: Some("k".to_owned()), ..open(address) };
            assert_eq!(check(&with_key, false), Ok(false));
            let insecure = Args { insecure: Some(true), ..open(address) };
            assert_eq!(check(&insecure, false), Ok(true));
            assert_eq!(check(&insecure, true), Ok(false));
        }
        for address in ["127.0.0.1", "::1"] {
            assert_eq!(check(&open(address), false), Ok(false));
        }
    }

    #[test]
    fn names_come_from_the_model() {
        for (model, name) in [
            ("smollm2-135m-instruct", "smollm2-135m-instruct"),
            ("hf:Owner/Repo:file.gguf", "Owner/Repo"),
            ("some/where/My Model.Q4_1.gguf", "My-Model.Q4_1"),
            ("model.GGUF", "model"),
        ] {
            assert_eq!(name_of_model(model), name);
        }
    }

    #[test]
    fn a_large_batch_raises_the_rows_of_a_step() {
        let settings =
            Settings::from_args(&Args { max_batch: Some(512), ..Args::default() }).unwrap();
        assert_eq!(settings.engine.max_step_rows, 512);
    }
}
