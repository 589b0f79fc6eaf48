//! Seeded numbers for tests: the same on every machine.
#![allow(dead_code, reason = "each test uses a part")]

/// Seed of a run, when `PLEACH_TEST_SEED` does not give another.
const SEED: u64 = 0x706c_6561_6368;

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// `low..=high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Uniform in `-1..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn units(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    /// Like [`Self::units`], but one value in sixteen is up to fifty times as large: what activations look like.
    pub(crate) fn spiky(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit() * if self.below(16) == 0 { 50.0 } else { 1.0 }).collect()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The seed of case `case` of a test: what a failure must print.
pub(crate) fn case_seed(case: usize) -> u64 {
    let seed =
        std::env::var("PLEACH_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    seed.wrapping_add(case as u64)
}

/// Cases of a randomized test: `n`, or `n` times `PLEACH_TEST_CASES` for a long run.
pub(crate) fn cases(n: usize) -> usize {
    n * std::env::var("PLEACH_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
