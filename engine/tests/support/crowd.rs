//! Sequences alone and in a crowd, run by hand: what "a row's result does not depend on its neighbours" is tested with.

use std::{collections::HashMap, sync::Arc};

use pleach_engine::{
    backend::StepRunner,
    kv::{KV_BLOCK_TOKENS, KvBlockId, kv_blocks_for},
    sampler::SampledToken,
    step_batch::{SampleRow, StepBatch, StepSequence},
};

use super::{
    random::Random,
    wanted::{Chosen, Wanted},
};

/// What happened in a crowd, so that a test can show that it tried what it claims.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Happened {
    pub(crate) steps: usize,
    pub(crate) rows: usize,
    pub(crate) rows_max: usize,
    /// Steps with rows of at least two adapters, or of one and the base.
    pub(crate) mixed: usize,
    /// Steps in which one sequence prefills and another decodes.
    pub(crate) prefill_beside_decode: usize,
    pub(crate) prefix_hits: usize,
    pub(crate) preemptions: usize,
}

impl std::ops::AddAssign for Happened {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.rows += other.rows;
        self.rows_max = self.rows_max.max(other.rows_max);
        self.mixed += other.mixed;
        self.prefill_beside_decode += other.prefill_beside_decode;
        self.prefix_hits += other.prefix_hits;
        self.preemptions += other.preemptions;
    }
}

/// A sequence that runs.
struct Member<'a> {
    wanted: &'a Wanted,
    /// Prompt and completion.
    tokens: Vec<u32>,
    /// Tokens whose keys and values are stored.
    done: usize,
    blocks: Vec<KvBlockId>,
    chosen: Vec<Chosen>,
}

impl<'a> Member<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        Self {
            wanted,
            tokens: wanted.prompt.clone(),
            done: 0,
            blocks: Vec::new(),
            chosen: Vec::new(),
        }
    }

    fn is_finished(&self) -> bool {
        self.chosen.len() == self.wanted.n_tokens
    }

    fn n_pending(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// Adds `n` rows to a batch.
    fn add_rows(&self, n: usize, batch: &mut StepBatch) {
        let first = batch.n_rows();
        let end = self.done + n;
        batch.token_ids.extend_from_slice(&self.tokens[self.done..end]);
        batch.positions.extend(self.done..end);
        batch.sequences.push(StepSequence {
            rows: first..first + n,
            block_table: self.blocks[..kv_blocks_for(end)].to_vec(),
            adapter: self.wanted.adapter,
        });
        if end == self.tokens.len() {
            batch.sample_rows.push(SampleRow {
                row: first + n - 1,
                params: Arc::clone(&self.wanted.params),
                sample_index: self.chosen.len() as u64,
                history: Arc::default(),
                n_prompt: self.wanted.prompt.len(),
                banned: Vec::new(),
                forced: None,
            });
        }
    }

    /// Takes note of `n` computed rows; whether a result belongs to them.
    fn advance(&mut self, n: usize, results: &mut impl Iterator<Item = SampledToken>) {
        self.done += n;
        if self.done == self.tokens.len() {
            let sampled = results.next().expect("one result per sample row");
            self.tokens.push(sampled.token);
            self.chosen.push(Chosen::from(&sampled));
        }
    }
}

/// The sequence alone: its prompt in one chunk, blocks in order.
pub(crate) fn alone(runner: &mut dyn StepRunner, wanted: &Wanted) -> Vec<Chosen> {
    let mut member = Member::new(wanted);
    assert!(wanted.prompt.len() <= runner.max_rows(), "the prompt is one chunk");
    member.blocks = (0..u32::try_from(wanted.n_blocks()).expect("a block id is a u32"))
        .map(KvBlockId)
        .collect();
    while !member.is_finished() {
        let mut batch = StepBatch::default();
        let n = member.n_pending();
        member.add_rows(n, &mut batch);
        member.advance(n, &mut runner.step(&batch).unwrap().into_iter());
    }
    member.chosen
}

/// KV blocks in random order, with the number of sequences that hold each.
struct Blocks {
    free: Vec<KvBlockId>,
    users: HashMap<KvBlockId, usize>,
}

impl Blocks {
    fn new(random: &mut Random, n_all: usize, n_wanted: usize) -> Self {
        let mut free: Vec<KvBlockId> =
            (0..u32::try_from(n_all).expect("a block id is a u32")).map(KvBlockId).collect();
        random.shuffle(&mut free);
        free.truncate(n_wanted);
        Self { free, users: HashMap::new() }
    }

    fn take(&mut self, random: &mut Random) -> KvBlockId {
        let block = self.free.swap_remove(random.below(self.free.len()));
        self.share(block);
        block
    }

    fn share(&mut self, block: KvBlockId) {
        *self.users.entry(block).or_default() += 1;
    }

    fn release(&mut self, block: KvBlockId) {
        let users = self.users.get_mut(&block).expect("a held block has users");
        *users -= 1;
        if *users == 0 {
            self.free.push(block);
        }
    }
}

/// All of `wanted` at once, in steps of at most `rows_max` rows: any of them in a step, in chunks of any size, in blocks in
/// any order, beginning with blocks of another's equal prefix, losing everything in the middle and starting over.
pub(crate) fn crowd(
    runner: &mut dyn StepRunner,
    wanted: &[&Wanted],
    random: &mut Random,
    rows_max: usize,
) -> (Vec<Vec<Chosen>>, Happened) {
    let mut members: Vec<Member<'_>> = wanted.iter().map(|wanted| Member::new(wanted)).collect();
    let n_blocks = wanted.iter().map(|wanted| wanted.n_blocks()).sum::<usize>() + 2;
    assert!(n_blocks <= runner.n_kv_blocks(), "{n_blocks} blocks of {}", runner.n_kv_blocks());
    let mut blocks = Blocks::new(random, runner.n_kv_blocks(), n_blocks);
    let mut happened = Happened::default();
    while members.iter().any(|member| !member.is_finished()) {
        if random.chance(8) {
            preempt(&mut members, random, &mut blocks, &mut happened);
        }
        let mut order: Vec<usize> =
            (0..members.len()).filter(|&index| !members[index].is_finished()).collect();
        random.shuffle(&mut order);
        let mut batch = StepBatch::default();
        let mut parts = Vec::new();
        let (mut n_prefill, mut n_decode) = (0, 0);
        for index in order {
            let n_free = rows_max - batch.n_rows();
            if n_free == 0 || (random.chance(20) && batch.n_rows() > 0) {
                continue;
            }
            if members[index].blocks.is_empty() && random.chance(70) {
                share_prefix(&mut members, index, &mut blocks, &mut happened);
            }
            let member = &mut members[index];
            let n_pending = member.n_pending();
            let n = if random.chance(40) { n_pending } else { random.between(1, n_pending) }
                .min(n_free);
            while member.blocks.len() < kv_blocks_for(member.done + n) {
                member.blocks.push(blocks.take(random));
            }
            *(if n_pending > 1 { &mut n_prefill } else { &mut n_decode }) += 1;
            member.add_rows(n, &mut batch);
            parts.push((index, n));
        }
        happened.steps += 1;
        happened.rows += batch.n_rows();
        happened.rows_max = happened.rows_max.max(batch.n_rows());
        happened.prefill_beside_decode += usize::from(n_prefill > 0 && n_decode > 0);
        let first = batch.sequences[0].adapter;
        happened.mixed +=
            usize::from(batch.sequences.iter().any(|sequence| sequence.adapter != first));
        let mut results = runner.step(&batch).unwrap().into_iter();
        for (index, n) in parts {
            members[index].advance(n, &mut results);
        }
        assert!(results.next().is_none(), "more results than sample rows");
    }
    (members.into_iter().map(|member| member.chosen).collect(), happened)
}

/// A sequence loses its blocks; its tokens stay.
fn preempt(
    members: &mut [Member<'_>],
    random: &mut Random,
    blocks: &mut Blocks,
    happened: &mut Happened,
) {
    let index = random.below(members.len());
    let member = &mut members[index];
    if member.is_finished() || member.done == 0 {
        return;
    }
    for block in member.blocks.drain(..) {
        blocks.release(block);
    }
    member.done = 0;
    happened.preemptions += 1;
}

/// Begins a sequence with the blocks of another that has the longest equal prefix.
fn share_prefix(
    members: &mut [Member<'_>],
    index: usize,
    blocks: &mut Blocks,
    happened: &mut Happened,
) {
    let member = &members[index];
    let common = |other: &Member<'_>| {
        let equal = member
            .tokens
            .iter()
            .zip(&other.tokens[..other.done])
            .take_while(|(a, b)| a == b)
            .count();
        // One token at least must be computed.
        equal.min(member.tokens.len() - 1) / KV_BLOCK_TOKENS
    };
    let same_adapter = |other: &&Member<'_>| other.wanted.adapter == member.wanted.adapter;
    let Some(other) = members.iter().filter(same_adapter).max_by_key(|other| common(other)) else {
        return;
    };
    let shared = other.blocks[..common(other)].to_vec();
    for &block in &shared {
        blocks.share(block);
    }
    happened.prefix_hits += usize::from(!shared.is_empty());
    members[index].done = shared.len() * KV_BLOCK_TOKENS;
    members[index].blocks = shared;
}
