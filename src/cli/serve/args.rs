//! What the user typed: flags, environment, configuration file. What the program makes of it is
//! [`Settings`](super::settings::Settings).

use std::{net::IpAddr, path::PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The environment's `--adapter`.
const ADAPTER_VARIABLE: &str = "PLEACH_ADAPTER";
/// The environment's `--lora-modules`.
const LORA_MODULES_VARIABLE: &str = "PLEACH_LORA_MODULES";

/// Flags of `pleach serve`. Each is also an environment variable and, under its long name, a key of the configuration
/// file. A flag goes before the environment, the environment before the file, the file before the default.
#[derive(Clone, Debug, Default, clap::Args, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Args {
    /// Model: a known name, hf:OWNER/REPO[:FILE], or a GGUF file [default: smollm2-135m-instruct].
    #[arg(long, env = "PLEACH_MODEL", value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Adapter to serve under NAME: a PEFT LoRA folder. Repeatable. [env: PLEACH_ADAPTER, several as NAME=DIR,NAME=DIR]
    #[arg(long, value_name = "NAME=DIR")]
    pub adapter: Vec<String>,
    /// vLLM's way to say --adapter: NAME=DIR, or JSON with "name" and "path"; several after one flag. [env: PLEACH_LORA_MODULES]
    #[arg(long, value_name = "NAME=DIR|JSON", num_args = 1..)]
    pub lora_modules: Vec<String>,
    /// Folder below which adapters may be loaded by path while the server runs. Repeatable [default: none].
    #[arg(long, env = "PLEACH_ADAPTER_ROOT", value_name = "DIR", value_delimiter = ',')]
    pub adapter_root: Vec<PathBuf>,
    /// Memory of the device for adapters, such as 512MiB [default: 4GiB, on a GPU an eighth of what is free].
    #[arg(long, env = "PLEACH_ADAPTER_MEMORY", value_name = "BYTES")]
    pub adapter_memory: Option<String>,
    /// Most adapters on the device at a time [default: 1024].
    #[arg(long, env = "PLEACH_MAX_LORAS", value_name = "N")]
    pub max_loras: Option<usize>,
    /// Most adapters in host memory; others are read from disk when they are asked for [default: 4096].
    #[arg(long, env = "PLEACH_MAX_CPU_LORAS", value_name = "N")]
    pub max_cpu_loras: Option<usize>,
    /// Largest rank of an adapter [default: 256].
    #[arg(long, env = "PLEACH_MAX_LORA_RANK", value_name = "N")]
    pub max_lora_rank: Option<usize>,
    /// Accepted for vLLM's sake: adapters are always enabled.
    #[arg(long, env = "PLEACH_ENABLE_LORA", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = clap::builder::FalseyValueParser::new())]
    pub enable_lora: Option<bool>,
    /// Name that requests use for the base. Repeatable; the first is shown [default: from the model].
    #[arg(long, env = "PLEACH_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// What survives the process: an SQLite file, or postgres://… [default: pleach.db in the data folder].
    #[arg(long, env = "PLEACH_DATABASE", value_name = "FILE|URL", hide_env_values = true)]
    pub database: Option<String>,
    /// Where files of adapters are kept: a folder, or s3://BUCKET/PREFIX in a build with that feature [default: blobs in the data folder].
    #[arg(long, env = "PLEACH_BLOBS", value_name = "DIR|URL")]
    pub blobs: Option<String>,
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, env = "PLEACH_HOST", value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// Port to listen on; 0 takes a free one [default: 8000].
    #[arg(long, env = "PLEACH_PORT")]
    pub port: Option<u16>,
    /// Where to compute: auto takes the first GPU if this binary has kernels for it [default: auto].
    #[arg(long, env = "PLEACH_DEVICE", value_name = "auto|cpu|cuda:N")]
    pub device: Option<String>,
    /// How products treat activations: int8 is fast, f32 is exact [default: int8].
    #[arg(long, env = "PLEACH_ACTIVATIONS", value_name = "int8|f32")]
    pub activations: Option<String>,
    /// Kernels: portable, avx2, avx512-vnni or avx512-amx [default: the fastest that runs here].
    #[arg(long, env = "PLEACH_ISA")]
    pub isa: Option<String>,
    /// Threads that compute [default: all cores].
    #[arg(long, env = "PLEACH_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Memory for keys and values, such as 512MiB [default: a quarter of what is free, at most 2GiB].
    #[arg(long, env = "PLEACH_KV_MEMORY", value_name = "BYTES")]
    pub kv_memory: Option<String>,
    /// Share of a GPU's memory that this server takes, such as 0.45 [default: 90 % of what is free].
    #[arg(long, env = "PLEACH_GPU_MEMORY_UTILIZATION", value_name = "SHARE")]
    pub gpu_memory_utilization: Option<f64>,
    /// Most sequences in a step [default: 32, on a GPU 128].
    #[arg(long, env = "PLEACH_MAX_BATCH", value_name = "N")]
    pub max_batch: Option<usize>,
    /// Most rows in a step: decode rows first, the rest is prefill [default: 256, on a GPU 1024].
    #[arg(long, env = "PLEACH_MAX_STEP_ROWS", value_name = "N")]
    pub max_step_rows: Option<usize>,
    /// Most sequences waiting; one more gets status 429 [default: 1024].
    #[arg(long, env = "PLEACH_MAX_QUEUE", value_name = "N")]
    pub max_queue: Option<usize>,
    /// Do not reuse keys and values of equal prompt beginnings.
    #[arg(long, env = "PLEACH_NO_PREFIX_CACHE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_prefix_cache: Option<bool>,
    /// Largest request body, such as 2MiB [default: 2MiB].
    #[arg(long, env = "PLEACH_BODY_LIMIT", value_name = "BYTES")]
    pub body_limit: Option<String>,
    /// The operator's key, which may do everything; tenants' keys are made with `pleach tenant`. Without any key, only this machine can be served.
    #[arg(long, env = "PLEACH_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Keep completions of requests with the operator's key, or with none, that did not ask for it, to give feedback on them and learn from them; of tenants by `pleach tenant set`.
    #[arg(long, env = "PLEACH_CAPTURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = clap::builder::FalseyValueParser::new())]
    pub capture: Option<bool>,
    /// Milliseconds between two tokens that training beside them keeps to [default: 1.5 times the 99th percentile without training].
    #[arg(long, env = "PLEACH_TRAINING_ITL_BUDGET", value_name = "MS")]
    pub training_itl_budget: Option<f64>,
    /// Most memory of a training, such as 2GiB; one that needs more is refused [default: half of what is free when it begins].
    #[arg(long, env = "PLEACH_TRAINING_MEMORY", value_name = "BYTES")]
    pub training_memory: Option<String>,
    /// Products of trainings with frozen weights: f32, or bf16, which takes AVX512-BF16 or AMX [default: f32].
    #[arg(long, env = "PLEACH_TRAINING_PRECISION", value_name = "NAME")]
    pub training_precision: Option<String>,
    /// Listen beyond this machine without a key.
    #[arg(long, env = "PLEACH_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = clap::builder::FalseyValueParser::new())]
    pub insecure: Option<bool>,
    /// Seconds that running requests have to finish when the server is told to stop [default: 10].
    #[arg(long, env = "PLEACH_SHUTDOWN_GRACE", value_name = "SECONDS")]
    pub shutdown_grace: Option<f64>,
    /// Configuration file (TOML): long flag names as keys, such as kv-memory = "512MiB".
    #[arg(long, env = "PLEACH_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

impl Args {
    /// Fills what flags and environment left open from the configuration file, if one is named.
    ///
    /// # Errors
    /// When the file cannot be read, or a key of it is unknown or of the wrong type.
    pub fn with_config_file(mut self) -> anyhow::Result<Self> {
        // Not clap's to read: it would cut flags at commas too, and a folder's name may hold them.
        if let (true, Ok(list)) = (self.adapter.is_empty(), std::env::var(ADAPTER_VARIABLE)) {
            self.adapter = split_adapters(&list);
        }
        let modules = std::env::var(LORA_MODULES_VARIABLE);
        if let (true, Ok(list)) = (self.lora_modules.is_empty(), modules) {
            // JSON holds commas of its own.
            let is_json = list.trim_start().starts_with(['{', '[']);
            self.lora_modules = if is_json { vec![list] } else { split_adapters(&list) };
        }
        let Some(path) = &self.config else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let file =
            toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))?;
        Ok(self.or(file))
    }

    fn or(self, file: Self) -> Self {
        let list = |own: Vec<String>, file: Vec<String>| if own.is_empty() { file } else { own };
        Self {
            model: self.model.or(file.model),
            adapter: list(self.adapter, file.adapter),
            lora_modules: list(self.lora_modules, file.lora_modules),
            adapter_root: if self.adapter_root.is_empty() {
                file.adapter_root
            } else {
                self.adapter_root
            },
            adapter_memory: self.adapter_memory.or(file.adapter_memory),
            max_loras: self.max_loras.or(file.max_loras),
            max_cpu_loras: self.max_cpu_loras.or(file.max_cpu_loras),
            max_lora_rank: self.max_lora_rank.or(file.max_lora_rank),
            enable_lora: self.enable_lora.or(file.enable_lora),
            served_model_name: list(self.served_model_name, file.served_model_name),
            database: self.database.or(file.database),
            blobs: self.blobs.or(file.blobs),
            host: self.host.or(file.host),
            port: self.port.or(file.port),
            device: self.device.or(file.device),
            activations: self.activations.or(file.activations),
            isa: self.isa.or(file.isa),
            threads: self.threads.or(file.threads),
            kv_memory: self.kv_memory.or(file.kv_memory),
            gpu_memory_utilization: self.gpu_memory_utilization.or(file.gpu_memory_utilization),
            max_batch: self.max_batch.or(file.max_batch),
            max_step_rows: self.max_step_rows.or(file.max_step_rows),
            max_queue: self.max_queue.or(file.max_queue),
            no_prefix_cache: self.no_prefix_cache.or(file.no_prefix_cache),
            body_limit: self.body_limit.or(file.body_limit),
            api_key: self.api_key.or(file.api_key),
            capture: self.capture.or(file.capture),
            training_itl_budget: self.training_itl_budget.or(file.training_itl_budget),
            training_memory: self.training_memory.or(file.training_memory),
            training_precision: self.training_precision.or(file.training_precision),
            insecure: self.insecure.or(file.insecure),
            shutdown_grace: self.shutdown_grace.or(file.shutdown_grace),
            config: self.config,
        }
    }
}

/// Cuts a list of `NAME=DIR` at the commas that another `NAME=` follows; others are part of a folder's name.
fn split_adapters(list: &str) -> Vec<String> {
    let mut adapters: Vec<String> = Vec::new();
    for piece in list.split(',') {
        let begins = piece
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && !name.contains(std::path::is_separator));
        match adapters.last_mut().filter(|_| !begins) {
            Some(previous) => {
                previous.push(',');
                previous.push_str(piece);
            }
            None => adapters.push(piece.to_owned()),
        }
    }
    adapters.retain(|adapter| !adapter.is_empty());
    adapters
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &[&str]) -> Args {
        Harness::parse_from([&["serve"], flags].concat()).args
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_fills_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pleach.toml");
        let text =
            "port = 9000\nkv-memory = \"64MiB\"\nadapter = [\"a=x\"]\nno-prefix-cache = true\n";
        std::fs::write(&path, text).unwrap();
        let args =
            parse(&["--port", "1", "--config", path.to_str().unwrap()]).with_config_file().unwrap();
        assert_eq!(args.port, Some(1));
        assert_eq!(args.kv_memory.as_deref(), Some("64MiB"));
        assert_eq!(args.adapter, ["a=x"]);
        assert_eq!(args.no_prefix_cache, Some(true));
        assert_eq!(args.host, None);
        let flags = ["--no-prefix-cache=false", "--config", path.to_str().unwrap()];
        assert_eq!(parse(&flags).with_config_file().unwrap().no_prefix_cache, Some(false));
        let flags = ["--insecure", "--port", "1"];
        assert_eq!((parse(&flags).insecure, parse(&[]).insecure), (Some(true), None));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pleach.toml");
        std::fs::write(&path, "prot = 9000\n").unwrap();
        let error = parse(&["--config", path.to_str().unwrap()]).with_config_file().unwrap_err();
        assert!(format!("{error:#}").contains("prot"), "{error:#}");
    }

    #[test]
    fn a_folder_may_hold_commas() {
        assert_eq!(parse(&["--adapter", "a=x,y", "--adapter", "b=z"]).adapter, ["a=x,y", "b=z"]);
        assert_eq!(split_adapters("a=x,y/z=1,b=w,"), ["a=x,y/z=1", "b=w,"]);
        assert_eq!(split_adapters("a=x"), ["a=x"]);
        assert!(split_adapters("").is_empty());
    }

    #[test]
    fn flags_of_vllm_are_taken() {
        let args = parse(&[
            "--enable-lora",
            "--lora-modules",
            "a=x",
            r#"{"name": "b", "path": "y,z"}"#,
            "--max-loras",
            "4",
            "--max-cpu-loras=8",
            "--max-lora-rank",
            "64",
            "--adapter-root",
            "one",
            "--adapter-root",
            "two",
        ]);
        assert_eq!(args.lora_modules, ["a=x", r#"{"name": "b", "path": "y,z"}"#]);
        assert_eq!(
            (args.max_loras, args.max_cpu_loras, args.max_lora_rank),
            (Some(4), Some(8), Some(64))
        );
        assert_eq!(args.adapter_root, [PathBuf::from("one"), PathBuf::from("two")]);
        assert_eq!(args.enable_lora, Some(true));
    }

    #[test]
    fn lists_repeat() {
        let args =
            parse(&["--adapter", "a=x", "--adapter", "b=y", "--served-model-name", "m", "n"]);
        assert_eq!(args.adapter, ["a=x", "b=y"]);
        assert_eq!(args.served_model_name, ["m", "n"]);
    }
}
