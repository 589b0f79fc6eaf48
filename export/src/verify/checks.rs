//! Every way of reading the same tokens, against our engine's exact products.

use std::path::Path;

use ort::session::RunOptions;
use pleach_engine::model::Activations;

use super::{
    Subject,
    cases::{Cases, EXACT_CASES},
    difference::Difference,
    error::VerifyError,
    native::Native,
    report::{Check, Limit, Report},
    session::{OnnxModel, Rows, run_options},
};
use crate::{
    export::{ExportOptions, LoraExport, NamedAdapter, export_onnx},
    weights::Precision,
};

/// Rows of a chunk; not a power of two.
const CHUNK_ROWS: usize = 7;
/// Sequences of a ragged batch.
const RAGGED_BATCH: usize = 4;

/// A sequence and what our engine says of each of its tokens.
struct Expected {
    tokens: Vec<u32>,
    n_prompt: usize,
    /// `[tokens, vocab]`.
    logits: Vec<f32>,
}

pub(super) fn check(
    subject: &Subject<'_>,
    cases: &Cases,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let manifest = subject.manifest;
    // Blocks of codes are exact if activations are not rounded. What rounding costs, our own engine tells.
    let is_rounded = manifest.precision != Precision::F32 && manifest.accuracy_level > 0;
    let prompts = cases.prompts(is_rounded);
    let longest = prompts.iter().map(Vec::len).max().unwrap_or_default();
    let sizes = [1, longest + cases.answer_tokens, 1];
    let threads = subject.options.threads;
    let mut native = Native::load(subject.file, Activations::F32, threads, sizes)?;
    let mut model = OnnxModel::open(subject, subject.folder, manifest.accuracy_level)?;
    let mut unrounded =
        if is_rounded { Some(OnnxModel::open(subject, subject.folder, 0)?) } else { None };
    let mut int8 = if is_rounded {
        Some(Native::load(subject.file, Activations::Int8, threads, sizes)?)
    } else {
        None
    };
    for variant in subject.variants() {
        let expected = expected(&mut native, prompts, cases.answer_tokens, variant)?;
        let file = variant.filter(|_| subject.is_given()).and_then(|adapter| {
            Some(subject.path(manifest.adapters.get(&adapter.name)?.file.as_ref()?))
        });
        let mut checks = Checks { subject, variant, expected: &expected, report: &mut *report };
        let options = run_options(file.as_deref())?;
        if let Some(int8) = &mut int8 {
            checks.ours(int8)?;
        }
        let limit = Limit::of(manifest, is_rounded);
        checks.prefill(&mut model, &options, "prefill", limit)?;
        checks.in_chunks(&mut model, &options, "chunked prefill", CHUNK_ROWS, limit)?;
        checks.in_chunks(&mut model, &options, "decode", 1, limit)?;
        checks.ragged(&mut model, &options, limit)?;
        if let Some(unrounded) = &mut unrounded {
            let limit = Limit::of(manifest, false);
            checks.expected = &expected[..EXACT_CASES.min(expected.len())];
            checks.prefill(unrounded, &options, "prefill, accuracy level 0", limit)?;
        }
        if let Some(adapter) = variant.filter(|_| subject.is_given() && subject.options.merged) {
            checks.merged(&mut model, &options, adapter)?;
        }
    }
    Ok(())
}

fn expected(
    native: &mut Native,
    prompts: &[Vec<u32>],
    answer_tokens: usize,
    variant: Option<&NamedAdapter>,
) -> Result<Vec<Expected>, VerifyError> {
    let slot = variant.map(|named| native.install(&named.adapter.weights)).transpose()?;
    let mut all = Vec::new();
    for prompt in prompts {
        let tokens = native.continued(prompt, answer_tokens, slot)?;
        let logits = native.logits(&tokens, slot)?;
        all.push(Expected { tokens, n_prompt: prompt.len(), logits });
    }
    if let Some(slot) = slot {
        native.remove(slot);
    }
    Ok(all)
}

struct Checks<'a> {
    subject: &'a Subject<'a>,
    variant: Option<&'a NamedAdapter>,
    expected: &'a [Expected],
    report: &'a mut Report,
}

impl Checks<'_> {
    fn vocab(&self) -> usize {
        self.subject.spec.vocab
    }

    fn tell(&mut self, what: &str, difference: Difference, limit: Limit) {
        let adapter = self.variant.map(|adapter| adapter.name.clone());
        self.report.checks.push(Check::new(adapter, what, difference, limit));
    }

    /// Our engine as it serves.
    fn ours(&mut self, int8: &mut Native) -> Result<(), VerifyError> {
        let slot = self.variant.map(|named| int8.install(&named.adapter.weights)).transpose()?;
        let mut difference = Difference::default();
        for expected in self.expected {
            let logits = int8.logits(&expected.tokens, slot)?;
            difference.add(&expected.logits, &logits, self.vocab());
        }
        if let Some(slot) = slot {
            int8.remove(slot);
        }
        self.tell("pleach int8", difference, Limit::None);
        Ok(())
    }

    /// All tokens at once.
    fn prefill(
        &mut self,
        model: &mut OnnxModel,
        options: &RunOptions,
        what: &str,
        limit: Limit,
    ) -> Result<(), VerifyError> {
        let mut difference = Difference::default();
        for expected in self.expected {
            let logits = read(model, options, &expected.tokens, expected.tokens.len())?;
            difference.add(&expected.logits, &logits, self.vocab());
        }
        self.tell(what, difference, limit);
        Ok(())
    }

    /// So many tokens at a time, into the cache; one at a time, the prompt goes first as a whole.
    fn in_chunks(
        &mut self,
        model: &mut OnnxModel,
        options: &RunOptions,
        what: &str,
        rows: usize,
        limit: Limit,
    ) -> Result<(), VerifyError> {
        let mut difference = Difference::default();
        for expected in self.expected {
            let first = if rows == 1 { expected.n_prompt } else { rows };
            let mut cache = model.cache(1)?;
            let (start, rest) = expected.tokens.split_at(first.min(expected.tokens.len()));
            let mut done = 0;
            for chunk in [start].into_iter().chain(rest.chunks(rows)) {
                let end = done + chunk.len();
                let of_chunk = Rows { tokens: &[chunk.to_vec()], lengths: &[end] };
                let logits = model.run(&of_chunk, &mut cache, options)?;
                let wanted = &expected.logits[done * self.vocab()..end * self.vocab()];
                difference.add(wanted, &logits, self.vocab());
                done = end;
            }
        }
        self.tell(what, difference, limit);
        Ok(())
    }

    /// Some prompts in one run, the shorter ones filled up.
    fn ragged(
        &mut self,
        model: &mut OnnxModel,
        options: &RunOptions,
        limit: Limit,
    ) -> Result<(), VerifyError> {
        let mut difference = Difference::default();
        for batch in self.expected.chunks(RAGGED_BATCH) {
            let lengths: Vec<usize> = batch.iter().map(|expected| expected.tokens.len()).collect();
            let longest = lengths.iter().copied().max().unwrap_or_default();
            let filled = |expected: &Expected| {
                let mut tokens = expected.tokens.clone();
                tokens.resize(longest, 0);
                tokens
            };
            let tokens: Vec<Vec<u32>> = batch.iter().map(filled).collect();
            let mut cache = model.cache(tokens.len())?;
            let rows = Rows { tokens: &tokens, lengths: &lengths };
            let logits = model.run(&rows, &mut cache, options)?;
            for (expected, found) in batch.iter().zip(logits.chunks(longest * self.vocab())) {
                let found = &found[..expected.logits.len()];
                difference.add(&expected.logits, found, self.vocab());
            }
        }
        self.tell("ragged batch", difference, limit);
        Ok(())
    }

    /// The adapter as inputs against the same adapter in the weights.
    fn merged(
        &mut self,
        model: &mut OnnxModel,
        options: &RunOptions,
        adapter: &NamedAdapter,
    ) -> Result<(), VerifyError> {
        let manifest = self.subject.manifest;
        let export = ExportOptions {
            form: manifest.form,
            precision: manifest.precision,
            accuracy_level: manifest.accuracy_level,
            f32_activations: manifest.f32_activations(),
            lora: LoraExport::Merged(adapter.name.clone()),
        };
        let folder = Temporary::new(&adapter.name);
        export_onnx(self.subject.file, std::slice::from_ref(adapter), &export, &folder.0)?;
        let mut merged = OnnxModel::open(self.subject, &folder.0, manifest.accuracy_level)?;
        let plain = run_options(None)?;
        let mut difference = Difference::default();
        for expected in self.expected {
            let n = expected.n_prompt;
            let of_inputs = read(model, options, &expected.tokens, n)?;
            let of_weights = read(&mut merged, &plain, &expected.tokens, n)?;
            difference.add(&of_weights, &of_inputs, self.vocab());
        }
        // Merged weights are quantized anew.
        let limit = match manifest.precision {
            Precision::F32 => Limit::of(manifest, false),
            Precision::Int4 | Precision::Int8 => Limit::LOSSY,
        };
        self.tell("as inputs against merged", difference, limit);
        Ok(())
    }
}

/// Logits of the first `n` tokens, read at once.
fn read(
    model: &mut OnnxModel,
    options: &RunOptions,
    tokens: &[u32],
    n: usize,
) -> Result<Vec<f32>, VerifyError> {
    let mut cache = model.cache(1)?;
    model.run(&Rows { tokens: &[tokens[..n].to_vec()], lengths: &[n] }, &mut cache, options)
}

/// A folder that goes when it is dropped.
struct Temporary(std::path::PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let name = format!("pleach-merged-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(Path::new(&name)))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What is left is the system's to clean.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
