//! One latency over three windows: the last minute, the last hour, and since start.
//!
//! A window is a ring of sub-histograms, each for a fixed slice of time; the oldest is cleared when its turn comes again.
//! So a window covers between five sixths and all of its name, recording is a few additions, and memory is fixed.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::http::wire::latency::LatencySummary;

/// Resolution of recorded times.
const UNIT: Duration = Duration::from_micros(10);
/// Longest recorded time, 10 minutes; longer ones count as this.
const UNITS_MAX: u64 = 60_000_000;
/// Two significant digits: percentiles within 1 %. One histogram is then about 10 KB.
const SIGNIFICANT_DIGITS: u8 = 2;
/// Sub-histograms of a ring.
const SLICES: usize = 6;

const MINUTE_SLICE: Duration = Duration::from_secs(60 / SLICES as u64);
const HOUR_SLICE: Duration = Duration::from_secs(3600 / SLICES as u64);

/// One latency over three windows. Time is given as the time since start, so that tests need not sleep.
#[derive(Debug)]
pub struct Windows {
    minute: Ring,
    hour: Ring,
    all: Histogram<u32>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { minute: Ring::new(MINUTE_SLICE), hour: Ring::new(HOUR_SLICE), all: empty() }
    }
}

impl Windows {
    /// Records one latency at a time since start.
    pub fn record(&mut self, now: Duration, latency: Duration) {
        let units = u64::try_from(latency.as_nanos() / UNIT.as_nanos()).unwrap_or(UNITS_MAX);
        self.minute.slice_at(now).saturating_record(units);
        self.hour.slice_at(now).saturating_record(units);
        self.all.saturating_record(units);
    }

    /// The last minute.
    pub fn last_minute(&self, now: Duration) -> LatencySummary {
        summary(&self.minute.merged(now))
    }

    /// The last hour.
    pub fn last_hour(&self, now: Duration) -> LatencySummary {
        summary(&self.hour.merged(now))
    }

    /// Everything.
    pub fn since_start(&self) -> LatencySummary {
        summary(&self.all)
    }
}

#[derive(Debug)]
struct Ring {
    slice: Duration,
    /// With the number of the slice of time that each holds.
    slices: [(u128, Histogram<u32>); SLICES],
}

impl Ring {
    fn new(slice: Duration) -> Self {
        Self { slice, slices: std::array::from_fn(|_| (0, empty())) }
    }

    fn number(&self, now: Duration) -> u128 {
        now.as_nanos() / self.slice.as_nanos()
    }

    fn slice_at(&mut self, now: Duration) -> &mut Histogram<u32> {
        let number = self.number(now);
        // The remainder is below SLICES.
        let place = usize::try_from(number % SLICES as u128).unwrap_or(0);
        let (held, histogram) = &mut self.slices[place];
        if *held < number {
            histogram.reset();
            *held = number;
        }
        histogram
    }

    fn merged(&self, now: Duration) -> Histogram<u32> {
        let oldest = (self.number(now) + 1).saturating_sub(SLICES as u128);
        let mut sum = empty();
        for (_, histogram) in self.slices.iter().filter(|(number, _)| *number >= oldest) {
            sum.add(histogram).expect("both have the same bounds");
        }
        sum
    }
}

fn empty() -> Histogram<u32> {
    Histogram::new_with_bounds(1, UNITS_MAX, SIGNIFICANT_DIGITS)
        .expect("the bounds are constant and valid")
}

fn summary(histogram: &Histogram<u32>) -> LatencySummary {
    if histogram.is_empty() {
        return LatencySummary::default();
    }
    let ms_per_unit = UNIT.as_secs_f64() * 1e3;
    // Rounded to the unit, so that JSON shows 12.34 and not 12.340000000000002.
    let ms = |units: f64| Some((units * ms_per_unit * 100.0).round() / 100.0);
    let quantile = |q: f64| ms(histogram.value_at_quantile(q) as f64);
    LatencySummary {
        count: histogram.len(),
        mean: ms(histogram.mean()),
        p50: quantile(0.50),
        p95: quantile(0.95),
        p99: quantile(0.99),
        max: ms(histogram.max() as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_one_percent() {
        let mut windows = Windows::default();
        for ms in 1..=1000 {
            windows.record(Duration::from_secs(1), Duration::from_millis(ms));
        }
        let summary = windows.since_start();
        assert_eq!(summary.count, 1000);
        for (found, expected) in [
            (summary.p50, 500.0),
            (summary.p95, 950.0),
            (summary.p99, 990.0),
            (summary.max, 1000.0),
        ] {
            let found = found.unwrap();
            assert!((found - expected).abs() <= expected * 0.01, "{found} is not near {expected}");
        }
        assert!((summary.mean.unwrap() - 500.5).abs() < 5.0);
    }

    #[test]
    fn values_leave_the_windows_in_time() {
        let mut windows = Windows::default();
        windows.record(Duration::ZERO, Duration::from_millis(7));
        let counts = |at: u64| {
            let now = Duration::from_secs(at);
            (
                windows.last_minute(now).count,
                windows.last_hour(now).count,
                windows.since_start().count,
            )
        };
        assert_eq!(counts(0), (1, 1, 1));
        assert_eq!(counts(59), (1, 1, 1));
        assert_eq!(counts(60), (0, 1, 1));
        assert_eq!(counts(3599), (0, 1, 1));
        assert_eq!(counts(3600), (0, 0, 1));
    }

    #[test]
    fn a_ring_reuses_its_slices() {
        let mut windows = Windows::default();
        for second in 0..300 {
            windows.record(Duration::from_secs(second), Duration::from_millis(second));
        }
        // Slices of 10 s: at 299 s the window began at 240 s.
        assert_eq!(windows.last_minute(Duration::from_secs(299)).count, 60);
        assert!(windows.last_minute(Duration::from_secs(299)).p50.unwrap() > 240.0);
        assert_eq!(windows.last_minute(Duration::from_mins(10)).count, 0);
        assert_eq!(windows.last_minute(Duration::from_mins(10)).p50, None);
    }

    #[test]
    fn a_time_beyond_the_largest_counts_as_the_largest() {
        let mut windows = Windows::default();
        windows.record(Duration::ZERO, Duration::from_secs(100_000));
        assert!(windows.since_start().max.unwrap() >= 600_000.0);
    }
}
