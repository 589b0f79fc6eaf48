//! Rounds of the loop, and what the gate says of their candidates.

use std::sync::Arc;

use pleach_engine::adapter_weights::AdapterWeights;
use pleach_trainer::{
    Folds, Sample, folds,
    gate::{CheckName, Evidence, Footprint, GateSettings, RowEvidence, Verdict, judge},
};
use serde_json::{Value, json};

use crate::{
    data::{Kind, Labelled},
    workbench::Workbench,
};

/// Rows of the feedback of a round, and whose they are.
pub(crate) struct Feedback<'a> {
    pub(crate) samples: Vec<Sample>,
    pub(crate) groups: Vec<String>,
    /// What trainings go on from.
    pub(crate) current: &'a Arc<AdapterWeights>,
    pub(crate) epochs: usize,
    pub(crate) seed: u32,
}

impl Feedback<'_> {
    /// Its parts.
    pub(crate) fn folds(&self, bench: &Workbench) -> Folds {
        folds(&self.groups, bench.n_folds, u64::from(self.seed))
    }

    /// Of each row, its score under an adapter that learned from no row of its group.
    pub(crate) fn cross_fit(&self, bench: &Workbench) -> Vec<f64> {
        let parts = self.folds(bench);
        let mut scores = vec![f64::NAN; self.samples.len()];
        let pick = |rows: &mut dyn Iterator<Item = usize>| -> Vec<Sample> {
            rows.map(|row| self.samples[row].clone()).collect()
        };
        for fold in 0..parts.n_folds {
            let learned = pick(&mut parts.learned(fold));
            let adapter = bench.train(self.current, &learned, self.epochs, self.seed);
            let found = bench.score(Some(&adapter), pick(&mut parts.held_out(fold)));
            for (row, score) in parts.held_out(fold).zip(found) {
                scores[row] = score.score;
            }
        }
        scores
    }

    /// What was learned from the rows that are wanted.
    pub(crate) fn learn(
        &self,
        bench: &Workbench,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Arc<AdapterWeights> {
        let rows = self.samples.iter().zip(&self.groups);
        let wanted: Vec<_> =
            rows.filter(|(_, group)| is_wanted(group)).map(|(row, _)| row.clone()).collect();
        bench.train(self.current, &wanted, self.epochs, self.seed)
    }

    /// What the gate says of a candidate, given the scores of the cross-fit, whose rows judge, and trusted rows.
    pub(crate) fn verdict(
        &self,
        bench: &mut Workbench,
        scores: &[f64],
        candidate: &Arc<AdapterWeights>,
        judges: impl Fn(&str) -> bool,
        trusted: Vec<Sample>,
        settings: &GateSettings,
    ) -> Verdict {
        let compared = |samples: Vec<Sample>, groups: &[String], of_candidate: &[f64]| {
            let base = bench.score(None, samples.clone());
            let of_current = bench.score(Some(self.current), samples);
            let each = base.iter().zip(&of_current).zip(groups.iter().zip(of_candidate));
            each.map(|((base, current), (group, candidate))| RowEvidence {
                group: group.clone(),
                n_targets: base.n_targets,
                base: base.score,
                current: current.score,
                best: None,
                candidate: *candidate,
            })
            .collect::<Vec<_>>()
        };
        let of_trusted = bench.score(Some(candidate), trusted.clone());
        let of_trusted: Vec<f64> = of_trusted.iter().map(|score| score.score).collect();
        let each_its_own: Vec<String> = (0..trusted.len()).map(|row| row.to_string()).collect();
        let footprint = Footprint { latency_p95_s: 1.0, adapter_bytes: 1 };
        let mut held_out = compared(self.samples.clone(), &self.groups, scores);
        held_out.retain(|row| judges(&row.group));
        let evidence = Evidence {
            held_out,
            anchors: Some(compared(trusted, &each_its_own, &of_trusted)),
            best_generation: None,
            probes: bench.probes(candidate),
            candidate: footprint,
            current: footprint,
        };
        judge(&evidence, settings, 1)
    }
}

/// A round from the current generation on, and what the gate says of it.
pub(crate) fn round(
    bench: &mut Workbench,
    current: &Arc<AdapterWeights>,
    rows: &[Labelled],
    anchors: &[Labelled],
    kind: Kind,
    settings: &GateSettings,
    seed: u32,
) -> Verdict {
    let feedback = Feedback {
        samples: bench.samples(rows, kind, seed),
        groups: (0..rows.len()).map(|row| row.to_string()).collect(),
        current,
        // What learns nothing is what it was.
        epochs: if kind == Kind::Same { 0 } else { bench.epochs },
        seed,
    };
    let scores = feedback.cross_fit(bench);
    let candidate = feedback.learn(bench, |_| true);
    let trusted = bench.samples(anchors, Kind::Clean, seed + 1_000_000);
    feedback.verdict(bench, &scores, &candidate, |_| true, trusted, settings)
}

/// Verdicts of one kind.
pub(crate) fn told(verdicts: &[Verdict]) -> Value {
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
