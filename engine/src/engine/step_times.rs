//! How long steps take, and how long sequences wait from one token to the next.

use std::time::Duration;

/// Share of a new measurement in the running mean and deviation.
const SHARE_OF_NEW: f64 = 0.125;
/// Deviations above the mean that are allowed for.
const DEVIATIONS: f64 = 2.0;
/// A measurement counts as at most so many times the mean: a core that the system took away is not how long steps take.
const OUTLIER_FACTOR: f64 = 4.0;

/// A running mean of durations, with their mean deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunningTime {
    /// Seconds; `None` before the first measurement.
    mean: Option<f64>,
    deviation: f64,
}

impl RunningTime {
    /// Takes a measurement, seconds.
    pub fn record(&mut self, seconds: f64) {
        let Some(mean) = self.mean else {
            (self.mean, self.deviation) = (Some(seconds), seconds / 4.0);
            return;
        };
        let seconds = seconds.min(mean * OUTLIER_FACTOR);
        self.deviation += SHARE_OF_NEW * ((seconds - mean).abs() - self.deviation);
        self.mean = Some(mean + SHARE_OF_NEW * (seconds - mean));
    }

    /// The mean, seconds.
    pub fn mean(&self) -> Option<f64> {
        self.mean
    }

    /// What the next one will hardly exceed, seconds.
    pub fn expected(&self) -> Option<f64> {
        Some(self.mean? + DEVIATIONS * self.deviation)
    }

    /// Takes it for shorter by a part of itself: when a prediction keeps off what would correct it.
    pub fn forget(&mut self, part: f64) {
        self.mean = self.mean.map(|mean| mean * (1.0 - part));
        self.deviation *= 1.0 - part;
    }
}

/// Shortest interval that is told apart.
const SHORTEST: Duration = Duration::from_micros(10);
/// Each bucket ends at so many times the end of the one before: the resolution of quantiles.
const GROWTH: f64 = 1.04;
/// Up to about a minute.
const BUCKETS: usize = 400;
/// Weight beyond which older intervals count for half.
const WEIGHT_MAX: u64 = 1 << 15;
/// Intervals, each counted once for each sequence, before there are quantiles.
const ENOUGH: u64 = 256;

/// Intervals between tokens, the newest some ten thousand.
#[derive(Clone, Debug)]
pub(super) struct Intervals {
    weights: Vec<u64>,
    total: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { weights: vec![0; BUCKETS], total: 0 }
    }
}

impl Intervals {
    /// Counts an interval `weight` times.
    pub(super) fn record(&mut self, interval: Duration, weight: u64) {
        let ratio = interval.as_secs_f64() / SHORTEST.as_secs_f64();
        let bucket = if ratio > 1.0 { ratio.ln() / GROWTH.ln() } else { 0.0 };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a logarithm above 0, and too large ones saturate"
        )]
        let bucket = (bucket as usize).min(BUCKETS - 1);
        self.weights[bucket] += weight;
        self.total += weight;
        if self.total > WEIGHT_MAX {
            for weight in &mut self.weights {
                *weight /= 2;
            }
            self.total = self.weights.iter().sum();
        }
    }

    /// The interval that `share` of all do not exceed, to about four percent; `None` before there are enough.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        if self.total < ENOUGH {
            return None;
        }
        let wanted = self.total as f64 * share;
        let mut below = 0;
        let bucket = self.weights.iter().position(|weight| {
            below += weight;
            below as f64 >= wanted
        });
        let end = i32::try_from(bucket.unwrap_or(BUCKETS - 1) + 1).unwrap_or(i32::MAX);
        Some(SHORTEST.mul_f64(GROWTH.powi(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_moves_the_mean_a_little_and_a_change_is_followed() {
        let mut time = RunningTime::default();
        assert_eq!((time.mean(), time.expected()), (None, None));
        for _ in 0..50 {
            time.record(0.010);
        }
        assert!((time.mean().unwrap() - 0.010).abs() < 1e-9);
        assert!(time.expected().unwrap() < 0.0101);
        time.record(1.0);
        assert!(time.mean().unwrap() < 0.014, "{time:?}");
        for _ in 0..60 {
            time.record(0.020);
        }
        let expected = time.expected().unwrap();
        assert!((0.0199..0.0215).contains(&expected), "{expected}");
        time.forget(0.5);
        assert!(time.expected().unwrap() < 0.011);
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted_to_four_percent() {
        let mut intervals = Intervals::default();
        intervals.record(Duration::from_millis(10), ENOUGH - 1);
        assert_eq!(intervals.quantile(0.5), None);
        intervals.record(Duration::from_millis(10), 9745);
        intervals.record(Duration::from_millis(80), 200);
        let near = |share: f64, expected: f64| {
            let found = intervals.quantile(share).unwrap().as_secs_f64();
            assert!((1.0..1.05).contains(&(found / expected)), "{share}: {found}");
        };
        near(0.5, 0.010);
        near(0.97, 0.010);
        near(0.99, 0.080);
    }

    #[test]
    fn what_was_measured_long_ago_is_forgotten_and_all_lengths_have_a_place() {
        let mut intervals = Intervals::default();
        intervals.record(Duration::from_millis(500), WEIGHT_MAX);
        for _ in 0..20 {
            intervals.record(Duration::from_millis(5), WEIGHT_MAX / 2);
        }
        assert!(intervals.quantile(0.99).unwrap() < Duration::from_millis(6));
        assert!(intervals.total <= WEIGHT_MAX);
        intervals.record(Duration::ZERO, 1);
        intervals.record(Duration::MAX, 1);
        assert!(intervals.quantile(1.0).unwrap() > Duration::from_secs(50));
    }
}
