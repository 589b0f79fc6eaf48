//! `pleach gpu-check`: every kernel against its definition, then a whole model on the GPU against the CPU.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, bail};
use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner,
    cpu::Isa,
    cuda::{
        CudaBackend, CudaOptions, Device,
        check::{self, Bench, CheckRow, REGION_BYTES, Sizes},
    },
    gguf::GgufFile,
    model::{
        Activations, CpuOptions, Decoder, load_cpu, load_cuda, random_adapter, random_kinds,
        random_weights,
    },
    spec::{Architecture, ModelSpec, RopeScaling},
    step_batch::AdapterSlot,
};
use serde::Serialize;

mod profile;
mod soak;
mod step;

/// Checks a GPU.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of the GPU
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Models to run on the GPU and, in f32, on the CPU
    #[arg(long, num_args = 1..)]
    model: Vec<PathBuf>,
    /// PEFT adapters to mix into the batches of the models, beside made-up ones of every kind
    #[arg(long, num_args = 1..)]
    adapter: Vec<PathBuf>,
    /// Measure a model of random weights in the shape of Llama 3.1 8B, with 64 adapters of rank 16
    #[arg(long)]
    random_8b: bool,
    /// Skip the kernels
    #[arg(long)]
    no_kernels: bool,
    /// Threads of the CPU's run
    #[arg(long, default_value_t = 8)]
    threads: usize,
    /// Writes the results as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    gpu: String,
    kernels: Vec<KernelRow>,
    model: Vec<step::Row>,
    timings: Vec<step::Timing>,
    profile: Vec<profile::Share>,
}

#[derive(Default)]
struct ModelReport {
    rows: Vec<step::Row>,
    timings: Vec<step::Timing>,
    profile: Vec<profile::Share>,
}

impl ModelReport {
    fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.timings.extend(other.timings);
        self.profile.extend(other.profile);
    }
}

#[derive(Serialize)]
struct KernelRow {
    name: &'static str,
    shape: String,
    worst_ratio: f64,
    pass: bool,
}

/// Runs it; an error if anything did not pass.
///
/// # Errors
/// No GPU, no kernels in this binary, or a check that failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || check(&args)).await?
}

fn check(args: &Args) -> anyhow::Result<()> {
    let mut device = Device::open(args.device)?;
    let info = device.info().clone();
    println!("{} ({} multiprocessors, {} MiB)", info.name, info.n_sms, info.memory_bytes >> 20);
    let began = Instant::now();
    device.reserve(REGION_BYTES as u64 + (1 << 20))?;
    let region = device.alloc("checks", REGION_BYTES)?;
    let rows = if args.no_kernels {
        Vec::new()
    } else {
        check::all(&mut Bench::new(&device, region, REGION_BYTES, 1), Sizes::Full)?
    };
    drop(device);
    for row in &rows {
        print_row(row);
    }
    println!(
        "kernels: {} of {} pass, {:.1} s",
        passed(&rows),
        rows.len(),
        began.elapsed().as_secs_f64()
    );
    let mut model = ModelReport::default();
    for path in &args.model {
        model.extend(check_model(args, path).with_context(|| path.display().to_string())?);
    }
    if args.random_8b {
        model.extend(time_random(args)?);
    }
    let failed = rows.len() - passed(&rows) + model.rows.iter().filter(|row| !row.pass).count();
    if let Some(path) = &args.json {
        let kernels = rows.into_iter().map(|row| KernelRow {
            name: row.name,
            shape: row.shape,
            // JSON has no infinity.
            worst_ratio: row.worst_ratio.min(f64::MAX),
            pass: row.pass,
        });
        let ModelReport { rows: model, timings, profile } = model;
        let report = Report { gpu: info.name, kernels: kernels.collect(), model, timings, profile };
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

fn passed(rows: &[CheckRow]) -> usize {
    rows.iter().filter(|row| row.pass).count()
}

fn print_row(row: &CheckRow) {
    let mark = if row.pass { "pass" } else { "FAIL" };
    let worst = if row.pass { "" } else { &row.worst };
    println!("{mark} {:<18} {:<60} {:8.3} {worst}", row.name, row.shape, row.worst_ratio);
}

/// The model on both devices: the same steps, base rows and adapters mixed.
fn check_model(args: &Args, path: &std::path::Path) -> anyhow::Result<ModelReport> {
    let file = GgufFile::open(path)?;
    let mut device = Device::open(args.device)?;
    let free = device.free_bytes()?;
    device.reserve(free / 10 * 9)?;
    let began = Instant::now();
    let options = CudaOptions { kv_bytes: 2 << 30, adapter_bytes: 4 << 30, max_rows: 512 };
    let mut gpu = load_cuda(&file, device, options)?;
    println!("model: {} on the GPU in {:.1} s", gpu.spec().name, began.elapsed().as_secs_f64());
    let isa = Isa::detect();
    let options = CpuOptions {
        isa,
        threads: args.threads,
        activations: Activations::F32,
        kv_bytes: 1 << 30,
        adapter_bytes: 16 << 30,
        max_rows: 512,
    };
    let mut cpu = load_cpu(&file, options)?;
    let adapters: Vec<AdapterWeights> = args
        .adapter
        .iter()
        .map(|folder| Ok(pleach_adapters::load_peft(folder, gpu.spec())?.weights))
        .collect::<anyhow::Result<_>>()?;
    let mut all = adapters.clone();
    all.extend(random_kinds(&file, gpu.spec())?);
    let mut rows = step::compare(&mut gpu, &mut cpu, &all)?;
    let is_long = gpu.spec().context >= step::TIMED_CONTEXT;
    if is_long {
        rows.push(soak::soak(&mut gpu, &all)?);
    }
    for row in &rows {
        println!("{} {:<60} {}", if row.pass { "pass" } else { "FAIL" }, row.what, row.found);
    }
    println!("{} values beyond the range of f16 were clamped", gpu.backend_mut().saturations()?);
    let mut report = ModelReport { rows, ..ModelReport::default() };
    if is_long {
        measure(&mut gpu, &adapters, &mut report)?;
    }
    Ok(report)
}

/// Times and profiles.
fn measure(
    gpu: &mut Decoder<CudaBackend>,
    adapters: &[AdapterWeights],
    report: &mut ModelReport,
) -> anyhow::Result<()> {
    let slots: Vec<AdapterSlot> =
        adapters.iter().map(|weights| gpu.install_weights(weights)).collect::<Result<_, _>>()?;
    report.timings = step::time(gpu, &slots)?;
    print_timings(&report.timings);
    report.profile = profile::profile(gpu, &slots)?;
    Ok(())
}

fn print_timings(timings: &[step::Timing]) {
    for timing in timings {
        println!(
            "{:<60} {:9.3} ms {:>10.0} tokens/s",
            timing.what, timing.median_ms, timing.tokens_per_second
        );
    }
}

/// Times of a large model whose values mean nothing.
fn time_random(args: &Args) -> anyhow::Result<ModelReport> {
    let spec = ModelSpec {
        architecture: Architecture::Llama,
        name: "random 8B".to_owned(),
        n_layers: 32,
        hidden: 4096,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        ffn: 14_336,
        vocab: 128_256,
        context: 8192,
        rms_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
    };
    let mut device = Device::open(args.device)?;
    let free = device.free_bytes()?;
    device.reserve(free / 10 * 9)?;
    let began = Instant::now();
    let options = CudaOptions { kv_bytes: 12 << 30, adapter_bytes: 16 << 30, max_rows: 2048 };
    let mut backend = CudaBackend::new(device, &spec, options)?;
    let weights = random_weights(&spec, &mut backend)?;
    let mut gpu = Decoder::new(spec, backend, weights)?;
    println!("{} on the GPU in {:.1} s", gpu.spec().name, began.elapsed().as_secs_f64());
    let adapters: Vec<AdapterWeights> =
        (0..64).map(|seed| random_adapter(gpu.spec(), 16, seed)).collect();
    let mut report = ModelReport::default();
    measure(&mut gpu, &adapters, &mut report)?;
    Ok(report)
}
