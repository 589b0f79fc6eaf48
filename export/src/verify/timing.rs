//! Times of both runtimes with the same number of threads: prefill, decode, and decode of a batch. Ours computes as it
//! serves, with int8 activations. Each step ends with its greedy token; what came before is warm.

use std::time::Instant;

use hdrhistogram::Histogram;
use pleach_engine::{backend::RunError, model::Activations, step_batch::AdapterSlot};

use super::{
    Subject,
    difference::argmax,
    error::VerifyError,
    memory,
    native::{Native, Part},
    report::{Latency, Memory, Report},
    session::{Bound, Cache, OnnxModel, Rows, run_options},
};
use crate::export::NamedAdapter;

/// Steps before times count.
const WARM_UP: usize = 20;
/// Prefills are slow: one in so many decode steps is timed.
const DECODES_PER_PREFILL: usize = 10;
const PREFILLS_MIN: usize = 5;

/// How much is read.
#[derive(Clone, Copy)]
struct Sizes {
    prompt: usize,
    steps: usize,
    batch: usize,
    /// Tokens of a sequence; decode begins again behind the prompt when they are used up.
    tokens_max: usize,
}

impl Sizes {
    fn of(subject: &Subject<'_>) -> Self {
        let (options, context) = (subject.options, subject.spec.context);
        let prompt = options.prompt_tokens.clamp(1, context / 2);
        let tokens_max = context.min(prompt + options.steps + WARM_UP);
        Self { prompt, steps: options.steps, batch: options.batch, tokens_max }
    }

    fn prefills(self) -> usize {
        (self.steps / DECODES_PER_PREFILL).max(PREFILLS_MIN)
    }

    /// Position of a decode step.
    fn position(self, step: usize) -> usize {
        self.prompt + step % (self.tokens_max - self.prompt)
    }
}

/// Tokens without meaning: times do not depend on them.
fn token(subject: &Subject<'_>, sequence: usize, position: usize) -> u32 {
    let vocab = subject.spec.vocab;
    u32::try_from((sequence * 131 + position * 7919 + 17) % vocab).unwrap_or_default()
}

fn tokens(subject: &Subject<'_>, sequence: usize, n: usize) -> Vec<u32> {
    (0..n).map(|position| token(subject, sequence, position)).collect()
}

pub(super) fn time(subject: &Subject<'_>, report: &mut Report) -> Result<(), VerifyError> {
    let sizes = Sizes::of(subject);
    let batch = sizes.batch.max(1);
    let shape = [batch, sizes.tokens_max, sizes.prompt * batch];
    // Both stay open, so that neither gets the memory that the other had, and take turns, so that both meet the same
    // noise.
    let mut of_native = Measured::new("pleach int8".to_owned());
    let mut native = of_native
        .open(|| Native::load(subject.file, Activations::Int8, subject.options.threads, shape))?;
    let mut of_onnx = Measured::new(format!("ONNX Runtime {}", subject.manifest.precision));
    let level = subject.manifest.accuracy_level;
    let mut model = of_onnx.open(|| OnnxModel::open(subject, subject.folder, level))?;
    for variant in subject.variants() {
        let slot = variant.map(|named| native.install(&named.adapter.weights)).transpose()?;
        for step in Step::all(sizes) {
            let mut ours = TimedNative { subject, sizes, native: &mut native, slot };
            let times = of_native.run(|| ours.time(step))?;
            report.tell(&of_native.runtime, variant, step.to_string(), &times);
            let mut theirs = TimedOnnx { subject, sizes, model: &mut model, adapter: variant };
            let times = of_onnx.run(|| theirs.time(step))?;
            report.tell(&of_onnx.runtime, variant, step.to_string(), &times);
        }
        if let Some(slot) = slot {
            native.remove(slot);
        }
    }
    report.memory.extend([of_native, of_onnx].into_iter().filter_map(Measured::finish));
    Ok(())
}

/// What is timed.
#[derive(Clone, Copy)]
enum Step {
    Prefill(usize),
    Decode(usize),
    RaggedPrefill(usize),
}

impl Step {
    fn all(sizes: Sizes) -> Vec<Self> {
        let mut steps = vec![Self::Prefill(sizes.prompt), Self::Decode(1)];
        if sizes.batch > 1 {
            steps.extend([Self::Decode(sizes.batch), Self::RaggedPrefill(sizes.batch)]);
        }
        steps
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prefill(tokens) => write!(f, "prefill {tokens}"),
            Self::Decode(1) => f.write_str("decode"),
            Self::Decode(batch) => write!(f, "decode, batch of {batch}"),
            Self::RaggedPrefill(batch) => write!(f, "prefill, ragged batch of {batch}"),
        }
    }
}

/// Lengths of the sequences of a ragged batch: from the whole prompt down to a part of it.
fn ragged_lengths(sizes: Sizes) -> Vec<usize> {
    (0..sizes.batch).map(|i| (sizes.prompt * (sizes.batch - i) / sizes.batch).max(1)).collect()
}

struct TimedOnnx<'a> {
    subject: &'a Subject<'a>,
    sizes: Sizes,
    model: &'a mut OnnxModel,
    adapter: Option<&'a NamedAdapter>,
}

/// Where keys and values are.
enum Past {
    InPlace(Box<Bound>),
    Growing(Cache),
}

impl TimedOnnx<'_> {
    fn time(&mut self, step: Step) -> Result<Times, VerifyError> {
        match step {
            Step::Prefill(_) => self.prefill(),
            Step::Decode(batch) => self.decode(batch),
            Step::RaggedPrefill(_) => self.ragged(),
        }
    }

    fn given(&self) -> Option<&NamedAdapter> {
        self.adapter.filter(|_| self.subject.is_given())
    }

    fn past(&self, batch: usize) -> Result<Past, VerifyError> {
        let bound = self.model.bound(self.subject, batch, self.sizes.tokens_max, self.given())?;
        match bound {
            Some(bound) => Ok(Past::InPlace(Box::new(bound))),
            None => Ok(Past::Growing(self.model.cache(batch)?)),
        }
    }

    fn options(&self) -> Result<ort::session::RunOptions, VerifyError> {
        let file = self.given().and_then(|adapter| {
            let file = self.subject.manifest.adapters.get(&adapter.name)?.file.as_ref()?;
            Some(self.subject.path(file))
        });
        run_options(file.as_deref())
    }

    /// Reads rows behind `at` tokens; the greedy token behind the last row of the first sequence.
    fn run(
        &mut self,
        rows: &Rows<'_>,
        at: usize,
        past: &mut Past,
        options: &ort::session::RunOptions,
    ) -> Result<usize, VerifyError> {
        let (n_rows, vocab) = (rows.tokens[0].len(), self.subject.spec.vocab);
        let last = |logits: &[f32]| argmax(&logits[(n_rows - 1) * vocab..n_rows * vocab]);
        match past {
            Past::InPlace(bound) => self.model.run_bound(rows, at, bound, last),
            Past::Growing(cache) => Ok(last(&self.model.run(rows, cache, options)?)),
        }
    }

    fn prefill(&mut self) -> Result<Times, VerifyError> {
        let (prompt, options) = ([tokens(self.subject, 0, self.sizes.prompt)], self.options()?);
        let rows = Rows { tokens: &prompt, lengths: &[self.sizes.prompt] };
        let mut times = Times::default();
        for index in 0..=self.sizes.prefills() {
            let mut past = self.past(1)?;
            let began = Instant::now();
            self.run(&rows, 0, &mut past, &options)?;
            times.add(began, index == 0);
        }
        Ok(times)
    }

    fn decode(&mut self, batch: usize) -> Result<Times, VerifyError> {
        let options = self.options()?;
        let prompts: Vec<_> =
            (0..batch).map(|s| tokens(self.subject, s, self.sizes.prompt)).collect();
        let mut times = Times::default();
        let mut past = None;
        for step in 0..WARM_UP + self.sizes.steps {
            let at = self.sizes.position(step);
            if at == self.sizes.prompt || past.is_none() {
                let mut begun = self.past(batch)?;
                let rows = Rows { tokens: &prompts, lengths: &vec![at; batch] };
                self.run(&rows, 0, &mut begun, &options)?;
                past = Some(begun);
            }
            let Some(past) = past.as_mut() else { continue };
            let next: Vec<_> = (0..batch).map(|s| vec![token(self.subject, s, at)]).collect();
            let rows = Rows { tokens: &next, lengths: &vec![at + 1; batch] };
            let began = Instant::now();
            self.run(&rows, at, past, &options)?;
            times.add(began, step < WARM_UP);
        }
        Ok(times)
    }

    /// Prompts of several lengths in one run, filled up.
    fn ragged(&mut self) -> Result<Times, VerifyError> {
        let (lengths, options) = (ragged_lengths(self.sizes), self.options()?);
        let prompts: Vec<_> =
            (0..lengths.len()).map(|s| tokens(self.subject, s, self.sizes.prompt)).collect();
        let rows = Rows { tokens: &prompts, lengths: &lengths };
        let mut times = Times::default();
        for index in 0..=PREFILLS_MIN {
            let mut past = Past::Growing(self.model.cache(lengths.len())?);
            let began = Instant::now();
            self.run(&rows, 0, &mut past, &options)?;
            times.add(began, index == 0);
        }
        Ok(times)
    }
}

struct TimedNative<'a> {
    subject: &'a Subject<'a>,
    sizes: Sizes,
    native: &'a mut Native,
    slot: Option<AdapterSlot>,
}

impl TimedNative<'_> {
    fn time(&mut self, step: Step) -> Result<Times, RunError> {
        match step {
            Step::Prefill(_) => self.prefill(),
            Step::Decode(batch) => self.decode(batch),
            Step::RaggedPrefill(_) => self.ragged(),
        }
    }

    /// Prompts of these lengths, each a sequence of its own, in one step.
    fn read(&mut self, prompts: &[Vec<u32>]) -> Result<(), RunError> {
        let part = |(sequence, tokens): (usize, &Vec<u32>)| (sequence, tokens.clone());
        let prompts: Vec<_> = prompts.iter().enumerate().map(part).collect();
        let parts: Vec<Part<'_>> = prompts
            .iter()
            .map(|(sequence, tokens)| Part {
                sequence: *sequence,
                tokens,
                first: 0,
                adapter: self.slot,
            })
            .collect();
        self.native.step(&parts, false).map(drop)
    }

    fn prefill(&mut self) -> Result<Times, RunError> {
        let prompt = [tokens(self.subject, 0, self.sizes.prompt)];
        let mut times = Times::default();
        for index in 0..=self.sizes.prefills() {
            let began = Instant::now();
            self.read(&prompt)?;
            times.add(began, index == 0);
        }
        Ok(times)
    }

    fn decode(&mut self, batch: usize) -> Result<Times, RunError> {
        let prompts: Vec<_> =
            (0..batch).map(|s| tokens(self.subject, s, self.sizes.prompt)).collect();
        self.read(&prompts)?;
        let mut times = Times::default();
        for step in 0..WARM_UP + self.sizes.steps {
            let at = self.sizes.position(step);
            let next: Vec<_> = (0..batch).map(|s| [token(self.subject, s, at)]).collect();
            let parts: Vec<Part<'_>> = next
                .iter()
                .enumerate()
                .map(|(sequence, tokens)| Part { sequence, tokens, first: at, adapter: self.slot })
                .collect();
            let began = Instant::now();
            self.native.step(&parts, false)?;
            times.add(began, step < WARM_UP);
        }
        Ok(times)
    }

    /// Prompts of several lengths in one step, as they are.
    fn ragged(&mut self) -> Result<Times, RunError> {
        let lengths = ragged_lengths(self.sizes);
        let prompts: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(sequence, &n)| tokens(self.subject, sequence, n))
            .collect();
        let mut times = Times::default();
        for index in 0..=PREFILLS_MIN {
            let began = Instant::now();
            self.read(&prompts)?;
            times.add(began, index == 0);
        }
        Ok(times)
    }
}

/// Nanoseconds, with three digits.
struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        const DIGITS: u8 = 3;
        Self(Histogram::new(DIGITS).unwrap_or_else(|error| unreachable!("three digits: {error}")))
    }
}

impl Times {
    fn add(&mut self, began: Instant, is_warm_up: bool) {
        let time = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if !is_warm_up {
            // It grows by itself.
            let _ = self.0.record(time);
        }
    }

    fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e6
    }
}

impl Report {
    fn tell(&mut self, runtime: &str, adapter: Option<&NamedAdapter>, what: String, times: &Times) {
        self.latencies.push(Latency {
            runtime: runtime.to_owned(),
            adapter: adapter.map(|adapter| adapter.name.clone()),
            what,
            n: usize::try_from(times.0.len()).unwrap_or(usize::MAX),
            p50_ms: times.ms(0.5),
            p95_ms: times.ms(0.95),
            p99_ms: times.ms(0.99),
        });
    }
}

/// One runtime's memory.
struct Measured {
    runtime: String,
    opened: Option<u64>,
    /// The most that a step needed above what was resident before it.
    more: u64,
}

impl Measured {
    fn new(runtime: String) -> Self {
        Self { runtime, opened: None, more: 0 }
    }

    fn open<T>(&mut self, open: impl FnOnce() -> T) -> T {
        let before = memory::resident();
        let opened = open();
        let grown = |after: u64| Some(after.saturating_sub(before?));
        self.opened = memory::resident().and_then(grown);
        opened
    }

    fn run<T>(&mut self, run: impl FnOnce() -> T) -> T {
        memory::reset_peak();
        let before = memory::resident();
        let result = run();
        if let (Some(before), Some(peak)) = (before, memory::peak()) {
            self.more = self.more.max(peak.saturating_sub(before));
        }
        result
    }

    fn finish(self) -> Option<Memory> {
        let opened_bytes = self.opened?;
        Some(Memory { runtime: self.runtime, opened_bytes, peak_bytes: opened_bytes + self.more })
    }
}
