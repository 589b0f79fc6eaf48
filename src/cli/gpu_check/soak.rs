//! Thousands of replayed decode steps while adapters come and go: every token must be the one of a run alone.

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::{RunError, StepRunner as _},
    cuda::CudaBackend,
    model::{Decoder, random_adapter},
    packed_adapter::PackedAdapter,
    step_batch::AdapterSlot,
};

use super::step::{MARGIN, Row, Sequence, step};

/// Decode steps under churn.
pub(super) const REPLAYS: usize = 10_000;
/// Tokens of a sequence.
const TOKENS: usize = 48;
/// Sequences that decode at a time, at most: several buckets of rows.
const RUNNING_MAX: usize = 12;
/// Adapters made up beside the given ones.
const RANDOM_ADAPTERS: u32 = 6;

/// What a sequence gives alone, kernel by kernel: its tokens, and by how much each was the likeliest.
struct Alone {
    tokens: Vec<u32>,
    margins: Vec<f32>,
}

struct Running {
    sequence: Sequence,
    kind: usize,
}

/// Kinds of sequences: base, the given adapters, made-up ones. Prompts differ by kind.
fn prompt(kind: usize, place: usize, vocab: usize, adapter: Option<AdapterSlot>) -> Sequence {
    Sequence::of_prompt(place, kind, 5 + 3 * kind, vocab, adapter)
}

/// See the module.
pub(super) fn soak(
    gpu: &mut Decoder<CudaBackend>,
    adapters: &[AdapterWeights],
) -> Result<Row, RunError> {
    let vocab = gpu.spec().vocab;
    // Packed once: adapters of some kinds take long.
    let packer = gpu.adapter_packer();
    let mut kinds: Vec<Option<PackedAdapter>> = vec![None];
    for weights in adapters {
        kinds.push(Some(packer.pack(weights)?));
    }
    for seed in 0..RANDOM_ADAPTERS {
        let weights = random_adapter(gpu.spec(), 4 + 12 * seed as usize, seed);
        kinds.push(Some(packer.pack(&weights)?));
    }
    let alone: Vec<Alone> = kinds
        .iter()
        .enumerate()
        .map(|(kind, adapter)| run_alone(gpu, kind, adapter.as_ref(), vocab))
        .collect::<Result<_, _>>()?;

    let mut slots: Vec<Option<AdapterSlot>> = vec![None; kinds.len()];
    let mut running: Vec<Running> = Vec::new();
    let mut free: Vec<usize> = (0..RUNNING_MAX).collect();
    let mut random = 1u64;
    let mut draw = |n: usize| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % n
    };
    let (mut steps, mut tokens, mut wrong, mut close, mut swaps) = (0, 0, 0usize, 0usize, 0);
    while steps < REPLAYS {
        // Sometimes a burst of new sequences, so that the buckets vary.
        let wanted =
            if running.is_empty() { 1 + draw(RUNNING_MAX) } else { usize::from(draw(4) == 0) };
        for _ in 0..wanted.min(free.len()) {
            let kind = draw(kinds.len());
            if let (Some(adapter), None) = (&kinds[kind], slots[kind]) {
                slots[kind] = Some(gpu.adapters().install(adapter)?);
                swaps += 1;
            }
            let Some(place) = free.pop() else { break };
            let mut sequences = [prompt(kind, place, vocab, slots[kind])];
            // All but the last token of the prompt; that one is the first decode step.
            let length = sequences[0].tokens.len() - 1;
            step(gpu, &mut sequences, length, None)?;
            let [sequence] = sequences;
            running.push(Running { sequence, kind });
        }
        let mut sequences: Vec<Sequence> =
            running.iter().map(|running| running.sequence.clone()).collect();
        let sampled = step(gpu, &mut sequences, 1, None)?;
        steps += 1;
        for ((running, sequence), sampled) in running.iter_mut().zip(sequences).zip(&sampled) {
            running.sequence = sequence;
            let index = running.sequence.n_generated();
            let Alone { tokens: expected, margins } = &alone[running.kind];
            if sampled.token != expected[index] {
                wrong += usize::from(margins[index] > MARGIN);
                close += usize::from(margins[index] <= MARGIN);
            }
            tokens += 1;
            running.sequence.tokens.push(expected[index]);
        }
        running.retain(|running| {
            let goes_on = running.sequence.n_generated() < TOKENS;
            if !goes_on {
                free.push(running.sequence.index);
            }
            goes_on
        });
        // An adapter that nobody uses goes, now and then: its memory is soon another's.
        let kind = draw(kinds.len());
        if running.iter().all(|running| running.kind != kind)
            && let Some(slot) = slots[kind].take()
        {
            gpu.remove_adapter(slot);
        }
    }
    for slot in slots.into_iter().flatten() {
        gpu.remove_adapter(slot);
    }
    Ok(Row {
        what: format!("{steps} decode steps under churn of {} adapters", kinds.len() - 1),
        found: format!(
            "{tokens} tokens, {wrong} wrong, {close} at near ties; {swaps} adapters uploaded, {} graphs",
            gpu.backend_mut().n_graphs()
        ),
        pass: wrong == 0,
    })
}

fn run_alone(
    gpu: &mut Decoder<CudaBackend>,
    kind: usize,
    adapter: Option<&PackedAdapter>,
    vocab: usize,
) -> Result<Alone, RunError> {
    let slot = adapter.map(|adapter| gpu.adapters().install(adapter)).transpose()?;
    gpu.backend_mut().use_graphs(false);
    let mut sequences = [prompt(kind, 0, vocab, slot)];
    let length = sequences[0].tokens.len() - 1;
    step(gpu, &mut sequences, length, None)?;
    let mut alone = Alone { tokens: Vec::new(), margins: Vec::new() };
    for _ in 0..TOKENS {
        let sampled = step(gpu, &mut sequences, 1, Some(2))?;
        alone.tokens.push(sampled[0].token);
        alone.margins.push(sampled[0].top[0].1 - sampled[0].top[1].1);
        sequences[0].tokens.push(sampled[0].token);
    }
    gpu.backend_mut().use_graphs(true);
    if let Some(slot) = slot {
        gpu.remove_adapter(slot);
    }
    Ok(alone)
}
