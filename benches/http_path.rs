//! What one streamed token costs in processor time: real scheduler, owner thread, HTTP server and `pleach bench` as the
//! client in a process of its own, over a runner that computes nothing and answers after a set time.
//!
//! `cargo bench --bench http_path -- MODEL.gguf [--step-us N] [--clients N] [--tokens N] [--requests N] [--workers N]`
//!
//! Processor times come from `/proc` (Linux). `between` is the wall time that the owner thread spends from the end of one
//! full step to the beginning of the next: what the device waits for.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a command-line tool")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, RwLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use pleach::{
    adapter_service::{AdapterService, AdapterSettings},
    feedback::Capture,
    http::{
        cpu_work::CpuWork,
        router,
        server::Server,
        state::{AppState, Base, HttpLimits},
    },
    learning::Learning,
    telemetry::{ServerFacts, Telemetry},
    tenants::{FairOrder, FlowSettings, Tenants, TokenPrices},
    training::{FileChecks, Training},
};
use pleach_engine::{
    backend::{RunError, StepRunner},
    engine::{EngineConfig, EngineHandle},
    gguf::GgufFile,
    model::read_spec,
    packed_adapter::{AdapterPacker, PlainPacker, PlainResidents, ResidentAdapters},
    sampler::SampledToken,
    spec::ModelSpec,
    step_batch::StepBatch,
};
use pleach_store::{Blobs, Store};
use pleach_text::{ChatTemplate, Tokenizer};
use tokio::net::TcpListener;

const KV_BLOCKS: usize = 1 << 14;
const STEP_ROWS_MAX: usize = 1024;
/// Ids of ordinary text in every vocabulary that the load generator knows too.
const TOKENS: std::ops::Range<u64> = 1000..31_000;

fn argument(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next();
    arguments.next().map_or(default, |value| value.parse().unwrap())
}

/// Answers every step with pseudo-random tokens after a set time.
struct IdleRunner {
    spec: ModelSpec,
    step: Duration,
    /// Rows of a step that counts.
    full: usize,
    ended: Option<Instant>,
    between_us: Arc<Mutex<Vec<f64>>>,
}

impl StepRunner for IdleRunner {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn n_kv_blocks(&self) -> usize {
        KV_BLOCKS
    }

    fn max_rows(&self) -> usize {
        STEP_ROWS_MAX
    }

    fn step(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, RunError> {
        let began = Instant::now();
        if let Some(ended) = self.ended.filter(|_| batch.n_rows() == self.full) {
            let between = began.duration_since(ended).as_secs_f64() * 1e6;
            self.between_us.lock().unwrap().push(between);
        }
        if !self.step.is_zero() {
            std::thread::sleep(self.step);
        }
        let sampled = batch.sample_rows.iter().map(|row| {
            let hash =
                row.params.seed.wrapping_add(row.sample_index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let token = TOKENS.start + (hash >> 32) % (TOKENS.end - TOKENS.start);
            SampledToken { token: u32::try_from(token).unwrap(), logprob: 0.0, top: Vec::new() }
        });
        let sampled = sampled.collect();
        self.ended = (batch.n_rows() == self.full).then(Instant::now);
        Ok(sampled)
    }

    fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(PlainPacker { spec: self.spec.clone(), capacity_bytes: 1 << 30 })
    }

    fn adapters(&self) -> Arc<dyn ResidentAdapters> {
        Arc::new(PlainResidents::default())
    }
}

/// Seconds of processor time by thread name, of this process.
fn threads() -> BTreeMap<String, f64> {
    let mut times = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/task").unwrap() {
        let folder = entry.unwrap().path();
        let (Ok(name), Ok(stat)) = (
            std::fs::read_to_string(folder.join("comm")),
            std::fs::read_to_string(folder.join("schedstat")),
        ) else {
            continue;
        };
        let ns: f64 = stat.split_whitespace().next().unwrap().parse().unwrap();
        *times.entry(name.trim().to_owned()).or_default() += ns * 1e-9;
    }
    times
}

/// Seconds of processor time of children that have ended. The kernel counts them in hundredths.
fn children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[13..15].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

async fn app(
    path: &Path,
    runner: IdleRunner,
    max_batch: usize,
    file: &GgufFile,
    folder: &Path,
) -> Arc<AppState> {
    let blobs = Blobs::in_folder(folder.join("blobs")).unwrap();
    let store = Store::open(folder.join("pleach.db").to_str().unwrap(), blobs).await.unwrap();
    let model_name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let context = runner.spec.context;
    let engine = EngineConfig {
        max_batch,
        max_step_rows: STEP_ROWS_MAX,
        max_queue: 1024,
        prefix_cache: true,
    };
    let flows = Arc::new(FlowSettings::default());
    let policy = Box::new(FairOrder::new(Arc::clone(&flows), TokenPrices::default()));
    let engine = EngineHandle::start_with_policy(Box::new(runner), engine, policy).unwrap();
    let facts = ServerFacts {
        model_name: model_name.clone(),
        context,
        kv_blocks: KV_BLOCKS,
        prefix_cache: true,
    };
    let adapters = AdapterService::open(
        engine.clone(),
        vec![model_name],
        AdapterSettings::default(),
        store.clone(),
        String::new(),
    )
    .await
    .unwrap();
    let telemetry = Arc::new(Telemetry::new(&facts).unwrap());
    let tenants = Tenants::new(store.clone(), None, &engine, flows, Arc::clone(&telemetry));
    let capture = Capture::start(store.clone(), Arc::clone(&telemetry), false);
    Arc::new(AppState {
        engine,
        adapters,
        store,
        base: Base {
            tokenizer: Arc::new(Tokenizer::from_gguf(file).unwrap()),
            chat_template: ChatTemplate::from_gguf(file)
                .map(Arc::new)
                .map_err(|error| error.to_string()),
            fingerprint: "fp_000000000000".to_owned(),
            loaded_unix: 0,
        },
        telemetry,
        live_limits: RwLock::new(HttpLimits::default()),
        tenants,
        cpu: CpuWork::default(),
        capture,
        training: Training::default(),
        learning: Learning::new(None, 0),
        file_checks: FileChecks::default(),
        stopping: AtomicBool::new(false),
    })
}

fn main() {
    let Some(path) = std::env::args().nth(1).filter(|path| path != "--bench").map(PathBuf::from)
    else {
        println!("no model given, nothing measured");
        return;
    };
    let clients = usize::try_from(argument("--clients", 64)).unwrap();
    let tokens = argument("--tokens", 256);
    let requests = argument("--requests", 512);
    let step = Duration::from_micros(argument("--step-us", 2300));
    let workers = usize::try_from(argument("--workers", 0)).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let between_us = Arc::new(Mutex::new(Vec::new()));
    let runner = IdleRunner {
        spec: read_spec(&file).unwrap(),
        step,
        full: clients,
        ended: None,
        between_us: Arc::clone(&between_us),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if workers > 0 {
        runtime.worker_threads(workers);
    }
    let runtime = runtime.enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let state = runtime.block_on(app(&path, runner, clients, &file, folder.path()));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let routes = router(Arc::clone(&state));
    runtime.spawn(async move {
        Server::default().run(listener, routes, std::future::pending()).await;
    });

    let mut client = Command::new(env!("CARGO_BIN_EXE_pleach"));
    client.args(["bench", "--prompt-tokens", "16", "--url", &format!("http://{address}")]);
    for (flag, value) in [
        ("--concurrency", clients as u64),
        ("--output-tokens", tokens),
        ("--requests", requests),
        ("--warmup", 0),
    ] {
        client.args([flag, &value.to_string()]);
    }
    let before = threads();
    let status = client.stdin(Stdio::null()).status().unwrap();
    assert!(status.success());
    let totals = state.engine.stats();
    let n_tokens = totals.completion_tokens as f64;
    println!(
        "\n{} tokens in {} steps; microseconds of processor time per token:",
        totals.completion_tokens, totals.steps
    );
    for (name, time) in threads() {
        let spent = time - before.get(&name).copied().unwrap_or(0.0);
        println!("  server, {name:16} {:>8.2}", spent * 1e6 / n_tokens);
    }
    println!("  client {:>25.2}", children() * 1e6 / n_tokens);
    let mut between = std::mem::take(&mut *between_us.lock().unwrap());
    between.sort_by(f64::total_cmp);
    if let (Some(&least), Some(&most)) = (between.first(), between.last()) {
        let at = |share: usize| between[(between.len() - 1) * share / 100];
        println!(
            "between two full steps, us: least {least:.0}, P50 {:.0}, P95 {:.0}, most {most:.0}",
            at(50),
            at(95)
        );
    }
}
