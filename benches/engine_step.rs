//! Speed of the engine alone on one model: prefill, and decode at several batch sizes, with or without adapters.
//!
//! `cargo bench -p pleach-engine --bench engine_step -- MODEL.gguf [--threads N] [--isa NAME] [--rank R]
//! [--cpu-time] [--prefill-only]`
//!
//! `--cpu-time` divides by the processor time of the process instead of the wall clock: meaningful with one thread on a
//! machine that is never quiet.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a command-line tool")]

use std::{fmt::Write as _, path::PathBuf, sync::Arc, time::Instant};

use pleach_engine::{
    backend::StepRunner,
    cpu::Isa,
    gguf::GgufFile,
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    model::{Activations, CpuOptions, load_cpu, random_adapter},
    sampler::SamplingParams,
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
};

/// Prompt tokens before decode is timed.
const CONTEXT: usize = 128;
const PREFILL: usize = 512;

/// Which adapter a sequence gets.
type Pick = fn(usize, &[AdapterSlot]) -> Option<AdapterSlot>;

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next()?;
    arguments.next()
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

fn batch(rows: &[(usize, usize, Option<AdapterSlot>)], position: usize, sample: bool) -> StepBatch {
    let params = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    let mut batch = StepBatch::default();
    for &(index, n, adapter) in rows {
        let first = batch.n_rows();
        for i in 0..n {
            batch
                .token_ids
                .push(u32::try_from((index * 7 + (position + i) * 13) % 40_000).unwrap());
            batch.positions.push(position + i);
        }
        let blocks = 40 * index..40 * index + (position + n).div_ceil(KV_BLOCK_TOKENS);
        let block_table = blocks.map(|b| KvBlockId(u32::try_from(b).unwrap())).collect();
        batch.sequences.push(StepSequence { rows: first..batch.n_rows(), block_table, adapter });
        if sample {
            batch.sample_rows.push(SampleRow {
                row: batch.n_rows() - 1,
                params: Arc::clone(&params),
                sample_index: 0,
                history: Arc::default(),
                n_prompt: 0,
                banned: Vec::new(),
                forced: None,
            });
        }
    }
    batch
}

fn main() {
    let Some(path) = std::env::args().nth(1).filter(|path| path != "--bench").map(PathBuf::from)
    else {
        println!("no model given, nothing measured");
        return;
    };
    let threads = argument("--threads").map_or(2, |n| n.parse().unwrap());
    let isa = argument("--isa").map_or_else(Isa::detect, |name| name.parse().unwrap());
    let rank: usize = argument("--rank").map_or(16, |n| n.parse().unwrap());
    let activations =
        argument("--activations").map_or(Activations::Int8, |name| name.parse().unwrap());
    let cpu_time = std::env::args().any(|argument| argument == "--cpu-time");
    let started = Instant::now();
    let file = GgufFile::open(&path).unwrap();
    let options = CpuOptions {
        isa,
        threads,
        activations,
        kv_bytes: 1 << 30,
        adapter_bytes: 1 << 30,
        max_rows: 512,
    };
    let mut runner = load_cpu(&file, options).unwrap();
    println!(
        "loaded in {:.2} s; {isa}, {threads} threads, {activations}",
        started.elapsed().as_secs_f64()
    );
    for n in [64, 256, 512] {
        let started = now(cpu_time);
        let mut done = 0;
        while now(cpu_time) - started < 1.5 {
            for position in (0..PREFILL).step_by(n) {
                runner.step(&batch(&[(0, n, None)], position, true)).unwrap();
                done += n;
            }
        }
        println!(
            "prefill {PREFILL} in chunks of {n:>3}: {:>8.1} tok/s",
            done as f64 / (now(cpu_time) - started)
        );
    }
    if std::env::args().any(|argument| argument == "--prefill-only") {
        return;
    }
    let slots: Vec<AdapterSlot> = (0..32)
        .map(|i| {
            let weights = random_adapter(runner.spec(), rank, i);
            runner.install_weights(&weights).unwrap()
        })
        .collect();
    for n in [1, 2, 4, 8, 16, 32] {
        let mut line = format!("decode {n:>2} sequences:");
        let mixes: [(&str, Pick); 4] = [
            ("base", |_, _| None),
            ("same", |_, s| Some(s[0])),
            ("half as many", |i, s| Some(s[i / 2])),
            ("distinct", |i, s| Some(s[i])),
        ];
        for (name, pick) in mixes {
            for i in 0..n {
                runner.step(&batch(&[(i, CONTEXT, pick(i, &slots))], 0, false)).unwrap();
            }
            let started = now(cpu_time);
            let mut times = Vec::new();
            let mut step = 0;
            while now(cpu_time) - started < 1.0 {
                let rows: Vec<_> = (0..n).map(|i| (i, 1, pick(i, &slots))).collect();
                let batch = batch(&rows, CONTEXT + step % 400, true);
                let begun = now(cpu_time);
                runner.step(&batch).unwrap();
                times.push(now(cpu_time) - begun);
                step += 1;
            }
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            let _ = write!(
                line,
                "  {name} {:>7.1} tok/s (median {:.2} ms)",
                n as f64 / median,
                median * 1e3
            );
        }
        println!("{line}");
    }
}
