//! A counter-based random generator: the n-th number of a seed and stream is a pure function of the three, so an order
//! can be taken up anywhere without what went before.

use pleach_engine::sampler::philox4x32;

/// Numbers of one seed and stream; different streams of a seed have nothing to do with each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct CounterRng {
    seed: u64,
    stream: u64,
}

impl CounterRng {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// The number of this counter.
    pub(super) fn at(self, counter: u64) -> u64 {
        let ([c0, c1], [s0, s1]) = (halves(counter), halves(self.stream));
        let [low, high, ..] = philox4x32([c0, c1, s0, s1], halves(self.seed));
        u64::from(high) << 32 | u64::from(low)
    }

    /// A number below `bound`, which is not 0. The bias is below `bound / 2^64`.
    pub(super) fn below(self, counter: u64, bound: usize) -> usize {
        let wide = u128::from(self.at(counter)) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// A random order of `0..n` (Fisher and Yates).
    pub(super) fn permutation(self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.below(last as u64, last + 1));
        }
        order
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_fair_and_differ_by_stream() {
        let mut first = [0_u32; 5];
        for seed in 0..10_000 {
            let order = CounterRng::new(seed, 0).permutation(5);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            first[order[0] as usize] += 1;
        }
        assert!(first.iter().all(|n| (1_850..2_150).contains(n)), "{first:?}");
        let order = |seed, stream| CounterRng::new(seed, stream).permutation(50);
        assert_eq!(order(1, 2), order(1, 2));
        assert_ne!(order(1, 2), order(1, 3));
        assert_ne!(order(1, 2), order(2, 1));
        assert!(CounterRng::new(1, 2).permutation(0).is_empty());
    }
}
