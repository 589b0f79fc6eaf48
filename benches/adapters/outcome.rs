//! What came of a scenario: a table for people, JSON for programs.

use std::fmt;

use pleach::bench::{Sample, Summary};
use serde::Serialize;
use serde_json::{Value, json};

use crate::turns::{Pairs, Run, side};

/// What is asked of a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// A number of one run, or of several together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    of: fn(&[&Run]) -> Option<f64>,
    /// Of the ratio of the second side to the first.
    bound: Option<Bound>,
}

impl Measure {
    pub(crate) const THROUGHPUT: Self =
        Self { name: "output tokens/s", of: throughput, bound: None };
    pub(crate) const TTFT_P50: Self =
        Self { name: "TTFT P50 ms", of: |runs| Some(ttft(runs)?.p50), bound: None };
    pub(crate) const TTFT_P99: Self =
        Self { name: "TTFT P99 ms", of: |runs| Some(ttft(runs)?.p99), bound: None };
    pub(crate) const ITL_P50: Self =
        Self { name: "ITL P50 ms", of: |runs| Some(itl(runs)?.p50), bound: None };
    pub(crate) const ITL_P99: Self =
        Self { name: "ITL P99 ms", of: |runs| Some(itl(runs)?.p99), bound: None };
    pub(crate) const ITL_MAX: Self =
        Self { name: "ITL max ms", of: |runs| Some(itl(runs)?.max), bound: None };

    pub(crate) const fn must_be(self, bound: Bound) -> Self {
        Self { bound: Some(bound), ..self }
    }
}

fn throughput(runs: &[&Run]) -> Option<f64> {
    let tokens: u64 = runs.iter().map(|run| run.report.overall.output_tokens).sum();
    let seconds: f64 = runs.iter().map(|run| run.report.duration_s).sum();
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

fn ttft(runs: &[&Run]) -> Option<Summary> {
    let ms = |sample: &Sample| Some(sample.ttft?.as_secs_f64() * 1e3);
    Summary::of(runs.iter().flat_map(|run| run.samples()).filter_map(ms).collect())
}

fn itl(runs: &[&Run]) -> Option<Summary> {
    let samples = runs.iter().flat_map(|run| run.samples());
    let ms = samples.flat_map(|sample| &sample.itl_us).map(|&us| f64::from(us) / 1e3);
    Summary::of(ms.collect())
}

/// A row of a comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    measure: &'static str,
    /// Of all runs of the side together.
    sides: [f64; 2],
    /// Least and most of the side's runs.
    ranges: [[f64; 2]; 2],
    /// Median over pairs of the second side's value in the first's: what the bound is about.
    ratio: f64,
    /// Least and most over pairs.
    ratio_range: [f64; 2],
    /// The ratio of `sides`.
    ratio_of_all: f64,
    bound: Option<Bound>,
    is_met: Option<bool>,
}

impl Row {
    fn of(measure: Measure, pairs: &Pairs) -> Option<Self> {
        let both = [side(&pairs.kept, 0), side(&pairs.kept, 1)];
        let [first, second] = both.each_ref().map(|runs| (measure.of)(runs));
        let sides = [first?, second?];
        let each = both.map(|runs| runs.iter().filter_map(|run| (measure.of)(&[run])).collect());
        let [first, second]: [Vec<f64>; 2] = each;
        let ratios: Vec<f64> = first.iter().zip(&second).map(|(a, b)| b / a).collect();
        let ratio = Summary::of(ratios.clone())?.p50;
        Some(Self {
            measure: measure.name,
            sides,
            ranges: [range(&first), range(&second)],
            ratio,
            ratio_range: range(&ratios),
            ratio_of_all: sides[1] / sides[0],
            bound: measure.bound,
            is_met: measure.bound.map(|bound| bound.is_met(ratio)),
        })
    }
}

fn range(values: &[f64]) -> [f64; 2] {
    let fold = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick).unwrap_or(f64::NAN);
    [fold(f64::min), fold(f64::max)]
}

/// What came of a scenario.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) table: String,
    pub(crate) json: Value,
    /// Whether every bound is met.
    pub(crate) is_met: bool,
}

impl Outcome {
    /// With another one below it, under `name` in the JSON.
    pub(crate) fn and(mut self, name: &str, other: Self) -> Self {
        self.table.push('\n');
        self.table.push_str(&other.table);
        self.json[name] = other.json;
        self.is_met &= other.is_met;
        self
    }

    /// Of two sides in turns.
    pub(crate) fn of_pairs(title: &str, pairs: &Pairs, measures: &[Measure]) -> Self {
        let rows: Vec<Row> =
            measures.iter().filter_map(|&measure| Row::of(measure, pairs)).collect();
        let runs: Vec<_> = pairs.kept.iter().map(|pair| pair.each_ref().map(Run::record)).collect();
        let is_met = rows.iter().all(|row| row.is_met != Some(false));
        Self {
            table: PairsTable { title, pairs, rows: &rows }.to_string(),
            json: json!({
                "title": title,
                "sides": pairs.names,
                "load": pairs.load,
                "rows": rows,
                "runs": runs,
                "thrown_away": pairs.n_thrown_away,
                "is_met": is_met,
            }),
            is_met,
        }
    }
}

struct PairsTable<'a> {
    title: &'a str,
    pairs: &'a Pairs,
    rows: &'a [Row],
}

impl fmt::Display for PairsTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pairs { names: [first, second], load, kept, n_thrown_away } = self.pairs;
        writeln!(
            f,
            "**{}**: {} clients, prompts {}, outputs {}, {} requests a run; {} pairs of runs in turns, {} thrown away\n",
            self.title,
            load.clients,
            load.prompt_tokens,
            load.output_tokens,
            load.requests,
            kept.len(),
            n_thrown_away
        )?;
        writeln!(f, "| measure | {first} | {second} | ratio (pairs) | of all | bound |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for row in self.rows {
            let [a, b] = row.sides;
            let [[a_min, a_max], [b_min, b_max]] = row.ranges;
            let [least, most] = row.ratio_range;
            write!(f, "| {} | {a:.1} ({a_min:.1}–{a_max:.1}) ", row.measure)?;
            write!(f, "| {b:.1} ({b_min:.1}–{b_max:.1}) ")?;
            write!(f, "| {:.3} ({least:.3}–{most:.3}) | {:.3} ", row.ratio, row.ratio_of_all)?;
            writeln!(f, "| {} |", verdict(row.bound, row.is_met))?;
        }
        for (name, index) in [(first, 0), (second, 1)] {
            let runs = side(kept, index);
            let mean = |of: fn(&Run) -> f64| {
                runs.iter().map(|run| of(run)).sum::<f64>() / runs.len().max(1) as f64
            };
            writeln!(
                f,
                "\n{name}: {:.1} different adapters in flight; others used {:.1} % of the machine",
                mean(|run| crate::turns::distinct_in_flight(run.samples())),
                100.0 * mean(|run| run.foreign_share.unwrap_or(f64::NAN))
            )?;
            let churned: Vec<_> = runs.iter().filter_map(|run| run.churned.as_ref()).collect();
            for churned in churned {
                writeln!(f, "  {churned}")?;
            }
        }
        Ok(())
    }
}

/// The cell of a bound.
pub(crate) fn verdict(bound: Option<Bound>, is_met: Option<bool>) -> String {
    match (bound, is_met) {
        (Some(bound), Some(true)) => format!("{bound}: met"),
        (Some(bound), _) => format!("{bound}: **missed**"),
        (None, _) => String::new(),
    }
}
