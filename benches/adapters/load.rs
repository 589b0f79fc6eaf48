//! What bringing one adapter in costs: processor time of one thread, so that a busy machine matters little.

use std::fmt::Write as _;

use anyhow::Context as _;
use pleach::bench::Summary;
use pleach_adapters::{GenerationDigest, load_peft};
use pleach_engine::{
    backend::StepRunner as _,
    cpu::Isa,
    gguf::GgufFile,
    model::{Activations, CpuOptions, load_cpu},
};
use serde_json::json;

use crate::{
    cpu::thread_ns, options::Options, outcome::Outcome, peft::RandomAdapter, server::Home,
};

/// Timed together: the system counts processor time in milliseconds.
const N_ADAPTERS: usize = 8;
/// Of the model that is loaded for its packer only.
const KV_BYTES: usize = 64 << 20;
const ADAPTER_BYTES: usize = 1 << 30;
const MAX_ROWS: usize = 16;

pub(crate) fn measure(options: &Options) -> anyhow::Result<Outcome> {
    let home = Home::new(options)?;
    let cpu = CpuOptions {
        isa: Isa::detect(),
        threads: 1,
        activations: Activations::Int8,
        kv_bytes: KV_BYTES,
        adapter_bytes: ADAPTER_BYTES,
        max_rows: MAX_ROWS,
    };
    let packer = load_cpu(&GgufFile::open(&options.model_path)?, cpu)?.adapter_packer();
    let folders: Vec<_> =
        (0..N_ADAPTERS).map(|index| home.adapter_root().join(index.to_string())).collect();
    for (seed, folder) in (0..).zip(&folders) {
        RandomAdapter { seed, rank: options.args.rank }.write(&options.spec, folder)?;
    }
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..options.args.rounds {
        let load = |folder| load_peft(folder, &options.spec);
        let (loaded, load_ms) = timed(|| folders.iter().map(|folder| load(folder)).collect())?;
        let loaded: Vec<_> = loaded;
        let loaded = loaded.into_iter().collect::<Result<Vec<_>, _>>()?;
        let weights = || loaded.iter().map(|adapter| &adapter.weights);
        let (_, digest_ms) = timed(|| weights().map(GenerationDigest::of).collect::<Vec<_>>())?;
        let (resident, pack_ms) =
            timed(|| weights().map(|weights| packer.pack(weights)).collect::<Result<Vec<_>, _>>())?;
        let resident = resident?;
        let ((), free_ms) = timed(|| drop(resident))?;
        for (all, ms) in times.iter_mut().zip([load_ms, digest_ms, pack_ms, free_ms]) {
            all.push(ms / N_ADAPTERS as f64);
        }
    }
    let [load, digest, pack, free] = times.map(Summary::of);
    let title =
        format!("processor time of one adapter of rank {}, files in memory", options.args.rank);
    let mut table = format!("**{title}**\n\n| | ms (P50) | range |\n|---|---|---|\n");
    for (name, ms) in
        [("read and check", load), ("of that, the digest", digest), ("pack", pack), ("free", free)]
    {
        let ms = ms.context("nothing was timed")?;
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {name} | {:.1} | {:.1}–{:.1} |", ms.p50, ms.min, ms.max);
    }
    let json = json!({
        "title": title,
        "load_peft_ms": load,
        "digest_ms": digest,
        "pack_ms": pack,
        "free_ms": free,
    });
    Ok(Outcome { table, json, is_met: true })
}

/// The result, and milliseconds of this thread.
fn timed<T>(work: impl FnOnce() -> T) -> anyhow::Result<(T, f64)> {
    let now = || thread_ns().context("this system does not tell processor times");
    let began = now()?;
    let result = work();
    Ok((result, (now()? - began) as f64 / 1e6))
}
