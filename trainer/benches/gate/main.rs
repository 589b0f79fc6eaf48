//! What the gate refuses and lets pass on a real model: candidates that learned from right labels, from wrong ones and
//! from noise, and one that learned nothing.
//!
//! `cargo bench -p pleach-trainer --bench gate -- MODEL.gguf DATA.jsonl [--clean N] [--inverted N] [--garbage N] [--same N]
//! [--method supervised|dpo] [--rows N] [--anchors N] [--parent-rows N] [--folds K] [--labels N] [--words N] [--rank R]
//! [--layers N] [--rate LR] [--epochs N] [--parent-epochs N] [--batch N] [--kl-max NATS] [--threads N] [--seed S]`
//!
//! `DATA.jsonl` has rows `{"text", "label"}`: `shared/data/fetch.py` makes `classification.topic.jsonl`. The most frequent
//! labels are kept, and the first words of each text. Of every seed, rows are drawn anew: some that the current generation
//! learns from, trusted anchors, and those of the round. A candidate goes on from the current generation. Rows are scored
//! under the adapter of the fold that left them out, anchors and probes under the adapter of all rows. Labels are those of
//! the data (`clean`), each another one (`inverted`: the next label, or pairs the other way round), or drawn at random
//! from those of the other rows (`garbage`). Times and refusals are not measured: the evidence says that they are equal.
//! Only the topmost `--layers` layers are trained. What a candidate came to goes to standard error, one JSON object to standard
//! output.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a command-line tool"
)]

mod data;

use std::{path::Path, sync::Arc, time::Instant};

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner,
    cpu::{CpuBackend, FrozenBase, Isa},
    gguf::GgufFile,
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    model::{Activations, CpuOptions, Decoder, load_cpu},
    sampler::SamplingParams,
    site::{Site, TargetModule},
    step_batch::{SampleRow, StepBatch, StepSequence},
    train::{ProductPrecision, TrainOptions},
};
use pleach_text::Tokenizer;
use pleach_trainer::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, SampleScore,
    Scorer, Targeted, folds,
    gate::{
        CheckName, Evidence, Footprint, GateSettings, ProbeAnswer, ProbeEvidence, RowEvidence,
        Verdict, judge,
    },
    objective::Dpo,
};
use serde_json::{Value, json};

use data::{Kind, Labelled, Random, read};

/// What the general probes ask to go on from.
const PROBES: [&str; 8] = [
    "The capital of France is",
    "To make a good cup of tea, you first",
    "Once upon a time, there was a",
    "The main difference between cats and dogs is",
    "Water boils when",
    "Dear Sir or Madam,",
    "The most important thing about learning a language is",
    "In the year 1969,",
];
/// Tokens of an answer to one.
const ANSWER_TOKENS: usize = 24;

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

struct Bench {
    decoder: Decoder<CpuBackend>,
    base: FrozenBase,
    tokenizer: Tokenizer,
    options: TrainOptions,
    labels: Vec<String>,
    is_dpo: bool,
    rank: usize,
    n_layers: usize,
    rate: f64,
    epochs: usize,
    parent_epochs: usize,
    batch: usize,
    n_folds: usize,
}

impl Bench {
    fn targeted(&self, text: &str, label: usize) -> Targeted {
        let prompt = self.tokenizer.encode(&format!("Text: {text}\nTopic:"), false);
        let answer = self.tokenizer.encode(&format!(" {}\n", self.labels[label]), false);
        let tokens = [prompt.as_slice(), &answer].concat();
        Targeted::new(&tokens, (0..tokens.len()).map(|i| i >= prompt.len()))
    }

    /// A row whose label is said to be `said`; of a pair it is the preferred one, and the other any that it is not said
    /// to be, or, if it is said wrongly, the right one.
    fn sample(&self, row: &Labelled, said: usize, random: &mut Random) -> Sample {
        let n = self.labels.len();
        let other =
            if said == row.label { (said + 1 + random.below(n - 1)) % n } else { row.label };
        if self.is_dpo {
            return Sample::Preference {
                preferred: self.targeted(&row.text, said),
                rejected: self.targeted(&row.text, other),
            };
        }
        Sample::Supervised(self.targeted(&row.text, said))
    }

    /// Rows as they are told to the trainer.
    fn samples(&self, rows: &[Labelled], kind: Kind, seed: u32) -> Vec<Sample> {
        let mut random = Random::new(seed, 3);
        let mut shuffled: Vec<usize> = rows.iter().map(|row| row.label).collect();
        random.shuffle(&mut shuffled);
        let n = self.labels.len();
        let said = |index: usize, row: &Labelled| match kind {
            Kind::Clean | Kind::Same => row.label,
            Kind::Inverted => (row.label + 1) % n,
            Kind::Garbage => shuffled[index],
        };
        let rows = rows.iter().enumerate();
        rows.map(|(index, row)| self.sample(row, said(index, row), &mut random)).collect()
    }

    /// An adapter that changes nothing yet.
    fn fresh(&self, seed: u32) -> Arc<AdapterWeights> {
        let mut settings = LoraSettings::all_linear(self.rank);
        let below = self.base.spec().n_layers.saturating_sub(self.n_layers);
        let sites =
            (0..below).flat_map(|layer| TargetModule::ALL.map(|module| Site { layer, module }));
        settings.ranks = sites.map(|site| (site, 0)).collect();
        Arc::new(settings.fresh(self.base.spec(), u64::from(seed)).unwrap())
    }

    fn train(
        &self,
        from: &Arc<AdapterWeights>,
        samples: &[Sample],
        epochs: usize,
        seed: u32,
    ) -> Arc<AdapterWeights> {
        let objective = if self.is_dpo { Objective::Dpo(Dpo::default()) } else { Objective::Sft };
        let optimizer =
            OptimizerSettings { learning_rate: self.rate, ..OptimizerSettings::default() };
        let settings =
            LearnerSettings { objective, optimizer, dropout: 0.0, seed: u64::from(seed) };
        let (adapter, reference) = (AdapterWeights::clone(from), Some(Arc::clone(from)));
        let mut learner =
            Learner::new(&self.base, adapter, reference, settings, self.options).unwrap();
        let mut random = Random::new(seed, 4);
        for _ in 0..epochs {
            let mut order: Vec<&Sample> = samples.iter().collect();
            random.shuffle(&mut order);
            for batch in order.chunks(self.batch) {
                learner.step(batch.iter().map(|sample| (*sample).clone()).collect()).unwrap();
            }
        }
        Arc::clone(learner.adapter())
    }

    fn score(
        &self,
        adapter: Option<&Arc<AdapterWeights>>,
        samples: Vec<Sample>,
    ) -> Vec<SampleScore> {
        let scorer = Scorer::new(&self.base, adapter.cloned(), self.options);
        scorer.unwrap().score(samples).unwrap()
    }

    /// Answers to the probes at temperature 1, as samples whose targets they are.
    fn answers(&mut self, adapter: &AdapterWeights) -> Vec<Sample> {
        let slot = self.decoder.install_weights(adapter).unwrap();
        let prompts = PROBES.map(|probe| self.tokenizer.encode(probe, false));
        let mut texts: Vec<Vec<u32>> = prompts.to_vec();
        let mut done = vec![0; texts.len()];
        for index in 0..ANSWER_TOKENS {
            let mut batch = StepBatch::default();
            for (probe, text) in texts.iter().enumerate() {
                let first = batch.n_rows();
                batch.token_ids.extend_from_slice(&text[done[probe]..]);
                batch.positions.extend(done[probe]..text.len());
                let rows = first..batch.n_rows();
                let blocks_each = (64 + ANSWER_TOKENS).div_ceil(KV_BLOCK_TOKENS);
                let n_blocks = text.len().div_ceil(KV_BLOCK_TOKENS);
                let block = |i: usize| KvBlockId(u32::try_from(probe * blocks_each + i).unwrap());
                batch.sample_rows.push(SampleRow {
                    row: rows.end - 1,
                    params: Arc::new(SamplingParams {
                        seed: probe as u64,
                        ..SamplingParams::default()
                    }),
                    sample_index: index as u64,
                    history: Arc::default(),
                    n_prompt: 0,
                    banned: Vec::new(),
                    forced: None,
                });
                let block_table = (0..n_blocks).map(block).collect();
                batch.sequences.push(StepSequence { rows, block_table, adapter: Some(slot) });
                done[probe] = text.len();
            }
            for (text, sampled) in texts.iter_mut().zip(self.decoder.step(&batch).unwrap()) {
                text.push(sampled.token);
            }
        }
        self.decoder.remove_adapter(slot);
        let is_answer = |(text, prompt): (&Vec<u32>, &Vec<u32>)| {
            Sample::Supervised(Targeted::new(text, (0..text.len()).map(|i| i >= prompt.len())))
        };
        texts.iter().zip(&prompts).map(is_answer).collect()
    }

    fn probes(&mut self, candidate: &Arc<AdapterWeights>) -> Vec<ProbeEvidence> {
        let answers = self.answers(candidate);
        let under_candidate = self.score(Some(candidate), answers.clone());
        let under_base = self.score(None, answers);
        let answer = |n_tokens| ProbeAnswer { n_tokens, is_refusal: false };
        let probe = |(candidate, base): (&SampleScore, &SampleScore)| ProbeEvidence {
            candidate: answer(candidate.n_targets),
            current: answer(ANSWER_TOKENS),
            candidate_logp: candidate.logp(),
            base_logp: base.logp(),
        };
        under_candidate.iter().zip(&under_base).map(probe).collect()
    }

    /// A round from the current generation on, and what the gate says of it.
    fn round(
        &mut self,
        current: &Arc<AdapterWeights>,
        rows: &[Labelled],
        anchors: &[Labelled],
        kind: Kind,
        settings: &GateSettings,
        seed: u32,
    ) -> Verdict {
        // What learns nothing is what it was.
        let epochs = if kind == Kind::Same { 0 } else { self.epochs };
        let samples = self.samples(rows, kind, seed);
        let groups: Vec<String> = (0..rows.len()).map(|row| row.to_string()).collect();
        let parts = folds(&groups, self.n_folds, u64::from(seed));
        let mut scores = vec![f64::NAN; rows.len()];
        let pick = |rows: &mut dyn Iterator<Item = usize>| -> Vec<Sample> {
            rows.map(|row| samples[row].clone()).collect()
        };
        for fold in 0..parts.n_folds {
            let adapter = self.train(current, &pick(&mut parts.learned(fold)), epochs, seed);
            let found = self.score(Some(&adapter), pick(&mut parts.held_out(fold)));
            for (row, score) in parts.held_out(fold).zip(found) {
                scores[row] = score.score;
            }
        }
        let candidate = self.train(current, &samples, epochs, seed);
        let compared = |samples: Vec<Sample>, of_candidate: Vec<f64>| -> Vec<RowEvidence> {
            let base = self.score(None, samples.clone());
            let of_current = self.score(Some(current), samples);
            let each = base.iter().zip(&of_current).zip(of_candidate).enumerate();
            each.map(|(index, ((base, current), candidate))| RowEvidence {
                group: index.to_string(),
                n_targets: base.n_targets,
                base: base.score,
                current: current.score,
                best: None,
                candidate,
            })
            .collect()
        };
        let trusted = self.samples(anchors, Kind::Clean, seed + 1_000_000);
        let of_trusted = self.score(Some(&candidate), trusted.clone());
        let of_trusted = of_trusted.iter().map(|score| score.score).collect();
        let footprint = Footprint { latency_p95_s: 1.0, adapter_bytes: 1 };
        let (held_out, anchors) = (compared(samples, scores), compared(trusted, of_trusted));
        let evidence = Evidence {
            held_out,
            anchors: Some(anchors),
            best_generation: None,
            probes: self.probes(&candidate),
            candidate: footprint,
            current: footprint,
        };
        judge(&evidence, settings, 1)
    }
}

/// Verdicts of one kind.
fn told(verdicts: &[Verdict]) -> Value {
    let failed = |name: CheckName| {
        verdicts.iter().filter(|verdict| !verdict.check(name).unwrap().passed).count()
    };
    let names = CheckName::ALL.into_iter().filter(|name| failed(*name) > 0);
    let failed: serde_json::Map<String, Value> =
        names.map(|name| (name.to_string(), failed(name).into())).collect();
    let values = |name| -> Vec<Option<f64>> {
        verdicts.iter().map(|verdict| verdict.check(name).unwrap().value).collect()
    };
    json!({
        "candidates": verdicts.len(),
        "promoted": verdicts.iter().filter(|verdict| verdict.passed).count(),
        "refused_by": failed,
        "gain_over_current_bounds": values(CheckName::GainOverCurrent),
        "anchors_bounds": values(CheckName::Anchors),
        "kl": values(CheckName::Kl),
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).take(2).collect();
    let [model, data] = arguments.as_slice() else {
        println!("no model and data given, nothing measured");
        return;
    };
    let (isa, threads) = (Isa::detect(), number("--threads", 2));
    let file = GgufFile::open(Path::new(model)).unwrap();
    let cpu = CpuOptions {
        isa,
        threads,
        activations: Activations::Int8,
        kv_bytes: 64 << 20,
        adapter_bytes: 256 << 20,
        max_rows: 256,
    };
    let decoder = load_cpu(&file, cpu).unwrap();
    let (labels, all) = read(data, number("--labels", 4), number("--words", 24));
    let method = argument("--method").unwrap_or_else(|| "supervised".to_owned());
    assert!(matches!(method.as_str(), "supervised" | "dpo"), "--method {method}");
    let decoder_layers = decoder.frozen_base().spec().n_layers;
    let mut bench = Bench {
        base: decoder.frozen_base(),
        decoder,
        tokenizer: Tokenizer::from_gguf(&file).unwrap(),
        options: TrainOptions {
            precision: ProductPrecision::F32,
            isa,
            threads,
            rows_max: 512,
            activation_bytes: 1 << 30,
            unit_work: TrainOptions::UNIT_WORK_UNSLICED,
        },
        labels,
        is_dpo: method == "dpo",
        rank: number("--rank", 8),
        n_layers: number("--layers", decoder_layers),
        rate: number("--rate", 1e-3),
        epochs: number("--epochs", 1),
        parent_epochs: number("--parent-epochs", 2),
        batch: number("--batch", 8),
        n_folds: number("--folds", 4),
    };
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
    let mut verdicts: [Vec<Verdict>; 4] = Default::default();
    let begun = Instant::now();
    for index in 0..wanted.into_iter().max().unwrap_or(0) {
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
            let verdict = bench.round(&current, rows, anchors, kind, &settings, seed);
            let seconds = begun.elapsed().as_secs();
            eprintln!("{seconds} s, {name}, seed {seed}: {}", verdict.summary());
            for check in &verdict.checks {
                eprintln!("    {}: {}", check.name, check.message);
            }
            verdicts[place].push(verdict);
        }
    }
    let names = kinds.map(|(_, name)| name.to_owned());
    let told: serde_json::Map<String, Value> =
        names.into_iter().zip(verdicts.iter().map(|verdicts| told(verdicts))).collect();
    let result = json!({
        "method": method, "labels": bench.labels, "rows": counts[2], "anchors": counts[1],
        "parent_rows": counts[0], "folds": bench.n_folds, "rank": bench.rank, "layers": bench.n_layers,
        "rate": bench.rate, "epochs": bench.epochs, "parent_epochs": bench.parent_epochs,
        "batch": bench.batch, "kinds": told,
    });
    println!("{result:#}");
}
