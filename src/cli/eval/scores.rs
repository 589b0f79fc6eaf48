//! Every sample under every generation.

use indicatif::{ProgressBar, ProgressStyle};
use pleach_engine::train::{ProductPrecision, TrainOptions};
use pleach_trainer::{
    Sample, SampleScore, Scorer,
    recipe::{Compute, rows_of},
};

use super::Subject;
use crate::cli::train::base::OpenBase;

/// Least rows of a pass: short sequences go through together.
const PASS_ROWS: usize = 512;
/// Samples between two looks at the bar.
const SAMPLES: usize = 16;

/// Scores of all samples under each of `subjects`, in their order.
///
/// # Errors
/// Of the scorer.
pub(super) fn score(
    subjects: &[Subject],
    samples: &[Sample],
    base: &OpenBase,
    compute: Compute,
) -> anyhow::Result<Vec<Vec<SampleScore>>> {
    let longest = samples.iter().map(rows_of).max().unwrap_or(0);
    let options = TrainOptions {
        isa: compute.isa,
        precision: ProductPrecision::F32,
        threads: compute.threads,
        rows_max: longest.max(PASS_ROWS),
        activation_bytes: 0,
        unit_work: compute.unit_work,
    };
    // Without a terminal it draws nothing.
    let bar = ProgressBar::new((subjects.len() * samples.len()) as u64);
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}")?;
    bar.set_style(style.progress_chars("=> "));
    let mut of_subjects = Vec::with_capacity(subjects.len());
    for subject in subjects {
        bar.set_message(subject.name.clone());
        let mut model = Scorer::new(&base.frozen, subject.weights.clone(), options)?;
        let mut scores = Vec::with_capacity(samples.len());
        for samples in samples.chunks(SAMPLES) {
            scores.extend(model.score(samples.to_vec())?);
            bar.inc(samples.len() as u64);
        }
        of_subjects.push(scores);
    }
    bar.finish_and_clear();
    Ok(of_subjects)
}
