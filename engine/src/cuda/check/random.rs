//! Random inputs, the same on every machine.

use half::f16;

/// splitmix64.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.bits() % n as u64).expect("below a usize")
    }

    /// Between −1 and 1.
    pub(super) fn value(&mut self) -> f32 {
        // 24 bits: exact in f32.
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Between −`scale` and `scale`, one in 61 eight times as large: flat inputs hide errors.
    pub(super) fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let spike = if self.below(61) == 0 { 8.0 } else { 1.0 };
                self.value() * scale * spike
            })
            .collect()
    }

    pub(super) fn halves(&mut self, n: usize, scale: f32) -> Vec<f16> {
        self.values(n, scale).into_iter().map(f16::from_f32).collect()
    }

    /// `0..n` in random order.
    pub(super) fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).map(super::to_u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
