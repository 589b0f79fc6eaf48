//! Speed of supervised fine-tuning on one model: rows and multiply-adds per second, and what it takes of memory.
//!
//! `cargo bench -p pleach-trainer --bench train_step -- MODEL.gguf [--threads N] [--isa NAME[,NAME…]] [--rank R] [--batch N]
//! [--length TOKENS] [--rows ROWS] [--activation-mib MIB] [--steps N] [--precision f32|bf16|both] [--cpu-time]`
//!
//! A step is `--batch` sequences of `--length` tokens, all but the first eighth of them targets, in micro-batches of at
//! most `--rows` rows; all linears are trained. `benches/peers/peft_sft.py` does the same with transformers and PEFT.
//! `--cpu-time` divides by the processor time of the process instead of the wall clock: meaningful with one thread on a
//! machine that is never quiet. With `--precision both`, or several instruction sets (bf16 by vectors and by tiles:
//! `--precision bf16 --isa avx512-vnni,avx512-amx`), steps of each take turns, and the median of the ratios of neighbours
//! is told: what other programs take away, they take from all.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a command-line tool")]

use std::time::Instant;

use pleach_engine::{
    cpu::Isa,
    gguf::GgufFile,
    model::{Activations, CpuOptions, load_cpu},
    train::{ProductPrecision, TrainOptions},
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
    let isas: Vec<Isa> = argument("--isa").map_or_else(
        || vec![Isa::detect()],
        |names| names.split(',').map(|name| name.parse().unwrap()).collect(),
    );
    let (rank, batch, length) =
        (number("--rank", 16), number("--batch", 4), number("--length", 256));
    let steps = number("--steps", 5);
    let cpu_time = std::env::args().any(|argument| argument == "--cpu-time");
    let base = {
        let file = GgufFile::open(std::path::Path::new(&path)).unwrap();
        let options = CpuOptions {
            isa: isas[0],
            threads: 1,
            activations: Activations::Int8,
            kv_bytes: 4 << 20,
            adapter_bytes: 0,
            max_rows: 1,
        };
        load_cpu(&file, options).unwrap().frozen_base()
    };
    let precisions = match argument("--precision").as_deref() {
        None => vec![ProductPrecision::F32],
        Some("both") => ProductPrecision::ALL.to_vec(),
        Some(name) => vec![name.parse().unwrap()],
    };
    let options = |isa, precision| TrainOptions {
        isa,
        precision,
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
    let learner = |isa, precision| {
        let options = options(isa, precision);
        Learner::new(&base, adapter.clone(), None, settings, options).unwrap()
    };
    let kernels = isas.iter().flat_map(|&isa| precisions.iter().map(move |&p| (isa, p)));
    let mut courses: Vec<_> = kernels
        .map(|(isa, precision)| Course::new(format!("{isa} {precision}"), learner(isa, precision)))
        .collect();
    let memory = courses[0].learner.pass().memory();
    println!(
        "{threads} threads, rank {rank}, {batch} sequences of {length} tokens; activations of {} layers kept, \
         {} MiB reserved",
        memory.kept_layers,
        memory.total_bytes() >> 20
    );
    for course in &mut courses {
        course.learner.step(samples(0)).unwrap();
    }
    for step in 1..=steps {
        for course in &mut courses {
            course.step(samples(step), cpu_time);
        }
    }
    courses.iter().for_each(Course::print);
    let (first, others) = courses.split_first().unwrap();
    for other in others {
        let pairs = first.times.iter().zip(&other.times);
        let ratios: Vec<f64> = pairs.map(|(first, other)| first / other).collect();
        println!("{} is {:.2} times as fast as {}", other.kernels, median(&ratios), first.kernels);
    }
    println!("peak memory {:.0} MiB", peak_mib());
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Steps with one instruction set in one precision.
struct Course {
    kernels: String,
    learner: Learner,
    /// Seconds of each step.
    times: Vec<f64>,
    work: u64,
    units: u64,
    /// Seconds of the longest unit.
    longest: f64,
    rows: usize,
}

impl Course {
    fn new(kernels: String, learner: Learner) -> Self {
        Self { kernels, learner, times: Vec::new(), work: 0, units: 0, longest: 0.0, rows: 0 }
    }

    fn step(&mut self, samples: Vec<Sample>, cpu_time: bool) {
        self.learner.begin(samples).unwrap();
        let begun = now(cpu_time);
        let mut last = Instant::now();
        self.learner
            .advance(|unit| {
                self.work += unit.work;
                self.units += 1;
                self.longest = self.longest.max(last.elapsed().as_secs_f64());
                last = Instant::now();
                true
            })
            .unwrap();
        self.times.push(now(cpu_time) - begun);
        self.rows = self.learner.finish().unwrap().rows;
    }

    fn print(&self) {
        let (total, median) = (self.times.iter().sum::<f64>(), median(&self.times));
        println!(
            "{}: {:.0} tokens/s (median step {:.3} s, {} rows), {:.1} GFLOP/s, {} units, longest {:.2} ms, mean {:.3} ms",
            self.kernels,
            self.rows as f64 / median,
            median,
            self.rows,
            2e-9 * self.work as f64 / total,
            self.units,
            self.longest * 1e3,
            total / self.units as f64 * 1e3,
        );
    }
}
