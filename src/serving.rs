//! From checked settings to a loaded server: model file, engine, text, adapters, telemetry in one [`AppState`].

use std::{
    path::PathBuf,
    sync::{Arc, RwLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pleach_adapters::{Alias, Expect, Namespace};
use pleach_engine::{
    backend::StepRunner,
    cpu::{FrozenBase, Isa},
    cuda::{CudaOptions, Device, probe::probe},
    engine::{EngineConfig, EngineHandle},
    gguf::GgufFile,
    model::{self, Activations, CpuOptions},
    spec::ModelSpec,
    train::ProductPrecision,
};
use pleach_store::{Blobs, Store};
use pleach_text::{ChatTemplate, Tokenizer};
use sha2::{Digest, Sha256};

use crate::{
    adapter_service::{AdapterService, AdapterSettings},
    feedback::{Capture, maintenance},
    hex::hex,
    http::{
        cpu_work::CpuWork,
        state::{AppState, Base, HttpLimits},
    },
    learning::{CpuExaminer, Examiner, Learning, ROUNDS_MAX},
    memory,
    telemetry::{ServerFacts, Telemetry, unix_time},
    tenants::{FairOrder, FlowSettings, OperatorKey, Tenants, TokenPrices},
    training::{CpuTrainer, CpuTrainerOptions, FileChecks, Trainer, Training, TrainingLimits},
};

/// Share of the free memory that keys and values take unless told otherwise.
const KV_SHARE_OF_FREE: u64 = 4;
/// Most memory that keys and values take unless told otherwise: what they take, the prefix cache fills in time.
const KV_BYTES_DEFAULT_MAX: u64 = 2 << 30;
/// Bytes of resident adapters on the CPU.
const ADAPTER_BYTES_CPU: u64 = 4 << 30;
/// Share of a GPU's free memory that is taken unless told otherwise; the rest is left to the driver and to others.
const GPU_MEMORY_PERCENT: u64 = 90;
/// Share of what is taken of a GPU that resident adapters may have.
const GPU_ADAPTER_SHARE: u64 = 8;
/// Hexadecimal digits of the base's digest in `system_fingerprint`.
const FINGERPRINT_DIGITS: usize = 12;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one and this binary has kernels, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .with_context(|| format!("--device {text:?} is none of auto, cpu, cuda:N")),
        }
    }
}

impl DeviceChoice {
    /// The GPU that this means here, if any.
    pub fn gpu(self, activations: Activations) -> Option<usize> {
        match self {
            Self::Cuda(ordinal) => Some(ordinal),
            // Exact products are the CPU's.
            Self::Auto => (activations == Activations::Int8 && probe().is_usable()).then_some(0),
            Self::Cpu => None,
        }
    }
}

/// Where everything that survives the process is.
#[derive(Clone, Debug)]
pub struct StorePlace {
    /// An SQLite file or `postgres://…`.
    pub database: String,
    /// A folder or `s3://…`.
    pub blobs: String,
}

/// What to load.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// The model file.
    pub model_path: PathBuf,
    /// Names that the base answers to; the first is shown.
    pub model_names: Vec<String>,
    /// Adapters by alias.
    pub adapters: Vec<(String, PathBuf)>,
    /// How adapters are taken in and kept.
    pub adapter_settings: AdapterSettings,
    /// Bytes of resident adapters; absent: a default of the device.
    pub adapter_bytes: Option<u64>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Kernels of the CPU.
    pub isa: Isa,
    /// Threads that compute on the CPU.
    pub threads: usize,
    /// Products.
    pub activations: Activations,
    /// Bytes for keys and values; absent: a share of the free memory.
    pub kv_bytes: Option<u64>,
    /// Share of a GPU's memory that this process takes; absent: most of what is free.
    pub gpu_memory_share: Option<f64>,
    /// Limits of the engine.
    pub engine: EngineConfig,
    /// Limits on what clients send.
    pub limits: HttpLimits,
    /// Whether the operator's completions are kept that did not ask for it.
    pub capture: bool,
    /// The operator's key; tenants' are in the store.
    pub operator_key: Option<OperatorKey>,
    /// Of the products of trainings.
    pub training_precision: ProductPrecision,
    /// What trainings may take of what is served.
    pub training: TrainingLimits,
}

/// What was loaded, for the start-up message.
#[derive(Debug)]
pub struct LoadReport {
    /// The model's shape.
    pub spec: ModelSpec,
    /// Bytes of the model file.
    pub model_bytes: usize,
    /// Where it computes, in words.
    pub device: String,
    /// Bytes for keys and values.
    pub kv_bytes: u64,
    /// Shared adapters, by name.
    pub adapters: Vec<Alias>,
    /// How many adapters tenants have of their own.
    pub n_own_adapters: usize,
    /// How long it took.
    pub elapsed: Duration,
}

/// Loads everything but the store, which is open. Reading and packing weights runs on a blocking thread.
///
/// # Errors
/// What could not be loaded, by file and name.
pub async fn load(
    settings: LoadSettings,
    store: Store,
) -> anyhow::Result<(Arc<AppState>, LoadReport)> {
    let began = Instant::now();
    let flows = Arc::new(FlowSettings::default());
    let opened = {
        let (settings, flows) = (settings.clone(), Arc::clone(&flows));
        let opening = tokio::task::spawn_blocking(move || open(&settings, flows));
        opening.await.context("the loader died")??
    };
    let adapters = AdapterService::open(
        opened.engine.clone(),
        settings.model_names.clone(),
        settings.adapter_settings.clone(),
        store.clone(),
        opened.base_digest,
    )
    .await?;
    load_adapters(&adapters, &settings.adapters).await?;
    let facts = ServerFacts {
        model_name: settings.model_names.first().cloned().unwrap_or_default(),
        context: opened.engine.spec().context,
        kv_blocks: opened.engine.stats().kv_blocks_total,
        prefix_cache: settings.engine.prefix_cache,
    };
    let shared = adapters.registry().list(&Namespace::shared());
    let report = LoadReport {
        spec: opened.engine.spec().clone(),
        model_bytes: opened.model_bytes,
        device: opened.device,
        kv_bytes: opened.kv_bytes,
        n_own_adapters: adapters.registry().len() - shared.len(),
        adapters: shared,
        elapsed: began.elapsed(),
    };
    let telemetry = Arc::new(Telemetry::new(&facts)?);
    let tenants = Tenants::new(
        store.clone(),
        settings.operator_key,
        &opened.engine,
        flows,
        Arc::clone(&telemetry),
    );
    tenants.maintain();
    let capture = Capture::start(store.clone(), Arc::clone(&telemetry), settings.capture);
    maintenance::sweep_now_and_then(&store);
    let state = AppState {
        engine: opened.engine,
        base: opened.base,
        adapters,
        store,
        telemetry,
        live_limits: RwLock::new(settings.limits),
        tenants,
        cpu: CpuWork::default(),
        capture,
        training: Training::new(opened.trainer, settings.training_precision),
        learning: Learning::new(opened.examiner, ROUNDS_MAX),
        file_checks: FileChecks::default(),
        stopping: AtomicBool::new(false),
    };
    Ok((Arc::new(state), report))
}

/// Opens or makes the store.
///
/// # Errors
/// When it cannot be had, by flag.
pub async fn open_store(place: &StorePlace) -> anyhow::Result<Store> {
    let blobs = Blobs::open(&place.blobs).context("--blobs")?;
    Store::open(&place.database, blobs).await.context("--database")
}

struct Opened {
    engine: EngineHandle,
    base: Base,
    /// SHA-256 of the model file, hexadecimal.
    base_digest: String,
    model_bytes: usize,
    device: String,
    kv_bytes: u64,
    trainer: Option<Arc<dyn Trainer>>,
    examiner: Option<Arc<dyn Examiner>>,
}

/// A model on its device.
struct Loaded {
    runner: Box<dyn StepRunner>,
    device: String,
    kv_bytes: u64,
    /// What can be trained through, where training can.
    frozen: Option<FrozenBase>,
}

fn open(settings: &LoadSettings, flows: Arc<FlowSettings>) -> anyhow::Result<Opened> {
    let path = &settings.model_path;
    let of_file = || format!("cannot serve {}", path.display());
    let file = GgufFile::open(path).with_context(of_file)?;
    // The digest reads the whole file once, and so does packing: side by side it costs little.
    let (base, loaded) = std::thread::scope(|scope| {
        let base = scope.spawn(|| open_base(&file));
        let loaded = match settings.device.gpu(settings.activations) {
            Some(ordinal) => load_cuda(&file, ordinal, settings),
            None => load_cpu(&file, settings),
        };
        (base.join(), loaded)
    });
    let (base, base_digest) = base
        .map_err(|_| anyhow::anyhow!("reading the tokenizer panicked"))
        .flatten()
        .with_context(of_file)?;
    let loaded = loaded.with_context(of_file)?;
    let policy = Box::new(FairOrder::new(flows, TokenPrices::default()));
    let engine = EngineHandle::start_with_policy(loaded.runner, settings.engine.clone(), policy)
        .context("cannot start the engine's thread")?;
    let model_bytes = file.file_bytes().len();
    let Loaded { device, kv_bytes, frozen, .. } = loaded;
    let examiner = frozen.clone().map(|frozen| examiner(frozen, settings, &base, &engine));
    let trainer = frozen.map(|frozen| trainer(frozen, settings, &base, &engine));
    Ok(Opened { engine, base, base_digest, model_bytes, device, kv_bytes, trainer, examiner })
}

/// What trains beside what is served.
fn trainer(
    frozen: FrozenBase,
    settings: &LoadSettings,
    base: &Base,
    engine: &EngineHandle,
) -> Arc<dyn Trainer> {
    let (isa, threads, limits) = (settings.isa, settings.threads, settings.training);
    let options = CpuTrainerOptions { isa, threads, limits };
    let (tokenizer, template) = (Arc::clone(&base.tokenizer), base.chat_template.clone().ok());
    let name = settings.model_names.first().cloned().unwrap_or_default();
    Arc::new(CpuTrainer::new(frozen, options, tokenizer, template, engine.clone(), name))
}

/// What judges beside what is served.
fn examiner(
    frozen: FrozenBase,
    settings: &LoadSettings,
    base: &Base,
    engine: &EngineHandle,
) -> Arc<dyn Examiner> {
    let (isa, threads, limits) = (settings.isa, settings.threads, settings.training);
    let options = CpuTrainerOptions { isa, threads, limits };
    let (tokenizer, template) = (Arc::clone(&base.tokenizer), base.chat_template.clone().ok());
    Arc::new(CpuExaminer::new(frozen, options, tokenizer, template, engine.clone()))
}

fn load_cpu(file: &GgufFile, settings: &LoadSettings) -> anyhow::Result<Loaded> {
    let spec = model::read_spec(file)?;
    let kv_bytes = settings.kv_bytes.unwrap_or_else(|| default_kv_bytes(&spec, settings));
    let options = CpuOptions {
        isa: settings.isa,
        threads: settings.threads,
        activations: settings.activations,
        kv_bytes: bytes_of_kv_memory(kv_bytes)?,
        adapter_bytes: bytes_of_adapters(settings, ADAPTER_BYTES_CPU)?,
        max_rows: settings.engine.max_step_rows,
    };
    let device = format!(
        "cpu, {} kernels, {} threads, {} activations",
        settings.isa, settings.threads, settings.activations
    );
    let decoder = model::load_cpu(file, options)?;
    let frozen = Some(decoder.frozen_base());
    Ok(Loaded { runner: Box::new(decoder), device, kv_bytes, frozen })
}

fn load_cuda(file: &GgufFile, ordinal: usize, settings: &LoadSettings) -> anyhow::Result<Loaded> {
    anyhow::ensure!(
        settings.activations == Activations::Int8,
        "--activations f32 is computed on the CPU only: add --device cpu"
    );
    let mut device = Device::open(ordinal)?;
    let taken =
        gpu_bytes(device.free_bytes()?, device.info().memory_bytes, settings.gpu_memory_share)?;
    device.reserve(taken)?;
    let kv_bytes = settings.kv_bytes.unwrap_or(taken / KV_SHARE_OF_FREE);
    let options = CudaOptions {
        kv_bytes: bytes_of_kv_memory(kv_bytes)?,
        adapter_bytes: bytes_of_adapters(settings, taken / GPU_ADAPTER_SHARE)?,
        max_rows: settings.engine.max_step_rows,
    };
    let name = format!("cuda:{ordinal}, {}, f16 activations", device.info().name);
    Ok(Loaded {
        runner: Box::new(model::load_cuda(file, device, options)?),
        device: name,
        kv_bytes,
        frozen: None,
    })
}

/// What to take of a GPU with so many bytes free and in all.
fn gpu_bytes(free: u64, total: u64, share: Option<f64>) -> anyhow::Result<u64> {
    let Some(share) = share else { return Ok(free / 100 * GPU_MEMORY_PERCENT) };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a size, between 0 and 1"
    )]
    let wanted = (total as f64 * share) as u64;
    anyhow::ensure!(
        wanted <= free,
        "--gpu-memory-utilization {share} is {wanted} bytes of this GPU's {total}, and {free} are free"
    );
    Ok(wanted)
}

fn bytes_of_kv_memory(kv_bytes: u64) -> anyhow::Result<usize> {
    usize::try_from(kv_bytes).context("--kv-memory does not fit this machine's address space")
}

fn bytes_of_adapters(settings: &LoadSettings, default: u64) -> anyhow::Result<usize> {
    usize::try_from(settings.adapter_bytes.unwrap_or(default))
        .context("--adapter-memory does not fit this machine's address space")
}

/// With the SHA-256 of the file, hexadecimal.
fn open_base(file: &GgufFile) -> anyhow::Result<(Base, String)> {
    let tokenizer = Arc::new(Tokenizer::from_gguf(file)?);
    let digest = file_digest(file.file_bytes());
    let base = Base {
        tokenizer,
        // A model without a usable template still completes prompts.
        chat_template: ChatTemplate::from_gguf(file)
            .map(Arc::new)
            .map_err(|error| error.to_string()),
        fingerprint: format!("fp_{}", &digest[..FINGERPRINT_DIGITS]),
        loaded_unix: unix_time().as_secs(),
    };
    Ok((base, digest))
}

/// SHA-256 of a file, 64 hexadecimal digits.
fn file_digest(file: &[u8]) -> String {
    hex(&Sha256::digest(file))
}

async fn load_adapters(
    service: &AdapterService,
    adapters: &[(String, PathBuf)],
) -> anyhow::Result<()> {
    for (name, folder) in adapters {
        service
            .register_configured(name, folder.clone(), Expect::Absent)
            .await
            .with_context(|| format!("cannot load adapter {name:?} from {}", folder.display()))?;
    }
    Ok(())
}

/// A quarter of the free memory, unless less is enough for the largest batch at full context, or it is very much.
fn default_kv_bytes(spec: &ModelSpec, settings: &LoadSettings) -> u64 {
    let token_bytes = kv_token_bytes(spec, settings.activations);
    let enough =
        token_bytes.saturating_mul((settings.engine.max_batch.saturating_mul(spec.context)) as u64);
    let share = memory::free_bytes().map_or(KV_BYTES_DEFAULT_MAX, |free| free / KV_SHARE_OF_FREE);
    enough.min(share).min(KV_BYTES_DEFAULT_MAX)
}

/// Keys and values of one token in every layer: f16, or f32 with exact products.
fn kv_token_bytes(spec: &ModelSpec, activations: Activations) -> u64 {
    let value_bytes = match activations {
        Activations::Int8 => 2,
        Activations::F32 => 4,
    };
    (2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * value_bytes) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_gpu_is_of_its_whole_memory_and_must_be_free() {
        assert_eq!(gpu_bytes(800, 1000, None).unwrap(), 720);
        assert_eq!(gpu_bytes(800, 1000, Some(0.5)).unwrap(), 500);
        let error = gpu_bytes(400, 1000, Some(0.5)).unwrap_err().to_string();
        assert!(error.contains("--gpu-memory-utilization 0.5") && error.contains("400"), "{error}");
    }
}
