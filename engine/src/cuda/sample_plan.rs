//! What rows ask of the kernel `sample`: their settings, and the logits that bias, bans and penalties change.

#![expect(clippy::float_cmp, reason = "exact values switch settings off")]

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    mem,
};

use crate::{sampler::Draw, step_batch::SampleRow};

use super::ops::{LogitEdit, SampleSpec, TOP_MAX};

/// Most edits of all rows of a plan; a row for which too few are left is the host's.
pub const EDITS_MAX: usize = 1 << 17;

/// Edits and settings of the rows that are sampled together. Its memory is kept from step to step.
#[derive(Debug, Default)]
pub struct SamplePlan {
    specs: Vec<SampleSpec>,
    edits: Vec<LogitEdit>,
    places: Places,
}

impl SamplePlan {
    /// Plans these rows, and forgets those before.
    ///
    /// Takes time in proportion to the rows' biases, bans and, where there are penalties, histories.
    pub fn plan(&mut self, rows: &[SampleRow], vocab: usize) {
        self.specs.clear();
        self.edits.clear();
        for row in rows {
            let spec = self.spec(row, vocab);
            self.specs.push(spec);
        }
    }

    /// One for each row.
    pub fn specs(&self) -> &[SampleSpec] {
        &self.specs
    }

    /// What the specs point to, at most [`EDITS_MAX`].
    pub fn edits(&self) -> &[LogitEdit] {
        &self.edits
    }

    /// Whether the kernel leaves this row, whose logits are then unchanged, to [`crate::sampler::sample`].
    pub fn on_host(&self, row_idx: usize) -> bool {
        self.specs[row_idx].forced == SampleSpec::SKIP
    }

    fn spec(&mut self, row: &SampleRow, vocab: usize) -> SampleSpec {
        let skip = SampleSpec { forced: SampleSpec::SKIP, ..SampleSpec::GREEDY };
        let n_top = match row.params.logprobs {
            None => SampleSpec::NO_LOGPROBS,
            Some(n_top) if n_top as usize <= TOP_MAX => n_top,
            Some(_) => return skip,
        };
        if let Some(token) = row.forced {
            // Beyond the vocabulary is beyond it; the two largest ids mean something else to the kernel.
            let forced = token.min(SampleSpec::SKIP - 1);
            return SampleSpec { forced, n_top, ..SampleSpec::GREEDY };
        }
        let begin = self.edits.len();
        if self.add_edits(row, vocab).is_none() {
            self.edits.truncate(begin);
            return skip;
        }
        let spec = SampleSpec {
            n_top,
            edits_begin: place(begin),
            edits_end: place(self.edits.len()),
            ..SampleSpec::GREEDY
        };
        match Draw::of(row) {
            None => spec,
            Some(draw) => SampleSpec {
                uniform: draw.uniform,
                top_p: draw.top_p,
                top_k: draw.top_k,
                inverse_temperature: draw.inverse_temperature,
                weight_min: draw.weight_min,
                ..spec
            },
        }
    }

    /// `None`: too many, or not to be had as one edit for each token.
    fn add_edits(&mut self, row: &SampleRow, vocab: usize) -> Option<()> {
        let params = &*row.params;
        let begin = self.edits.len();
        self.places.begin_row();
        for &(token, bias) in &params.logit_bias {
            if (token as usize) < vocab {
                let edit = self.edit(token)?;
                // Two biases of a token are two roundings, and one that is infinite is no ban.
                if edit.bias.abs() > 0.0 || !bias.is_finite() {
                    return None;
                }
                edit.bias += bias;
            }
        }
        for &token in &row.banned {
            if (token as usize) < vocab {
                self.edit(token)?.bias = f32::NEG_INFINITY;
            }
        }
        if params.repetition_penalty != 1.0 {
            for &token in &*row.history {
                if (token as usize) < vocab {
                    self.edit(token)?.repetition = params.repetition_penalty;
                }
            }
        }
        if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
            for &token in row.history.get(row.n_prompt..).unwrap_or(&[]) {
                if (token as usize) < vocab {
                    self.edit(token)?.frequency += 1.0;
                }
            }
            // Counted first, then once times the penalty: adding it up token by token would round differently.
            for edit in self.edits[begin..].iter_mut().filter(|edit| edit.frequency > 0.0) {
                edit.frequency *= params.frequency_penalty;
                edit.presence = params.presence_penalty;
            }
        }
        Some(())
    }

    /// The row's edit of a token; `None` if there is room for no more.
    fn edit(&mut self, token: u32) -> Option<&mut LogitEdit> {
        let next = self.edits.len();
        let index = self.places.find_or_insert(token, place(next)) as usize;
        if index == next {
            if next == EDITS_MAX {
                return None;
            }
            self.edits.push(LogitEdit::none(token));
        }
        self.edits.get_mut(index)
    }
}

fn place(edit_idx: usize) -> u32 {
    u32::try_from(edit_idx).unwrap_or(u32::MAX)
}

/// Where the edits of a row's tokens are: a table with open addressing, at most half full, whose entries are of one row
/// and void for all others, so that nothing is cleared between rows.
#[derive(Debug)]
struct Places {
    entries: Vec<Entry>,
    /// The current row; no entry is of row 0.
    row: u64,
    n_used: usize,
    /// Tokens come from clients, who should not know which ones collide.
    seed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    row: u64,
    token: u32,
    edit: u32,
}

impl Default for Places {
    fn default() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self { entries: vec![Entry::default(); 64], row: 0, n_used: 0, seed }
    }
}

impl Places {
    fn begin_row(&mut self) {
        self.row += 1;
        self.n_used = 0;
    }

    /// The token's edit of this row, `edit` from now on if there was none.
    fn find_or_insert(&mut self, token: u32, edit: u32) -> u32 {
        let at = self.probe(token);
        let entry = &mut self.entries[at];
        if entry.row == self.row {
            return entry.edit;
        }
        *entry = Entry { row: self.row, token, edit };
        self.n_used += 1;
        if self.n_used * 2 > self.entries.len() {
            self.grow();
        }
        edit
    }

    /// Index of the token's entry, or of the free one where it belongs.
    fn probe(&self, token: u32) -> usize {
        let mask = self.entries.len() - 1;
        let mixed = (u64::from(token) ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let hash = mixed >> 32;
        let mut at = usize::try_from(hash).unwrap_or(0) & mask;
        while self.entries[at].row == self.row && self.entries[at].token != token {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let larger = vec![Entry::default(); self.entries.len() * 2];
        for entry in mem::replace(&mut self.entries, larger) {
            if entry.row == self.row {
                let at = self.probe(entry.token);
                self.entries[at] = entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::sampler::{SamplingParams, adjust};

    fn row(params: SamplingParams) -> SampleRow {
        SampleRow {
            row: 0,
            params: Arc::new(params),
            sample_index: 3,
            history: Arc::default(),
            n_prompt: 0,
            banned: Vec::new(),
            forced: None,
        }
    }

    /// What the kernel does with edits.
    fn edited(logits: &[f32], plan: &SamplePlan, row_idx: usize) -> Vec<f32> {
        let spec = &plan.specs()[row_idx];
        let mut values = logits.to_vec();
        let mut seen = vec![false; logits.len()];
        for edit in &plan.edits()[spec.edits_begin as usize..spec.edits_end as usize] {
            let token = edit.token as usize;
            assert!(!mem::replace(&mut seen[token], true), "two edits of token {token}");
            let value = &mut values[token];
            let banned = edit.bias == f32::NEG_INFINITY;
            *value = if banned { edit.bias } else { *value + edit.bias };
            *value = if *value > 0.0 { *value / edit.repetition } else { *value * edit.repetition };
            *value = (*value - edit.frequency) - edit.presence;
        }
        values
    }

    fn penalty() -> impl Strategy<Value = f32> {
        prop_oneof![2 => Just(0.0f32), 3 => -2.0f32..2.0]
    }

    fn any_row() -> impl Strategy<Value = SampleRow> {
        let tokens = || proptest::collection::vec(0u32..70, 0..40);
        (
            prop_oneof![Just(1.0f32), 0.5f32..2.0],
            (penalty(), penalty()),
            proptest::collection::btree_map(0u32..70, -3.0f32..3.0, 0..4),
            (tokens(), 0usize..50),
            proptest::collection::vec(0u32..70, 0..4),
        )
            .prop_map(
                |(repetition, (frequency, presence), bias, (history, n_prompt), banned)| {
                    let params = SamplingParams {
                        repetition_penalty: repetition,
                        frequency_penalty: frequency,
                        presence_penalty: presence,
                        logit_bias: bias.into_iter().collect(),
                        ..SamplingParams::default()
                    };
                    SampleRow { history: Arc::new(history), n_prompt, banned, ..row(params) }
                },
            )
    }

    proptest! {
        /// Several rows and plans, since memory is used again.
        #[test]
        fn edits_give_the_bits_of_the_cpu_sampler(
            plans in proptest::collection::vec(proptest::collection::vec(any_row(), 0..5), 1..4),
            logits in proptest::collection::vec(prop_oneof![9 => -9.0f32..9.0, 1 => Just(f32::INFINITY)], 60),
        ) {
            let mut plan = SamplePlan::default();
            for rows in plans {
                plan.plan(&rows, logits.len());
                prop_assert_eq!(plan.specs().len(), rows.len());
                for (index, row) in rows.iter().enumerate() {
                    prop_assert!(!plan.on_host(index));
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    let expected = adjust(&logits, row).unwrap_or_else(|| logits.clone());
                    prop_assert_eq!(bits(&edited(&logits, &plan, index)), bits(&expected));
                }
            }
        }
    }

    #[test]
    fn specs_say_what_rows_ask_for() {
        let greedy = || SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let drawn = SamplingParams {
            temperature: 0.5,
            top_p: 0.75,
            top_k: 9,
            min_p: 7.0,
            logprobs: Some(20),
            ..SamplingParams::default()
        };
        let many = SamplingParams { logprobs: Some(21), ..greedy() };
        let twice = SamplingParams { logit_bias: vec![(1, 0.1), (1, 0.2)], ..greedy() };
        let infinite = SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY)], ..greedy() };
        let outside = SamplingParams { logit_bias: vec![(9, f32::NAN), (9, 1.0)], ..greedy() };
        let rows = [
            row(greedy()),
            row(drawn),
            SampleRow { forced: Some(u32::MAX), ..row(greedy()) },
            SampleRow { forced: Some(5), banned: vec![5], ..row(greedy()) },
            row(many),
            row(twice),
            row(infinite),
            SampleRow { banned: vec![9, 2], ..row(outside) },
        ];
        let mut plan = SamplePlan::default();
        plan.plan(&rows, 9);
        let [first, drawn, beyond, forced, .., last] = plan.specs() else { panic!() };
        assert_eq!((first.forced, first.n_top), (SampleSpec::CHOOSE, SampleSpec::NO_LOGPROBS));
        assert!(first.inverse_temperature < 0.0);
        assert_eq!((drawn.inverse_temperature, drawn.weight_min), (2.0, 1.0));
        assert_eq!((drawn.top_p, drawn.top_k, drawn.n_top), (3 << 62, 9, 20));
        assert!(beyond.forced != SampleSpec::CHOOSE && beyond.forced != SampleSpec::SKIP);
        assert_eq!((forced.forced, forced.edits_end - forced.edits_begin), (5, 0));
        let on_host: Vec<usize> = (0..rows.len()).filter(|&index| plan.on_host(index)).collect();
        assert_eq!(on_host, [4, 5, 6]);
        assert_eq!((last.edits_end - last.edits_begin, plan.edits().len()), (1, 1));
    }

    #[test]
    fn rows_without_room_are_the_hosts() {
        let penalized = |n: usize| {
            let params = SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() };
            SampleRow { history: Arc::new((0..place(n)).collect()), ..row(params) }
        };
        let rows = [penalized(EDITS_MAX - 1), penalized(2), penalized(1), penalized(1)];
        let mut plan = SamplePlan::default();
        for _ in 0..2 {
            plan.plan(&rows, EDITS_MAX * 2);
            let on_host: Vec<bool> = (0..4).map(|index| plan.on_host(index)).collect();
            assert_eq!(on_host, [false, true, false, true]);
            assert_eq!(plan.edits().len(), EDITS_MAX);
        }
    }
}
