//! Examining on the CPU: rows are scored through the weights that serve, aside for steps, and questions are answered by
//! the engine that serves.

use std::{
    collections::BTreeMap,
    io::Cursor,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use pleach_adapters::Generation;
use pleach_engine::{
    adapter_weights::AdapterWeights,
    cpu::FrozenBase,
    engine::EngineHandle,
    train::{ProductPrecision, Progress, TrainOptions},
};
use pleach_text::{ChatTemplate, Tokenizer};
use pleach_trainer::{
    HeldOutScore, Sample, SampleScore, Scorer, Targeted, TrainerError,
    data::{ReadLimits, RowReader},
    gate::{Evidence, Footprint, ProbeEvidence, RowEvidence},
    recipe::{self, Text},
};
use serde_json::Value;

use super::{
    examiner::{Exam, ExamError, ExamRow, Examiner, FoldExam, Stop},
    probing::{self, Answer},
};
use crate::{
    http::state::AppState,
    training::{BesideSteps, CpuTrainerOptions},
};

/// Least rows of a pass: short examples go through together.
const PASS_ROWS_MIN: usize = 512;
/// Of a core's time, while steps run, scoring takes one part in so many.
const ONE_PART_IN: u32 = 4;
/// How often it is looked whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest rest, so that a stop is heard.
const REST_MAX: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Clone, Debug)]
pub struct CpuExaminer {
    base: FrozenBase,
    options: CpuTrainerOptions,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    engine: EngineHandle,
}

impl CpuExaminer {
    /// An examiner through `base`, beside what `engine` serves from it.
    pub fn new(
        base: FrozenBase,
        options: CpuTrainerOptions,
        tokenizer: Arc<Tokenizer>,
        template: Option<Arc<ChatTemplate>>,
        engine: EngineHandle,
    ) -> Self {
        Self { base, options, tokenizer, template, engine }
    }
}

impl Examiner for CpuExaminer {
    fn examine(
        &self,
        state: Arc<AppState>,
        exam: Exam,
    ) -> BoxFuture<'_, Result<Evidence, ExamError>> {
        async move {
            let answers =
                probing::ask(&state, &self.tokenizer, self.template.as_deref(), &exam).await?;
            self.aside(move |examiner| examiner.evidence(&exam, &answers)).await
        }
        .boxed()
    }

    fn fold_scores(
        &self,
        _: Arc<AppState>,
        exam: FoldExam,
    ) -> BoxFuture<'_, Result<Vec<HeldOutScore>, ExamError>> {
        self.aside(move |examiner| examiner.scores_of_folds(&exam)).boxed()
    }
}

/// Rows as samples; a row may become several, or none.
#[derive(Debug, Default)]
struct Rows {
    samples: Vec<Sample>,
    /// Of each sample, its row.
    row_of: Vec<usize>,
}

/// Score and tokens of each row that has any.
type Scores = BTreeMap<usize, (f64, usize)>;

impl CpuExaminer {
    /// Does what takes long on a thread for it.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ExamError> + Send + 'static,
    ) -> Result<T, ExamError> {
        let examiner = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&examiner)).await;
        done.unwrap_or_else(|_| Err(ExamError::failed("server_error", "the examination panicked")))
    }

    fn scores_of_folds(&self, exam: &FoldExam) -> Result<Vec<HeldOutScore>, ExamError> {
        let values: Vec<&Value> = exam.rows.iter().map(|row| &row.value).collect();
        let rows = self.samples(&values)?;
        let longest = rows.samples.iter().map(n_tokens).max().unwrap_or_default();
        let score = |weights: Option<Arc<AdapterWeights>>, rows: &Rows| {
            let rows_max = longest.max(PASS_ROWS_MIN);
            let scores = self.score(weights, rows.samples.clone(), rows_max, &exam.stop)?;
            Ok(by_row(&scores, &rows.row_of))
        };
        let before = exam.before.as_ref().map(|generation| self.weights(generation)).transpose()?;
        let before = score(before, &rows)?;
        let after = self.under_folds(&rows, &exam.rows, &exam.folds, score)?;
        let of = |scores: &Scores, row| scores.get(&row).map_or(f64::NAN, |score| score.0);
        let of_row = |(row, held): (usize, &ExamRow)| HeldOutScore {
            fold: held.fold as usize,
            before: of(&before, row),
            after: of(&after, row),
        };
        Ok(exam.rows.iter().enumerate().map(of_row).collect())
    }

    /// Scores of rows, each under the adapter of its fold.
    fn under_folds(
        &self,
        rows: &Rows,
        exam_rows: &[ExamRow],
        folds: &[Arc<Generation>],
        score: impl Fn(Option<Arc<AdapterWeights>>, &Rows) -> Result<Scores, ExamError>,
    ) -> Result<Scores, ExamError> {
        let mut scores = Scores::new();
        for (fold, generation) in (0_u32..).zip(folds) {
            let is_held = |sample: &usize| exam_rows[rows.row_of[*sample]].fold == fold;
            let held: Vec<_> = (0..rows.samples.len()).filter(is_held).collect();
            let part = Rows {
                samples: held.iter().map(|&sample| rows.samples[sample].clone()).collect(),
                row_of: held.iter().map(|&sample| rows.row_of[sample]).collect(),
            };
            if !part.samples.is_empty() {
                scores.extend(score(Some(self.weights(generation)?), &part)?);
            }
        }
        Ok(scores)
    }

    fn evidence(&self, exam: &Exam, answers: &[[Answer; 2]]) -> Result<Evidence, ExamError> {
        let values: Vec<&Value> = exam.rows.iter().map(|row| &row.value).collect();
        let rows = self.samples(&values)?;
        let anchor_values: Option<Vec<&Value>> =
            exam.anchors.as_ref().map(|rows| rows.iter().collect());
        let anchors = anchor_values.as_deref().map(|values| self.samples(values)).transpose()?;
        let longest = rows
            .samples
            .iter()
            .chain(anchors.iter().flat_map(|rows| &rows.samples))
            .map(n_tokens)
            .chain(
                answers
                    .iter()
                    .map(|[candidate, _]| candidate.prompt.len() + candidate.tokens.len()),
            )
            .max()
            .unwrap_or_default();
        let rows_max = longest.max(PASS_ROWS_MIN);
        let score = |weights: Option<Arc<AdapterWeights>>, samples: Vec<Sample>| {
            self.score(weights, samples, rows_max, &exam.stop)
        };
        let of_rows = |weights: Option<&Arc<AdapterWeights>>, rows: &Rows| {
            let scores = score(weights.cloned(), rows.samples.clone())?;
            Ok::<_, ExamError>(by_row(&scores, &rows.row_of))
        };
        let current =
            exam.current.as_ref().map(|generation| self.weights(generation)).transpose()?;
        let best = exam.best.as_ref().map(|generation| self.weights(generation)).transpose()?;
        let candidate = self.weights(&exam.candidate)?;
        let probes = probes(answers, &candidate, score)?;
        let of_base = of_rows(None, &rows)?;
        let of_current = match &current {
            Some(current) => of_rows(Some(current), &rows)?,
            None => of_base.clone(),
        };
        let of_best = best.as_ref().map(|best| of_rows(Some(best), &rows)).transpose()?;
        let of_folds = self.under_folds(&rows, &exam.rows, &exam.folds, |weights, rows| {
            of_rows(weights.as_ref(), rows)
        })?;
        let group = |row: usize| exam.rows[row].group.clone();
        let held_out = evidence(group, &of_base, &of_current, of_best.as_ref(), &of_folds);
        let anchors = match anchors {
            None => None,
            Some(anchors) => {
                let base = of_rows(None, &anchors)?;
                let of_current = match &current {
                    Some(current) => of_rows(Some(current), &anchors)?,
                    None => base.clone(),
                };
                let of_best =
                    best.as_ref().map(|best| of_rows(Some(best), &anchors)).transpose()?;
                let of_candidate = of_rows(Some(&candidate), &anchors)?;
                // Trusted rows come one by one: each is a group.
                let group = |row: usize| format!("anchor {row}");
                Some(evidence(group, &base, &of_current, of_best.as_ref(), &of_candidate))
            }
        };
        let footprint = |weights: Option<&Arc<AdapterWeights>>, side: usize| {
            Ok::<_, ExamError>(Footprint {
                latency_p95_s: probing::p95(answers.iter().map(|pair| &pair[side])),
                adapter_bytes: weights.map_or(Ok(0), |weights| self.device_bytes(weights))?,
            })
        };
        Ok(Evidence {
            held_out,
            anchors,
            best_generation: exam.best.as_ref().map(|best| best.digest.to_string()),
            probes,
            candidate: footprint(Some(&candidate), 0)?,
            current: footprint(current.as_ref(), 1)?,
        })
    }

    fn weights(&self, generation: &Generation) -> Result<Arc<AdapterWeights>, ExamError> {
        let loaded = generation.files.load(self.base.spec());
        let loaded = loaded.map_err(|error| {
            let digest = generation.digest.short();
            ExamError::failed("adapter_unreadable", format!("generation {digest}: {error}"))
        })?;
        Ok(Arc::new(loaded.weights))
    }

    fn device_bytes(&self, weights: &AdapterWeights) -> Result<u64, ExamError> {
        let packed = self.engine.adapter_packer().pack(weights);
        let packed = packed.map_err(|error| ExamError::failed("adapter_unreadable", error))?;
        Ok(packed.n_bytes() as u64)
    }

    fn samples(&self, values: &[&Value]) -> Result<Rows, ExamError> {
        let mut rows = Rows::default();
        // Rows of a file are of one format; anchors may be of another than the data.
        let text = values.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            return Ok(rows);
        }
        let mut reader = RowReader::new(Cursor::new(text), None, ReadLimits::default());
        let text = Text { tokenizer: &self.tokenizer, template: self.template.as_deref() };
        let loaded = recipe::load(&mut reader, None, text, self.base.spec().context);
        let loaded = loaded.map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            ExamError::failed("invalid_rows", lines.join("; "))
        })?;
        for item in &loaded.data.items {
            if let Some(sample) = Sample::of_record(&item.record, |_| None) {
                rows.samples.push(sample);
                rows.row_of.push(item.row as usize);
            }
        }
        Ok(rows)
    }

    /// Scores samples, aside for what is served.
    fn score(
        &self,
        weights: Option<Arc<AdapterWeights>>,
        samples: Vec<Sample>,
        rows_max: usize,
        stop: &Stop,
    ) -> Result<Vec<SampleScore>, ExamError> {
        let options = TrainOptions {
            isa: self.options.isa,
            // Whatever trained it: what is judged must not depend on that.
            precision: ProductPrecision::F32,
            threads: self.options.threads,
            rows_max,
            activation_bytes: 0,
            unit_work: TrainOptions::UNIT_WORK,
        };
        let failed = |error: TrainerError| ExamError::failed("scoring_failed", error);
        let mut scorer = Scorer::new(&self.base, weights, options).map_err(failed)?;
        scorer.begin(samples).map_err(failed)?;
        let is_over = || stop.is_set() || self.engine.is_stopping();
        // Between steps, unless a training is there already: then on what cores are free, at rest for most of the time.
        let mut beside = BesideSteps::new(self.engine.clone(), self.options.limits.itl_budget);
        loop {
            let progress = match &mut beside {
                Some(beside) => {
                    beside.work(Instant::now() + LOOK_EVERY, |go_on| scorer.advance(go_on))
                }
                None => self.advance_at_rest(&mut scorer, is_over),
            };
            if progress.map_err(failed)? == Progress::Done {
                return scorer.finish().map_err(failed);
            }
            if is_over() {
                return Err(ExamError::Interrupted);
            }
        }
    }

    fn advance_at_rest(
        &self,
        scorer: &mut Scorer,
        is_over: impl Fn() -> bool,
    ) -> Result<Progress, TrainerError> {
        let mut since = Instant::now();
        scorer.advance(|_| {
            let now = Instant::now();
            if self.engine.stats().running > 0 {
                std::thread::sleep(((now - since) * (ONE_PART_IN - 1)).min(REST_MAX));
                since = Instant::now();
            } else {
                since = now;
            }
            !is_over()
        })
    }
}

/// The candidate's answers under itself and under the base.
fn probes(
    answers: &[[Answer; 2]],
    candidate: &Arc<AdapterWeights>,
    score: impl Fn(Option<Arc<AdapterWeights>>, Vec<Sample>) -> Result<Vec<SampleScore>, ExamError>,
) -> Result<Vec<ProbeEvidence>, ExamError> {
    let sample = |answer: &Answer| {
        let tokens: Vec<u32> = answer.prompt.iter().chain(&answer.tokens).copied().collect();
        let mut weights = vec![0.0; tokens.len()];
        weights[answer.prompt.len()..].fill(1.0);
        Sample::Supervised(Targeted { tokens: tokens.into(), weights: weights.into() })
    };
    let given = answers.iter().map(|[candidate, _]| candidate);
    let given: Vec<_> = given.filter(|answer| !answer.tokens.is_empty()).map(sample).collect();
    let (by_candidate, by_base) = if given.is_empty() {
        Default::default()
    } else {
        (score(Some(Arc::clone(candidate)), given.clone())?, score(None, given)?)
    };
    let mut pairs = by_candidate.iter().zip(&by_base);
    let probes = answers.iter().map(|[candidate, current]| {
        let scores = if candidate.tokens.is_empty() { None } else { pairs.next() };
        let (own, base) = scores.map_or((f64::NAN, f64::NAN), |(o, b)| (o.logp(), b.logp()));
        ProbeEvidence {
            candidate: candidate.evidence(),
            current: current.evidence(),
            candidate_logp: own,
            base_logp: base,
        }
    });
    Ok(probes.collect())
}

fn n_tokens(sample: &Sample) -> usize {
    match sample {
        Sample::Supervised(answer) | Sample::Rated { answer, .. } => answer.tokens.len(),
        Sample::Preference { preferred, rejected } => {
            preferred.tokens.len().max(rejected.tokens.len())
        }
        // Which the loop has no rows for.
        Sample::Rollout { .. } | Sample::Labelled { .. } | Sample::Scored { .. } => 0,
    }
}

/// The mean score of each row, over its samples by their tokens.
fn by_row(scores: &[SampleScore], row_of: &[usize]) -> Scores {
    let mut sums: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for (score, row) in scores.iter().zip(row_of) {
        let sum = sums.entry(*row).or_default();
        sum.0 += score.score * score.n_targets as f64;
        sum.1 += score.n_targets;
    }
    sums.into_iter().map(|(row, (sum, n))| (row, (sum / n.max(1) as f64, n))).collect()
}

fn evidence(
    group: impl Fn(usize) -> String,
    base: &Scores,
    current: &Scores,
    best: Option<&Scores>,
    candidate: &Scores,
) -> Vec<RowEvidence> {
    // What one of them lacks is no number, and passes nothing.
    let score = |scores: &Scores, row: usize| scores.get(&row).map_or(f64::NAN, |score| score.0);
    base.iter()
        .map(|(&row, &(of_base, n_targets))| RowEvidence {
            group: group(row),
            n_targets,
            base: of_base,
            current: score(current, row),
            best: best.map(|best| score(best, row)),
            candidate: score(candidate, row),
        })
        .collect()
}
