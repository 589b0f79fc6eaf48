//! Random numbers that are the same on every machine: `SplitMix64` and the few distributions that a load needs.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The stream of request `index` under `seed`, and so of no other request.
    pub(super) fn new(seed: u64, index: u64) -> Self {
        let mut mixed = Self(seed);
        let salt = mixed.next();
        let mut stream = Self(salt ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03));
        stream.next();
        stream
    }

    /// 64 random bits. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform over `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform over `0..bound`; `bound` is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The bias of the high product is below bound / 2^64.
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the high half of 128 bits fits 64")
    }

    /// Exponential with mean 1.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Normal with mean 0 and variance 1, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma with mean 1 and the given shape: the time between arrivals of which 1 is the Poisson process.
    /// Source: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.
    pub(super) fn gamma_mean_one(&mut self, shape: f64) -> f64 {
        if (shape - 1.0).abs() < f64::EPSILON {
            return self.exponential();
        }
        if shape < 1.0 {
            let boost = (1.0 - self.unit()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost / shape;
        }
        self.gamma(shape) / shape
    }

    /// Gamma of a shape of at least 1, scale 1.
    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

/// Draws the index of an item with weight `(index + 1)^-s`.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Over `count` items, which is not 0.
    pub(super) fn new(count: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=count).map(|k| {
            sum += (k as f64).powf(-s);
            sum
        });
        Self { cumulative: weights.collect() }
    }

    pub(super) fn draw(&self, random: &mut Random) -> usize {
        let last = self.cumulative.len() - 1;
        let point = random.unit() * self.cumulative[last];
        self.cumulative.partition_point(|&sum| sum <= point).min(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_arrivals_are_one_at_any_burstiness() {
        for shape in [0.25, 1.0, 4.0] {
            let mut random = Random::new(1, 0);
            let (mut sum, mut squares) = (0.0, 0.0);
            let count = 40_000;
            for _ in 0..count {
                let gap = random.gamma_mean_one(shape);
                assert!(gap >= 0.0);
                sum += gap;
                squares += gap * gap;
            }
            let mean = sum / f64::from(count);
            let variance = squares / f64::from(count) - mean * mean;
            assert!((mean - 1.0).abs() < 0.05, "shape {shape}: mean {mean}");
            assert!((variance * shape - 1.0).abs() < 0.1, "shape {shape}: variance {variance}");
        }
    }

    #[test]
    fn zipf_follows_its_weights_and_zero_is_uniform() {
        let mut random = Random::new(2, 0);
        for (s, expected) in [(1.0, [0.48, 0.24, 0.16, 0.12]), (0.0, [0.25; 4])] {
            let zipf = Zipf::new(4, s);
            let mut counts = [0_u32; 4];
            (0..40_000).for_each(|_| counts[zipf.draw(&mut random)] += 1);
            for (count, expected) in counts.iter().zip(expected) {
                assert!((f64::from(*count) / 40_000.0 - expected).abs() < 0.01, "{s}: {counts:?}");
            }
        }
    }

    #[test]
    fn streams_of_requests_differ_and_repeat() {
        let first = |seed, index| Random::new(seed, index).next();
        assert_eq!(first(3, 5), first(3, 5));
        assert_ne!(first(3, 5), first(3, 6));
        assert_ne!(first(3, 5), first(4, 5));
        let mut random = Random::new(0, 0);
        assert!((0..1000).all(|_| random.below(3) < 3));
    }
}
