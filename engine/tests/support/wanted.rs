//! Sequences to run, and what they gave, bit for bit.

use std::{ops::RangeInclusive, sync::Arc};

use pleach_engine::{
    adapter_weights::{AdapterWeights, OwnMatrix, SiteWeights},
    kv::{KV_BLOCK_TOKENS, kv_blocks_for},
    sampler::{SampledToken, SamplingParams},
    site::{Site, TargetModule},
    spec::ModelSpec,
    step_batch::AdapterSlot,
};

use super::random::Random;

/// Likeliest tokens whose log-probabilities are compared too.
const N_TOP: u32 = 5;

/// A sequence to run.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) prompt: Vec<u32>,
    pub(crate) adapter: Option<AdapterSlot>,
    pub(crate) n_tokens: usize,
    pub(crate) params: Arc<SamplingParams>,
}

impl Wanted {
    pub(crate) fn n_blocks(&self) -> usize {
        kv_blocks_for(self.prompt.len() + self.n_tokens)
    }
}

/// A chosen token; log-probabilities by their bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    token: u32,
    logprob: u32,
    top: Vec<(u32, u32)>,
}

impl Chosen {
    pub(crate) fn new(token: u32, logprob: f32, top: &[(u32, f32)]) -> Self {
        assert!(logprob.is_finite() && top.len() == N_TOP as usize, "{logprob} {top:?}");
        Self {
            token,
            logprob: logprob.to_bits(),
            top: top.iter().map(|(t, l)| (*t, l.to_bits())).collect(),
        }
    }
}

impl From<&SampledToken> for Chosen {
    fn from(sampled: &SampledToken) -> Self {
        Self::new(sampled.token, sampled.logprob, &sampled.top)
    }
}

/// Low-rank weights of random ranks at about two thirds of the sites.
pub(crate) fn random_adapter(random: &mut Random, spec: &ModelSpec) -> AdapterWeights {
    let mut sites = Vec::new();
    for layer in 0..spec.n_layers {
        for module in TargetModule::ALL {
            let rank = [1, 3, 8, 16, 17, 64][random.below(6)];
            if random.chance(33) {
                continue;
            }
            let (n_out, n_in) = spec.linear_shape(module);
            let a = random.units(rank * n_in).iter().map(|v| v / (n_in as f32).sqrt()).collect();
            let b = random.units(n_out * rank).iter().map(|v| v / (rank as f32).sqrt()).collect();
            sites.push(SiteWeights::lora(Site { layer, module }, rank, 0.5, a, b));
        }
    }
    AdapterWeights { sites, ..AdapterWeights::default() }
}

/// Adapters of every kind beyond plain `LoRA`: one with `DoRA` at its linears and at the head, and `LoRA` on the
/// embedding; one with biases, `LoRA` on the head, and an embedding and a head of its own; one with a head alone.
pub(crate) fn random_kinds(random: &mut Random, spec: &ModelSpec) -> [AdapterWeights; 3] {
    let (vocab, hidden) = (spec.vocab, spec.hidden);
    let mut dora = random_adapter(random, spec);
    let mut biased = random_adapter(random, spec);
    let scaled = |random: &mut Random, n: usize, by: f32| -> Vec<f32> {
        random.units(n).iter().map(|v| v * by).collect()
    };
    let by_hidden = 1.0 / (hidden as f32).sqrt();
    for weights in [&mut dora, &mut biased] {
        let (a, b) = (scaled(random, 17 * hidden, by_hidden), scaled(random, vocab * 17, 0.2));
        weights.sites.push(SiteWeights::lora(Site::HEAD, 17, 0.5, a, b));
    }
    for site in &mut dora.sites {
        let (n_out, _) = spec.linear_shape(site.site.module);
        // Near the norms of random rows; some change the sign.
        let magnitude = random.units(n_out).into_iter().map(|v| 0.8 + 1.1 * v).collect();
        site.magnitude = Some(magnitude);
    }
    for site in &mut biased.sites {
        site.bias = Some(random.units(spec.linear_shape(site.site.module).0));
    }
    let (a, b) = (random.units(3 * vocab), scaled(random, hidden * 3, 0.3));
    dora.sites.push(SiteWeights::lora(Site::EMBEDDING, 3, 0.7, a, b));
    for weights in [&mut dora, &mut biased] {
        weights.sites.sort_by_key(|site| site.site);
    }
    let own = |values, of_base| Some(OwnMatrix { values, of_base });
    biased.embedding = own(random.units(vocab * hidden), true);
    biased.head = own(scaled(random, vocab * hidden, 3.0 * by_hidden), false);
    let head = own(scaled(random, vocab * hidden, 3.0 * by_hidden), false);
    [dora, biased, AdapterWeights { head, ..AdapterWeights::default() }]
}

/// Sequences of every adapter and the base: prompts that share their heads, greedy for the most part.
pub(crate) fn catalogue(
    random: &mut Random,
    spec: &ModelSpec,
    adapters: &[Option<AdapterSlot>],
    prompts_max: usize,
    n_tokens: RangeInclusive<usize>,
) -> Vec<Wanted> {
    let mut token = || u32::try_from(random.below(spec.vocab)).expect("a token id is a u32");
    let head: Vec<u32> = (0..prompts_max).map(|_| token()).collect();
    let mut wanted = Vec::new();
    for &adapter in adapters {
        // The head itself, then two that leave it: at the border of a KV block and within one.
        for shared in [prompts_max, KV_BLOCK_TOKENS.min(prompts_max), prompts_max / 2] {
            let mut prompt = head[..shared].to_vec();
            let n_own = random.below(prompts_max - shared + 1);
            prompt
                .extend((0..n_own).map(|_| {
                    u32::try_from(random.below(spec.vocab)).expect("a token id is a u32")
                }));
            let mut params = SamplingParams {
                temperature: 0.0,
                logprobs: Some(N_TOP),
                ..SamplingParams::default()
            };
            if random.chance(20) {
                params.temperature = 0.8;
                params.top_p = 0.9;
                params.seed = random.next();
            }
            // The scheduler ends a sequence that fills the context.
            let room = spec.context - prompt.len();
            let n_tokens = random.between(*n_tokens.start(), *n_tokens.end()).min(room);
            wanted.push(Wanted { prompt, adapter, n_tokens, params: Arc::new(params) });
        }
    }
    wanted
}

/// Panics at the first difference.
pub(crate) fn assert_equal(
    what: &str,
    wanted: &[&Wanted],
    expected: &[&Vec<Chosen>],
    found: &[Vec<Chosen>],
) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
            assert!(
                expected == found,
                "{what}: sequence {index} (adapter {:?}, prompt of {}) token {i} is {found:?}, alone {expected:?}",
                wanted[index].adapter,
                wanted[index].prompt.len(),
            );
        }
        assert_eq!(expected.len(), found.len(), "{what}: sequence {index} has another length");
    }
}

/// Panics if an adapter does not change what the first prompt gives: then its rows would prove nothing.
pub(crate) fn assert_adapters_differ(alone: &[(Wanted, Vec<Chosen>)]) {
    let prompt = &alone[0].0.prompt;
    let of_prompt: Vec<_> = alone.iter().filter(|(wanted, _)| wanted.prompt == *prompt).collect();
    for (i, (wanted, chosen)) in of_prompt.iter().enumerate() {
        for (other, others) in &of_prompt[..i] {
            let same = wanted.adapter != other.adapter && chosen[0].top == others[0].top;
            assert!(!same, "{:?} and {:?} give the same", wanted.adapter, other.adapter);
        }
    }
    assert!(of_prompt.len() > 1, "no two adapters have the same prompt");
}
