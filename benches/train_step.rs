//! Speed of supervised fine-tuning on one model: rows and multiply-adds per second, and what it takes of memory.
//!
//! `cargo bench -p pleach-trainer --bench train_step -- MODEL.gguf [--threads N] [--isa NAME] [--rank R] [--batch N]
//! [--length TOKENS] [--rows ROWS] [--activation-mib MIB] [--steps N] [--cpu-time]`
//!
//! A step is `--batch` sequences of `--length` tokens, all but the first eighth of them targets, in micro-batches of at
//! most `--rows` rows; all linears are trained. `benches/peers/peft_sft.py` does the same with transformers and PEFT.
//! `--cpu-time` divides by the processor time of the process instead of the wall clock: meaningful with one thread on a
//! machine that is never quiet.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a command-line tool")]

use std::time::Instant;

use pleach_engine::{
    cpu::Isa,
    gguf::GgufFile,
    model::{Activations, CpuOptions, load_cpu},
    train::TrainOptions,
};
use pleach_trainer::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, Targeted,
};

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next()?;
    arguments.next()
}

fn number(name: &str, default: usize) -> usize {
    argument(name).map_or(default, |text| text.parse().unwrap())
}

/// Seconds of wall clock, or of processor time.
fn now(cpu_time: bool) -> f64 {
    if !cpu_time {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        return START.get_or_init(Instant::now).elapsed().as_secs_f64();
    }
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1e-9
}

/// Largest resident size of this process so far, MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn main() {
    let Some(path) = std::env::args().nth(1).filter(|path| path != "--bench") else {
        println!("no model given, nothing measured");
        return;
    };
    let threads = number("--threads", 2);
    let isa = argument("--isa").map_or_else(Isa::detect, |name| name.parse().unwrap());
    let (rank, batch, length) =
        (number("--rank", 16), number("--batch", 4), number("--length", 256));
    let steps = number("--steps", 5);
    let cpu_time = std::env::args().any(|argument| argument == "--cpu-time");
    let base = {
        let file = GgufFile::open(std::path::Path::new(&path)).unwrap();
        let options = CpuOptions {
            isa,
            threads: 1,
            activations: Activations::Int8,
            kv_bytes: 4 << 20,
            adapter_bytes: 0,
            max_rows: 1,
        };
        load_cpu(&file, options).unwrap().frozen_base()
    };
    let options = TrainOptions {
        isa,
        threads,
        rows_max: number("--rows", 1024),
        activation_bytes: number("--activation-mib", 1024) << 20,
        unit_work: TrainOptions::UNIT_WORK,
    };
    let vocab = u32::try_from(base.spec().vocab).unwrap();
    let sample = |index: usize| {
        let token = |i: usize| u32::try_from(index * 7919 + i * 104_729).unwrap() % vocab;
        let tokens: Vec<u32> = (0..length).map(token).collect();
        Sample::Supervised(Targeted::new(&tokens, (0..length).map(|i| i >= length / 8)))
    };
    let samples = |step: usize| (0..batch).map(|i| sample(step * batch + i)).collect::<Vec<_>>();
    let adapter = LoraSettings::all_linear(rank).fresh(base.spec(), 1).unwrap();
    let settings = LearnerSettings {
        objective: Objective::Sft,
        optimizer: OptimizerSettings::default(),
        dropout: 0.0,
        seed: 1,
    };
    let mut learner = Learner::new(&base, adapter, None, settings, options).unwrap();
    let memory = learner.pass().memory();
    println!(
        "{isa}, {threads} threads, rank {rank}, {batch} sequences of {length} tokens; activations of {} layers kept, \
         {} MiB reserved",
        memory.kept_layers,
        memory.total_bytes() >> 20
    );
    learner.step(samples(0)).unwrap();
    let (mut times, mut work, mut units, mut longest) = (Vec::new(), 0u64, 0u64, 0f64);
    let mut rows = 0;
    for step in 1..=steps {
        learner.begin(samples(step)).unwrap();
        let begun = now(cpu_time);
        let mut last = Instant::now();
        let mut slice = 0f64;
        learner
            .advance(|unit| {
                work += unit.work;
                units += 1;
                slice = slice.max(last.elapsed().as_secs_f64());
                last = Instant::now();
                true
            })
            .unwrap();
        times.push(now(cpu_time) - begun);
        longest = longest.max(slice);
        rows = learner.finish().unwrap().rows;
    }
    let total: f64 = times.iter().sum();
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{:.0} tokens/s (median step {:.3} s, {} rows), {:.1} GFLOP/s, {units} units, longest {:.2} ms, mean {:.3} ms, \
         peak memory {:.0} MiB",
        rows as f64 / median,
        median,
        rows,
        2e-9 * work as f64 / total,
        longest * 1e3,
        total / units as f64 * 1e3,
        peak_mib()
    );
}
