//! What a training leaves: the adapter, its results, a picture, a report.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

use std::path::Path;

use anyhow::{Context as _, ensure};
use pleach_adapters::{
    load_peft,
    peft::{CONFIG_FILE, TENSOR_FILE},
};
use pleach_trainer::{
    data::DataReport,
    recipe::{Prepared, TrainingMemory},
    write_atomically,
};
use serde_json::{Value, json};

use super::{
    base::OpenBase,
    course::{Finished, Standing},
    curves::Curves,
    plot::loss_svg,
    screen::show_time,
    setup::Setup,
    work::WorkFolder,
};
use crate::{cli::serve::settings::name_of_model, hex::hex, memory};

const RESULTS: &str = "results.csv";
const PICTURE: &str = "loss.svg";
const REPORT: &str = "report.json";

/// What was trained.
pub(super) struct Facts<'a> {
    pub(super) setup: &'a Setup,
    pub(super) base: &'a OpenBase,
    pub(super) prepared: &'a Prepared,
    pub(super) report: &'a DataReport,
    pub(super) need: TrainingMemory,
}

/// Writes everything into `out`, the adapter's settings last: without them nothing takes the folder for an adapter. Then
/// what was needed to go on is removed.
///
/// # Errors
/// Of the disk.
pub(super) fn write(
    out: &Path,
    work: &WorkFolder,
    finished: Finished,
    facts: &Facts<'_>,
    is_quiet: bool,
) -> anyhow::Result<()> {
    let Finished { standing, csv } = finished;
    let best = work.best();
    let loaded = load_peft(&best, facts.base.spec())
        .with_context(|| format!("{}: what was trained cannot be used", best.display()))?;
    let generation = loaded.digest.to_string();
    let curves = Curves::of_csv(&csv);
    let name = name(facts.setup);
    let put = |file: &str, bytes: &[u8]| {
        let path = out.join(file);
        write_atomically(&path, bytes).with_context(|| path.display().to_string())
    };
    let copy = |file: &str| -> anyhow::Result<()> {
        let path = best.join(file);
        put(file, &std::fs::read(&path).with_context(|| path.display().to_string())?)
    };
    put(RESULTS, csv.as_bytes())?;
    put(PICTURE, loss_svg(&name, &curves).as_bytes())?;
    let report = report(facts, &standing, &curves, &name, &generation);
    put(REPORT, format!("{report:#}\n").as_bytes())?;
    copy(TENSOR_FILE)?;
    copy(CONFIG_FILE)?;
    let written = load_peft(out, facts.base.spec()).with_context(|| out.display().to_string())?;
    ensure!(
        written.digest == loaded.digest,
        "{}: the folder does not hold what was written; is the disk full or shared?",
        out.display()
    );
    work.remove().with_context(|| out.display().to_string())?;
    if is_quiet {
        println!("{generation}");
    } else {
        print(out, facts, &standing, &curves, &generation);
    }
    Ok(())
}

/// `BASE:SUFFIX`, a title.
fn name(setup: &Setup) -> String {
    let base = name_of_model(&setup.model);
    setup.suffix.as_ref().map_or_else(|| base.clone(), |suffix| format!("{base}:{suffix}"))
}

fn report(
    facts: &Facts<'_>,
    standing: &Standing,
    curves: &Curves,
    name: &str,
    generation: &str,
) -> Value {
    let Facts { setup, prepared, need, .. } = facts;
    let place = &standing.place;
    let losses = curves.first_and_last();
    json!({
        "name": name,
        "generation": generation,
        "model": {"name": setup.model, "sha256": facts.base.sha256},
        "parent": setup.parent,
        "method": setup.method,
        "settings": prepared.resolved(),
        "asked": setup.hyperparameters,
        "seed": setup.seed,
        "precision": setup.precision.name(),
        "data": {
            "files": {"training": setup.data, "validation": setup.validation},
            "sha256": hex(&prepared.data_sha256()),
            "report": facts.report,
        },
        "steps": place.steps,
        "steps_planned": prepared.total_steps(),
        "tokens": place.tokens,
        "seconds": standing.seconds,
        "tokens_per_second": place.tokens as f64 / standing.seconds.max(1e-9),
        "loss": {"first": losses.map(|losses| losses.0), "last": losses.map(|losses| losses.1)},
        "validation": standing.points.iter().map(|point| json!({"step": point.step, "loss": point.loss()})).collect::<Vec<_>>(),
        "best": standing.best.map(|best| json!({"step": best.step, "loss": best.loss()})),
        "stopped_early": standing.stopped_early,
        "symptoms": standing.symptoms,
        "memory": {"planned": need, "peak_bytes": memory::peak_bytes()},
    })
}

fn print(out: &Path, facts: &Facts<'_>, standing: &Standing, curves: &Curves, generation: &str) {
    let place = &standing.place;
    let losses = curves.first_and_last();
    let losses = losses.map(|(first, last)| format!(", loss {first:.3} -> {last:.3}"));
    println!(
        "{}: {} steps, {} tokens in {} ({:.0} tokens/s){}",
        out.display(),
        place.steps,
        place.tokens,
        show_time(standing.seconds),
        place.tokens as f64 / standing.seconds.max(1e-9),
        losses.unwrap_or_default(),
    );
    if let Some(best) = standing.best {
        let early = if standing.stopped_early { ", stopped early" } else { "" };
        println!("best validation loss {:.4} after step {}{early}", best.loss(), best.step);
    }
    println!("generation {generation}");
    let folder = out.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = facts.setup.suffix.clone().or(folder).unwrap_or_else(|| "NAME".to_owned());
    println!(
        "serve it: pleach serve --model {} --adapter {name}={}",
        facts.setup.model,
        out.display()
    );
}
