//! `pleach eval`: base and adapters on rows that none of them has learned from.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

mod gate;
mod measures;
mod scores;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use pleach_adapters::load_peft;
use pleach_trainer::{Sample, data::Item, gate::GateSettings, recipe::RowsOf};
use serde::Serialize;

use self::{
    gate::Judgement,
    measures::{Difference, Measures, Rows},
    scores::score,
};
use super::train::{
    base::{ComputeArgs, OpenBase},
    rows::{RowFile, read_rows},
};
use crate::models::{DEFAULT_MODEL, resolve};

/// The base, as it is named beside folders.
const BASE: &str = "base";

/// Measure base and adapters on a file of rows.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A known name, a GGUF file, or hf:OWNER/REPO[:FILE]
    #[arg(long, env = "PLEACH_MODEL", default_value = DEFAULT_MODEL, value_name = "NAME|PATH")]
    model: String,
    /// Rows to measure on, JSONL; none of the adapters should have learned from them
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// A PEFT folder; may be given again
    #[arg(long = "adapter", value_name = "DIR")]
    adapters: Vec<PathBuf>,
    /// What adapters are compared with: the base, or a PEFT folder
    #[arg(long, value_name = "DIR|base", default_value = BASE)]
    baseline: String,
    /// Also lets the gate judge every adapter as the successor of the baseline, and fails if it refuses one
    #[arg(long, requires = "adapters")]
    gate: bool,
    /// Thresholds of the gate, JSON, with the names of a policy
    #[arg(long, value_name = "FILE", requires = "gate")]
    gate_settings: Option<PathBuf>,
    /// Trusted rows on which nothing may get worse
    #[arg(long, value_name = "FILE", requires = "gate")]
    anchors: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A generation that is measured.
#[derive(Clone, Debug)]
struct Subject {
    name: String,
    generation: Option<String>,
    weights: Option<Arc<pleach_engine::adapter_weights::AdapterWeights>>,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Evaluation {
    model: String,
    data: PathBuf,
    rows: usize,
    /// Rows that hang together count as one.
    groups: usize,
    targets: usize,
    baseline: String,
    subjects: Vec<Evaluated>,
}

/// What was measured of a generation.
#[derive(Debug, Serialize)]
struct Evaluated {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<String>,
    #[serde(flatten)]
    measures: Measures,
    /// Its scores less the baseline's, row by row.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<Judgement>,
}

/// Measures, and tells.
///
/// # Errors
/// Rows or adapters that cannot be read; with `--gate`, an adapter that it refuses.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let compute = args.compute.read()?;
    let settings = args.gate_settings.as_deref().map(read_settings).transpose()?;
    let model = resolve(&args.model, std::io::stderr().is_terminal()).await?;
    tokio::task::spawn_blocking(move || {
        let base = OpenBase::open(&model, compute)?;
        let evaluation = evaluate(&args, &base, compute, &settings.unwrap_or_default())?;
        tell(&args, &evaluation)
    })
    .await?
}

fn read_settings(path: &Path) -> anyhow::Result<GateSettings> {
    let at = || format!("--gate-settings {}", path.display());
    let text = std::fs::read(path).with_context(at)?;
    let settings: GateSettings = serde_json::from_slice(&text).with_context(at)?;
    settings.check().with_context(at)?;
    Ok(settings)
}

/// The samples of a file, and their groups.
fn read(flag: &str, path: &Path, base: &OpenBase) -> anyhow::Result<(Vec<Sample>, Vec<u32>)> {
    let file = RowFile::open(flag, path)?;
    let loaded = read_rows(&file, None, base)?;
    let items: &[Item] = &loaded.data.items;
    let samples = pleach_trainer::recipe::samples(items, file.method()?, RowsOf::Training)?;
    ensure!(!samples.is_empty(), "{flag} {}: nothing can be measured", path.display());
    Ok((samples, items.iter().map(|item| item.group).collect()))
}

/// The base, the baseline and the adapters, each once; and which one is the baseline.
fn subjects(args: &Args, base: &OpenBase) -> anyhow::Result<(Vec<Subject>, usize)> {
    let mut subjects = vec![Subject { name: BASE.to_owned(), generation: None, weights: None }];
    let baseline = Some(Path::new(&args.baseline)).filter(|_| args.baseline != BASE);
    for (flag, folder) in baseline
        .map(|folder| ("--baseline", folder))
        .into_iter()
        .chain(args.adapters.iter().map(|folder| ("--adapter", folder.as_path())))
    {
        let name = folder.display().to_string();
        if subjects.iter().any(|subject| subject.name == name) {
            continue;
        }
        let loaded = load_peft(folder, base.spec()).with_context(|| format!("{flag} {name}"))?;
        let generation = Some(loaded.digest.to_string());
        subjects.push(Subject { name, generation, weights: Some(Arc::new(loaded.weights)) });
    }
    Ok((subjects, usize::from(baseline.is_some())))
}

fn evaluate(
    args: &Args,
    base: &OpenBase,
    compute: pleach_trainer::recipe::Compute,
    settings: &GateSettings,
) -> anyhow::Result<Evaluation> {
    let (samples, groups) = read("--data", &args.data, base)?;
    let anchors = args.anchors.as_deref().map(|path| read("--anchors", path, base)).transpose()?;
    let (subjects, baseline) = subjects(args, base)?;
    let scored = score(&subjects, &samples, base, compute)?;
    let of_anchors = anchors
        .as_ref()
        .map(|(samples, _)| score(&subjects, samples, base, compute))
        .transpose()?;
    let rows = Rows { samples: &samples, groups: &groups };
    let mut evaluated = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let is_judged = args.gate && index > 0 && index != baseline;
        let judgement = is_judged.then(|| {
            let anchors = anchors.as_ref().zip(of_anchors.as_ref());
            let anchors = anchors.map(|((samples, groups), scores)| {
                gate::rows(&Rows { samples, groups }, scores, baseline, index)
            });
            gate::judge_off_line(gate::rows(&rows, &scored, baseline, index), anchors, settings)
        });
        evaluated.push(Evaluated {
            name: subject.name.clone(),
            generation: subject.generation.clone(),
            measures: rows.measures(&scored[index]),
            difference: (index != baseline)
                .then(|| rows.difference(&scored[index], &scored[baseline])),
            gate: judgement,
        });
    }
    let mut distinct = groups.clone();
    distinct.sort_unstable();
    distinct.dedup();
    Ok(Evaluation {
        model: args.model.clone(),
        data: args.data.clone(),
        rows: samples.len(),
        groups: distinct.len(),
        targets: scored[0].iter().map(|score| score.n_targets).sum(),
        baseline: subjects[baseline].name.clone(),
        subjects: evaluated,
    })
}

fn tell(args: &Args, evaluation: &Evaluation) -> anyhow::Result<()> {
    if args.json {
        println!("{:#}", serde_json::to_value(evaluation)?);
    } else {
        print(evaluation);
    }
    let judged =
        evaluation.subjects.iter().filter_map(|subject| Some((subject, subject.gate.as_ref()?)));
    let refused = judged.filter(|(_, judgement)| !judgement.passed);
    let names: Vec<&str> = refused.map(|(subject, _)| subject.name.as_str()).collect();
    if !names.is_empty() {
        bail!("the gate refuses {}", names.join(", "));
    }
    Ok(())
}

fn print(evaluation: &Evaluation) {
    println!(
        "{} rows in {} groups, {} targets; differences are to {}, with 95 % intervals",
        evaluation.rows, evaluation.groups, evaluation.targets, evaluation.baseline,
    );
    let width = evaluation.subjects.iter().map(|subject| subject.name.len()).max().unwrap_or(0);
    let has_pairs =
        evaluation.subjects.iter().any(|subject| subject.measures.pairs_right.is_some());
    let pairs = if has_pairs { "     pairs" } else { "" };
    println!("{:<width$}      loss  perplexity  accuracy{pairs}  difference", "");
    for subject in &evaluation.subjects {
        let Measures { loss, perplexity, accuracy, pairs_right, .. } = subject.measures;
        let pairs = pairs_right.map(|share| format!("  {:6.1} %", 100.0 * share));
        println!(
            "{:<width$}  {loss:8.4}  {perplexity:10.3}  {:6.1} %{}  {}",
            subject.name,
            100.0 * accuracy,
            pairs.unwrap_or_default(),
            subject.difference.as_ref().map(ToString::to_string).unwrap_or_default(),
        );
    }
    for subject in &evaluation.subjects {
        if let Some(judgement) = &subject.gate {
            println!("\n{}: {judgement}", subject.name);
        }
    }
}
