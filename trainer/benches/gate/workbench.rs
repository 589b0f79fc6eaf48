//! Training and scoring adapters of one model.

use std::sync::Arc;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner,
    cpu::{CpuBackend, FrozenBase},
    kv::{KV_BLOCK_TOKENS, KvBlockId},
    model::Decoder,
    sampler::SamplingParams,
    site::{Site, TargetModule},
    step_batch::{SampleRow, StepBatch, StepSequence},
    train::TrainOptions,
};
use pleach_text::Tokenizer;
use pleach_trainer::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, SampleScore,
    Scorer, Targeted,
    gate::{ProbeAnswer, ProbeEvidence},
    objective::Dpo,
};

use crate::data::{Kind, Labelled, Random};

/// What the general probes ask to go on from.
const PROBES: [&str; 8] = [
    "The capital of France is",
    "To make a good cup of tea, you first",
    "Once upon a time, there was a",
    "The main difference between cats and dogs is",
    "Water boils when",
    "Dear Sir or Madam,",
    "The most important thing about learning a language is",
    "In the year 1969,",
];
/// Tokens of an answer to one.
const ANSWER_TOKENS: usize = 24;

/// A model, and how adapters of it are trained and scored.
pub(crate) struct Workbench {
    pub(crate) decoder: Decoder<CpuBackend>,
    pub(crate) base: FrozenBase,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) options: TrainOptions,
    pub(crate) labels: Vec<String>,
    pub(crate) is_dpo: bool,
    pub(crate) rank: usize,
    pub(crate) n_layers: usize,
    pub(crate) rate: f64,
    pub(crate) epochs: usize,
    pub(crate) parent_epochs: usize,
    pub(crate) batch: usize,
    pub(crate) n_folds: usize,
}

impl Workbench {
    pub(crate) fn targeted(&self, text: &str, label: usize) -> Targeted {
        self.answered(text, &self.labels[label])
    }

    /// A text, and what is answered to it.
    pub(crate) fn answered(&self, text: &str, answer: &str) -> Targeted {
        let prompt = self.tokenizer.encode(&format!("Text: {text}\nTopic:"), false);
        let answer = self.tokenizer.encode(&format!(" {answer}\n"), false);
        let tokens = [prompt.as_slice(), &answer].concat();
        Targeted::new(&tokens, (0..tokens.len()).map(|i| i >= prompt.len()))
    }

    /// A row whose label is said to be `said`; of a pair it is the preferred one, and the other any that it is not said
    /// to be, or, if it is said wrongly, the right one.
    pub(crate) fn sample(&self, row: &Labelled, said: usize, random: &mut Random) -> Sample {
        let n = self.labels.len();
        let other =
            if said == row.label { (said + 1 + random.below(n - 1)) % n } else { row.label };
        if self.is_dpo {
            return Sample::Preference {
                preferred: self.targeted(&row.text, said),
                rejected: self.targeted(&row.text, other),
            };
        }
        Sample::Supervised(self.targeted(&row.text, said))
    }

    /// Rows as they are told to the trainer.
    pub(crate) fn samples(&self, rows: &[Labelled], kind: Kind, seed: u32) -> Vec<Sample> {
        let mut random = Random::new(seed, 3);
        let mut shuffled: Vec<usize> = rows.iter().map(|row| row.label).collect();
        random.shuffle(&mut shuffled);
        let n = self.labels.len();
        let said = |index: usize, row: &Labelled| match kind {
            Kind::Clean | Kind::Same => row.label,
            Kind::Inverted => (row.label + 1) % n,
            Kind::Garbage => shuffled[index],
        };
        let rows = rows.iter().enumerate();
        rows.map(|(index, row)| self.sample(row, said(index, row), &mut random)).collect()
    }

    /// An adapter that changes nothing yet.
    pub(crate) fn fresh(&self, seed: u32) -> Arc<AdapterWeights> {
        let mut settings = LoraSettings::all_linear(self.rank);
        let below = self.base.spec().n_layers.saturating_sub(self.n_layers);
        let sites =
            (0..below).flat_map(|layer| TargetModule::ALL.map(|module| Site { layer, module }));
        settings.ranks = sites.map(|site| (site, 0)).collect();
        Arc::new(settings.fresh(self.base.spec(), u64::from(seed)).unwrap())
    }

    pub(crate) fn train(
        &self,
        from: &Arc<AdapterWeights>,
        samples: &[Sample],
        epochs: usize,
        seed: u32,
    ) -> Arc<AdapterWeights> {
        let objective = if self.is_dpo { Objective::Dpo(Dpo::default()) } else { Objective::Sft };
        let optimizer =
            OptimizerSettings { learning_rate: self.rate, ..OptimizerSettings::default() };
        let settings =
            LearnerSettings { objective, optimizer, dropout: 0.0, seed: u64::from(seed) };
        let (adapter, reference) = (AdapterWeights::clone(from), Some(Arc::clone(from)));
        let mut learner =
            Learner::new(&self.base, adapter, reference, settings, self.options).unwrap();
        let mut random = Random::new(seed, 4);
        for _ in 0..epochs {
            let mut order: Vec<&Sample> = samples.iter().collect();
            random.shuffle(&mut order);
            for batch in order.chunks(self.batch) {
                learner.step(batch.iter().map(|sample| (*sample).clone()).collect()).unwrap();
            }
        }
        Arc::clone(learner.adapter())
    }

    pub(crate) fn score(
        &self,
        adapter: Option<&Arc<AdapterWeights>>,
        samples: Vec<Sample>,
    ) -> Vec<SampleScore> {
        let scorer = Scorer::new(&self.base, adapter.cloned(), self.options);
        scorer.unwrap().score(samples).unwrap()
    }

    /// Answers to the probes at temperature 1, as samples whose targets they are.
    pub(crate) fn answers(&mut self, adapter: &AdapterWeights) -> Vec<Sample> {
        let slot = self.decoder.install_weights(adapter).unwrap();
        let prompts = PROBES.map(|probe| self.tokenizer.encode(probe, false));
        let mut texts: Vec<Vec<u32>> = prompts.to_vec();
        let mut done = vec![0; texts.len()];
        for index in 0..ANSWER_TOKENS {
            let mut batch = StepBatch::default();
            for (probe, text) in texts.iter().enumerate() {
                let first = batch.n_rows();
                batch.token_ids.extend_from_slice(&text[done[probe]..]);
                batch.positions.extend(done[probe]..text.len());
                let rows = first..batch.n_rows();
                let blocks_each = (64 + ANSWER_TOKENS).div_ceil(KV_BLOCK_TOKENS);
                let n_blocks = text.len().div_ceil(KV_BLOCK_TOKENS);
                let block = |i: usize| KvBlockId(u32::try_from(probe * blocks_each + i).unwrap());
                batch.sample_rows.push(SampleRow {
                    row: rows.end - 1,
                    params: Arc::new(SamplingParams {
                        seed: probe as u64,
                        ..SamplingParams::default()
                    }),
                    sample_index: index as u64,
                    history: Arc::default(),
                    n_prompt: 0,
                    banned: Vec::new(),
                    forced: None,
                });
                let block_table = (0..n_blocks).map(block).collect();
                batch.sequences.push(StepSequence { rows, block_table, adapter: Some(slot) });
                done[probe] = text.len();
            }
            for (text, sampled) in texts.iter_mut().zip(self.decoder.step(&batch).unwrap()) {
                text.push(sampled.token);
            }
        }
        self.decoder.remove_adapter(slot);
        let is_answer = |(text, prompt): (&Vec<u32>, &Vec<u32>)| {
            Sample::Supervised(Targeted::new(text, (0..text.len()).map(|i| i >= prompt.len())))
        };
        texts.iter().zip(&prompts).map(is_answer).collect()
    }

    pub(crate) fn probes(&mut self, candidate: &Arc<AdapterWeights>) -> Vec<ProbeEvidence> {
        let answers = self.answers(candidate);
        let under_candidate = self.score(Some(candidate), answers.clone());
        let under_base = self.score(None, answers);
        let answer = |n_tokens| ProbeAnswer { n_tokens, is_refusal: false };
        let probe = |(candidate, base): (&SampleScore, &SampleScore)| ProbeEvidence {
            candidate: answer(candidate.n_targets),
            current: answer(ANSWER_TOKENS),
            candidate_logp: candidate.logp(),
            base_logp: base.logp(),
        };
        under_candidate.iter().zip(&under_base).map(probe).collect()
    }
}
