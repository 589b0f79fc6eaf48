//! How long a guest may compute between two steps. No clock of its own: times are given.

use std::time::{Duration, Instant};

use super::step_times::{Intervals, RunningTime};

/// Of so many gaps that could be, one is left out: how long intervals are without a guest has to be known.
const CONTROL_EVERY: u64 = 16;
/// The quantile that is told of intervals without a guest.
const TAIL: f64 = 0.99;

/// What a guest may have while sequences run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuestTerms {
    /// Longest time between two tokens of a sequence, as far as it is the guest's to keep.
    pub interval_max: Duration,
    /// A gap is at most so many times as long as steps usually are.
    pub gap_per_step: f64,
}

/// A step that was planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedStep {
    /// Sequences with one row: they wait for their next token.
    pub n_decoding: usize,
    /// Whether there are no others in it.
    pub only_decodes: bool,
    /// Whether others wait for a place.
    pub is_crowded: bool,
    /// Share of the places in a step that are free, one sequence counting for none.
    pub room: f64,
}

/// What comes before a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BeforeStep {
    /// Nothing.
    Nothing,
    /// Nothing, though there could be a gap: this interval counts for those that have one.
    Control,
    /// A gap until then.
    Gap(Instant),
}

/// Plans gaps from what steps took.
#[derive(Debug, Default)]
pub struct GapPlanner {
    /// Of steps in which all sequences decode.
    decode_time: RunningTime,
    /// Without a guest.
    intervals: Intervals,
    /// When the tokens of the last step left; `None` when there were no sequences in between.
    last_end: Option<Instant>,
    step_time: Duration,
    n_possible: u64,
    /// How often the interval that the next step ends counts.
    weight: u64,
}

impl GapPlanner {
    /// There are no sequences now.
    pub fn idle(&mut self) {
        self.last_end = None;
    }

    /// What comes before a step, for a guest that wants so much time at least.
    pub fn before_step(
        &mut self,
        step: PlannedStep,
        terms: Option<GuestTerms>,
        wants: Duration,
        now: Instant,
    ) -> BeforeStep {
        self.weight = 1;
        let gap = terms.and_then(|terms| self.gap_length(terms, step, now));
        let Some(gap) = gap.filter(|&gap| gap >= wants && !gap.is_zero()) else {
            return BeforeStep::Nothing;
        };
        self.n_possible += 1;
        if self.n_possible.is_multiple_of(CONTROL_EVERY) {
            self.weight = CONTROL_EVERY;
            return BeforeStep::Control;
        }
        self.weight = 0;
        BeforeStep::Gap(now + gap)
    }

    /// A step has run, and its tokens leave now.
    pub fn after_step(&mut self, step: PlannedStep, took: Duration, now: Instant) {
        self.step_time += took;
        if step.only_decodes {
            self.decode_time.record(took.as_secs_f64());
        }
        if let (Some(last_end), true) = (self.last_end, self.weight > 0) {
            let interval = now.saturating_duration_since(last_end);
            self.intervals.record(interval, self.weight * step.n_decoding as u64);
        }
        self.last_end = Some(now);
    }

    /// None while a prompt is read or a sequence waits: who waits for a first token waits for nothing else. The fuller the
    /// batch, the less: a gap makes every sequence stay longer, and a full batch makes others wait.
    fn gap_length(&self, terms: GuestTerms, step: PlannedStep, now: Instant) -> Option<Duration> {
        if !step.only_decodes || step.is_crowded {
            return None;
        }
        let (step_time, usual) = (self.decode_time.expected()?, self.decode_time.mean()?);
        // What has passed since the last tokens counts: the bound is on the whole interval.
        let passed = now.saturating_duration_since(self.last_end?).as_secs_f64();
        let left = terms.interval_max.as_secs_f64() - step_time;
        let gap = left.min(usual * terms.gap_per_step) * step.room.clamp(0.0, 1.0);
        Duration::try_from_secs_f64(gap.min(left - passed)).ok()
    }

    /// How long steps have taken, all together.
    pub fn step_time(&self) -> Duration {
        self.step_time
    }

    /// The interval between tokens that 99 of 100 do not exceed without a guest; `None` until there were enough.
    pub fn interval_tail(&self) -> Option<Duration> {
        self.intervals.quantile(TAIL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ALONE: PlannedStep =
        PlannedStep { n_decoding: 1, only_decodes: true, is_crowded: false, room: 1.0 };
    const TERMS: GuestTerms =
        GuestTerms { interval_max: Duration::from_millis(25), gap_per_step: 10.0 };

    /// A planner that has seen steps of ten milliseconds, and the time of the last one's end.
    fn planner() -> (GapPlanner, Instant) {
        let (mut planner, mut now) = (GapPlanner::default(), Instant::now());
        for _ in 0..300 {
            assert_eq!(planner.before_step(ALONE, None, MS, now), BeforeStep::Nothing);
            now += 10 * MS;
            planner.after_step(ALONE, 10 * MS, now);
        }
        (planner, now)
    }

    fn gap(terms: GuestTerms, step: PlannedStep, after: Duration, wants: Duration) -> f64 {
        let (mut planner, last) = planner();
        let now = last + after;
        match planner.before_step(step, Some(terms), wants, now) {
            BeforeStep::Gap(until) => 1000.0 * (until - now).as_secs_f64(),
            BeforeStep::Nothing => 0.0,
            BeforeStep::Control => panic!("the first gap is none"),
        }
    }

    #[test]
    fn a_gap_is_what_the_interval_leaves_and_less_in_a_full_batch() {
        let near = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 0.05, "{found}, expected {expected}");
        };
        near(gap(TERMS, ALONE, Duration::ZERO, MS), 15.0);
        near(gap(TERMS, ALONE, 4 * MS, MS), 11.0);
        near(gap(TERMS, PlannedStep { room: 0.2, ..ALONE }, 4 * MS, MS), 3.0);
        near(gap(GuestTerms { gap_per_step: 0.5, ..TERMS }, ALONE, Duration::ZERO, MS), 5.0);
        let tight = GuestTerms { interval_max: 9 * MS, ..TERMS };
        for none in [
            gap(TERMS, ALONE, Duration::ZERO, 16 * MS),
            gap(TERMS, ALONE, 20 * MS, Duration::ZERO),
            gap(tight, ALONE, Duration::ZERO, Duration::ZERO),
            gap(TERMS, PlannedStep { only_decodes: false, ..ALONE }, Duration::ZERO, MS),
            gap(TERMS, PlannedStep { is_crowded: true, ..ALONE }, Duration::ZERO, MS),
            gap(TERMS, PlannedStep { room: 0.0, ..ALONE }, Duration::ZERO, MS),
        ] {
            near(none, 0.0);
        }
        // After a pause without sequences nobody waits for a next token.
        let (mut planner, now) = planner();
        planner.idle();
        assert_eq!(planner.before_step(ALONE, Some(TERMS), MS, now), BeforeStep::Nothing);
    }

    #[test]
    fn the_tail_is_that_of_intervals_without_a_guest() {
        let (mut planner, mut now) = planner();
        let reading = PlannedStep { only_decodes: false, ..ALONE };
        let mut controls = 0;
        for n in 0..10_000 {
            let (step, took) = if n % 40 == 0 { (reading, 30 * MS) } else { (ALONE, 10 * MS) };
            match planner.before_step(step, Some(TERMS), MS, now) {
                BeforeStep::Gap(until) => now = until,
                BeforeStep::Control => controls += 1,
                BeforeStep::Nothing => assert!(!step.only_decodes),
            }
            now += took;
            planner.after_step(step, took, now);
        }
        assert_eq!(controls, 9750 / 16);
        // One of forty is 30 ms; those of 25 ms with a gap do not count.
        let found = planner.interval_tail().unwrap().as_secs_f64();
        assert!((0.030..0.0315).contains(&found), "{found}");
        let median = planner.intervals.quantile(0.97).unwrap().as_secs_f64();
        assert!((0.010..0.0105).contains(&median), "{median}");
        assert_eq!(planner.step_time(), 300 * 10 * MS + 250 * 30 * MS + 9750 * 10 * MS);
    }
}
