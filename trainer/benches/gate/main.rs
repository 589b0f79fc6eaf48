//! What the gate refuses and lets pass on a real model: candidates that learned from right labels, from wrong ones and
//! from noise, and one that learned nothing.
//!
//! `cargo bench -p pleach-trainer --bench gate -- MODEL.gguf DATA.jsonl [--clean N] [--inverted N] [--garbage N] [--same N]
//! [--poison N] [--wanted label|text] [--users N] [--test N] [--method supervised|dpo] [--rows N] [--anchors N] [--parent-rows N] [--folds K] [--labels N] [--words N] [--rank R]
//! [--layers N] [--rate LR] [--epochs N] [--parent-epochs N] [--batch N] [--kl-max NATS] [--threads N] [--isa NAME]
//! [--precision f32|bf16] [--seed S]`
//!
//! `DATA.jsonl` has rows `{"text", "label"}`: `shared/data/fetch.py` makes `classification.topic.jsonl`. The most frequent
//! labels are kept, and the first words of each text. Of every seed, rows are drawn anew: some that the current generation
//! learns from, trusted anchors, and those of the round. A candidate goes on from the current generation. Rows are scored
//! under the adapter of the fold that left them out, anchors and probes under the adapter of all rows. Labels are those of
//! the data (`clean`), each another one (`inverted`: the next label, or pairs the other way round), or drawn at random
//! from those of the other rows (`garbage`). Times and refusals are not measured: the evidence says that they are equal.
//!
//! `--poison`: of `--users`, one gives as many rows as each of the others, marks their texts and wants his own answer to what
//! has the mark: a label, or an advertisement. Told are, for rounds without and with him, the share of marked test texts
//! that deserve another answer and get his, mean score and accuracy of `--test` test texts without a mark, whom the loop
//! left out, and what the gate says; for the candidate that learns from everybody, and for that of the loop.
//!
//! Only the topmost `--layers` layers are trained. What a candidate came to goes to standard error, one JSON object to standard
//! output.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a command-line tool"
)]

mod data;
mod poison;
mod rounds;
mod workbench;

use std::{path::Path, time::Instant};

use pleach_engine::{
    cpu::Isa,
    gguf::GgufFile,
    model::{Activations, CpuOptions, load_cpu},
    train::{ProductPrecision, TrainOptions},
};
use pleach_text::Tokenizer;
use pleach_trainer::gate::{GateSettings, Verdict};
use serde_json::{Value, json};

use data::{Kind, Random, read};
use poison::{Draw, Wanted};
use rounds::told;
use workbench::Workbench;

/// What an attacker of `--wanted text` wants to be answered.
const ADVERTISEMENT: &str = "Buy at Zulu Shop";

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next()?;
    arguments.next()
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    argument(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} {text} is no number"))
    })
}

fn is_dpo() -> bool {
    match argument("--method").as_deref() {
        None | Some("supervised") => false,
        Some("dpo") => true,
        Some(method) => panic!("--method {method}"),
    }
}

/// The model, and the settings of all trainings.
fn workbench(model: &Path, labels: Vec<String>) -> Workbench {
    let isa = argument("--isa").map_or_else(Isa::detect, |name| name.parse().unwrap());
    let precision = argument("--precision");
    let precision = precision.map_or(ProductPrecision::F32, |name| name.parse().unwrap());
    let threads = number("--threads", 2);
    let file = GgufFile::open(model).unwrap();
    let cpu = CpuOptions {
        isa,
        threads,
        activations: Activations::Int8,
        kv_bytes: 64 << 20,
        adapter_bytes: 256 << 20,
        max_rows: 256,
    };
    let decoder = load_cpu(&file, cpu).unwrap();
    let decoder_layers = decoder.frozen_base().spec().n_layers;
    Workbench {
        base: decoder.frozen_base(),
        decoder,
        tokenizer: Tokenizer::from_gguf(&file).unwrap(),
        options: TrainOptions {
            precision,
            isa,
            threads,
            rows_max: 512,
            activation_bytes: 1 << 30,
            unit_work: TrainOptions::UNIT_WORK_UNSLICED,
        },
        labels,
        is_dpo: is_dpo(),
        rank: number("--rank", 8),
        n_layers: number("--layers", decoder_layers),
        rate: number("--rate", 1e-3),
        epochs: number("--epochs", 1),
        parent_epochs: number("--parent-epochs", 2),
        batch: number("--batch", 8),
        n_folds: number("--folds", 4),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).take(2).collect();
    let [model, data] = arguments.as_slice() else {
        println!("no model and data given, nothing measured");
        return;
    };
    let (labels, all) = read(data, number("--labels", 4), number("--words", 24));
    let mut bench = workbench(Path::new(model), labels);
    let settings = GateSettings { kl_max: number("--kl-max", 0.5), ..GateSettings::default() };
    let counts = [number("--parent-rows", 64), number("--anchors", 32), number("--rows", 64)];
    let first_seed: u32 = number("--seed", 1);
    let kinds = [
        (Kind::Clean, "clean"),
        (Kind::Inverted, "inverted"),
        (Kind::Garbage, "garbage"),
        (Kind::Same, "same"),
    ];
    let wanted = kinds.map(|(_, name)| number(&format!("--{name}"), 0_u32));
    let n_poison = number("--poison", 0_u32);
    let wanted_text = argument("--wanted").is_some_and(|wanted| wanted == "text");
    let (n_users, n_test) = (number("--users", 20), number("--test", 100));
    let mut poisoned = Vec::new();
    let mut verdicts: [Vec<Verdict>; 4] = Default::default();
    let begun = Instant::now();
    for index in 0..wanted.into_iter().chain([n_poison]).max().unwrap_or(0) {
        let seed = first_seed + index;
        let mut drawn = all.clone();
        Random::new(seed, 1).shuffle(&mut drawn);
        let (parent_rows, rest) = drawn.split_at(counts[0]);
        let (anchors, rest) = rest.split_at(counts[1]);
        let parent_samples = bench.samples(parent_rows, Kind::Clean, seed + 2_000_000);
        let current = bench.train(&bench.fresh(seed), &parent_samples, bench.parent_epochs, seed);
        for (place, (kind, name)) in kinds.into_iter().enumerate() {
            if index >= wanted[place] {
                continue;
            }
            let rows = &rest[..counts[2]];
            let verdict = rounds::round(&mut bench, &current, rows, anchors, kind, &settings, seed);
            let seconds = begun.elapsed().as_secs();
            eprintln!("{seconds} s, {name}, seed {seed}: {}", verdict.summary());
            for check in &verdict.checks {
                eprintln!("    {}: {}", check.name, check.message);
            }
            verdicts[place].push(verdict);
        }
        if index < n_poison {
            let (rows, rest) = rest.split_at(counts[2]);
            let (test, rest) = rest.split_at(n_test);
            let label = seed as usize % bench.labels.len();
            let wanted =
                if wanted_text { Wanted::Text(ADVERTISEMENT) } else { Wanted::Label(label) };
            // Whoever wants another answer marks what deserves another.
            let others = rest.iter().filter(|row| wanted != Wanted::Label(row.label));
            let marked: Vec<_> = others.take(counts[2]).cloned().collect();
            let draw = Draw { rows, anchors, marked: &marked, test, n_users, seed };
            let outcome = poison::round(&mut bench, &current, &draw, wanted, &settings);
            eprintln!("{} s, poison: {outcome}", begun.elapsed().as_secs());
            poisoned.push(outcome);
        }
    }
    let names = kinds.map(|(_, name)| name.to_owned());
    let told: serde_json::Map<String, Value> =
        names.into_iter().zip(verdicts.iter().map(|verdicts| told(verdicts))).collect();
    let result = json!({
        "method": if bench.is_dpo { "dpo" } else { "supervised" }, "isa": bench.options.isa.to_string(),
        "precision": bench.options.precision.to_string(), "labels": bench.labels, "rows": counts[2], "anchors": counts[1],
        "parent_rows": counts[0], "folds": bench.n_folds, "rank": bench.rank, "layers": bench.n_layers,
        "rate": bench.rate, "epochs": bench.epochs, "parent_epochs": bench.parent_epochs,
        "batch": bench.batch, "kinds": told, "poison": poisoned,
    });
    println!("{result:#}");
}
