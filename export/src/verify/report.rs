//! What was found, for people and for programs.

use pleach_engine::cpu::Isa;
use serde::Serialize;

use super::{Subject, difference::Difference};
use crate::{
    decoder::Form,
    folder::{Lora, Manifest},
    weights::{Precision, WeightsWritten},
};

/// Largest difference of a logit where both compute in f32.
const EXACT_LOGIT_MAX: f32 = 1e-3;
/// Mean divergence where activations are rounded to int8.
const ROUNDED_KL_MAX: f64 = 5e-3;
/// Share of equal likeliest tokens there, where the choice is clear.
const ROUNDED_TOP1_MIN: f64 = 0.97;
/// Mean divergence where weights are quantized anew.
const LOSSY_KL_MAX: f64 = 0.1;
/// Share of equal likeliest tokens there.
const LOSSY_TOP1_MIN: f64 = 0.8;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether every check is within its limit.
    pub passed: bool,
    /// Version of pleach.
    pub pleach: String,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// Its library.
    pub library: String,
    /// As the system names it.
    pub processor: Option<String>,
    /// Kernels of our engine.
    pub kernels: String,
    /// Of both.
    pub threads: usize,
    /// Whether ONNX Runtime's threads spin while they wait; ours do not.
    pub spinning: bool,
    /// Of the graph.
    pub form: Form,
    /// Of the weights.
    pub precision: Precision,
    /// Of products.
    pub accuracy_level: u8,
    /// Modules whose activations stay in f32 all the same.
    pub f32_activations: Vec<String>,
    /// Adapters' form.
    pub lora: Lora,
    /// Name of the base.
    pub base: String,
    /// SHA-256 of its file.
    pub base_sha256: String,
    /// What became of the weights.
    pub weights: Vec<WeightsWritten>,
    /// Comparisons.
    pub checks: Vec<Check>,
    /// Times.
    pub latencies: Vec<Latency>,
    /// What each runtime takes.
    pub memory: Vec<Memory>,
}

/// One way of reading the same tokens, against our engine in f32.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Name of the adapter, none for the base.
    pub adapter: Option<String>,
    /// How they were read.
    pub what: String,
    /// Rows of logits.
    pub rows: usize,
    /// Largest absolute difference of a logit.
    pub logit_max: f32,
    /// Mean Kullback–Leibler divergence, nats.
    pub kl: f64,
    /// Share of rows with the same likeliest token.
    pub top1: f64,
    /// The same over rows whose two likeliest tokens are 0.05 nats apart or more.
    pub clear_top1: f64,
    /// What is allowed.
    pub limit: Limit,
    /// Whether it is kept to.
    pub passed: bool,
}

/// What a check allows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Largest difference of a logit.
    LogitMax(f32),
    /// Told for comparison.
    None,
    /// Largest mean divergence, smallest share of equal likeliest tokens where the choice is clear.
    Distribution {
        /// Nats.
        kl_max: f64,
        /// Share.
        top1_min: f64,
    },
}

impl Limit {
    /// Where weights were quantized anew.
    pub(super) const LOSSY: Self =
        Self::Distribution { kl_max: LOSSY_KL_MAX, top1_min: LOSSY_TOP1_MIN };

    /// Of the manifest's weights, with rounded activations or without.
    pub(super) fn of(manifest: &Manifest, is_rounded: bool) -> Self {
        match (manifest.is_exact(), is_rounded) {
            (true, false) => Self::LogitMax(EXACT_LOGIT_MAX),
            (true, true) => {
                Self::Distribution { kl_max: ROUNDED_KL_MAX, top1_min: ROUNDED_TOP1_MIN }
            }
            (false, _) => Self::LOSSY,
        }
    }

    fn allows(self, difference: &Difference) -> bool {
        match self {
            Self::None => true,
            Self::LogitMax(max) => difference.logit_max <= max,
            Self::Distribution { kl_max, top1_min } => {
                difference.kl() <= kl_max && difference.clear_top1() >= top1_min
            }
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("for comparison"),
            Self::LogitMax(max) => write!(f, "logit {max:.0e}"),
            Self::Distribution { kl_max, top1_min } => {
                write!(f, "KL {kl_max:.1e}, clear top-1 {:.1} %", 100.0 * top1_min)
            }
        }
    }
}

impl Check {
    pub(super) fn new(
        adapter: Option<String>,
        what: &str,
        difference: Difference,
        limit: Limit,
    ) -> Self {
        Self {
            adapter,
            what: what.to_owned(),
            rows: difference.rows,
            logit_max: difference.logit_max,
            kl: difference.kl(),
            top1: difference.top1(),
            clear_top1: difference.clear_top1(),
            limit,
            passed: limit.allows(&difference),
        }
    }
}

/// Times of one kind of step.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// `ONNX Runtime int4`, `pleach int8`.
    pub runtime: String,
    /// Name of the adapter, none for the base.
    pub adapter: Option<String>,
    /// What was timed.
    pub what: String,
    /// So many times, after a warm-up.
    pub n: usize,
    /// Milliseconds.
    pub p50_ms: f64,
    /// Milliseconds.
    pub p95_ms: f64,
    /// Milliseconds.
    pub p99_ms: f64,
}

/// What one runtime takes of memory while it is timed.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// As in [`Latency`].
    pub runtime: String,
    /// Bytes that became resident when the model was opened.
    pub opened_bytes: u64,
    /// That, and the most that a timed step needed besides.
    pub peak_bytes: u64,
}

impl Report {
    pub(super) fn new(subject: &Subject<'_>) -> Self {
        let Subject { manifest, runtime, options, .. } = *subject;
        Self {
            passed: false,
            pleach: env!("CARGO_PKG_VERSION").to_owned(),
            onnxruntime: runtime.version().to_owned(),
            library: runtime.path().display().to_string(),
            processor: processor(),
            kernels: Isa::detect().to_string(),
            threads: options.threads,
            spinning: options.spinning,
            form: manifest.form,
            precision: manifest.precision,
            accuracy_level: manifest.accuracy_level,
            f32_activations: manifest.f32_activations.clone(),
            lora: manifest.lora,
            base: manifest.base.name.clone(),
            base_sha256: manifest.base.sha256.clone(),
            weights: manifest.weights.clone(),
            checks: Vec::new(),
            latencies: Vec::new(),
            memory: Vec::new(),
        }
    }

    pub(super) fn judge(&mut self) {
        self.passed = !self.checks.is_empty() && self.checks.iter().all(|check| check.passed);
    }
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}
