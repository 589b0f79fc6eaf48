//! How much of a training runs between the steps of what is served: units as long as they fit.

use std::time::{Duration, Instant};

use pleach_engine::{
    engine::{EngineHandle, Guest, GuestTerms, RunningTime},
    train::{Progress, UnitCost},
};

/// Intervals between tokens beside a training may be so many times those without.
const INTERVAL_FACTOR: f64 = 1.5;
/// Unless told how long intervals may be, a gap is at most this part of a step: half as long again may the usual interval
/// become, and the batch grows by those who stay longer.
const GAP_PER_STEP: f64 = 0.3;
/// Taken for a unit of which nothing is known.
const UNIT_TIME: Duration = Duration::from_millis(1);
/// What a prediction loses that kept a unit out for seconds: it may have been wrong.
const FORGOTTEN: f64 = 0.25;

/// What a training may have, and how long its units take. Times are given to it.
#[derive(Debug)]
pub(super) struct Slices {
    /// What somebody set.
    interval_max: Option<Duration>,
    /// By the binary logarithm of a unit's work: operations of one size are often of one kind.
    by_size: [RunningTime; 65],
    /// Per multiply-add, of all.
    rate: RunningTime,
}

impl Slices {
    /// `interval_max`: the longest interval between tokens; unless it is given, it follows from intervals without a training.
    pub(super) fn new(interval_max: Option<Duration>) -> Self {
        Self { interval_max, by_size: [RunningTime::default(); 65], rate: RunningTime::default() }
    }

    /// What to ask of the engine; `None` as long as it is not known how long intervals are without a training.
    pub(super) fn terms(&self, undisturbed_itl_p99: Option<Duration>) -> Option<GuestTerms> {
        if let Some(interval_max) = self.interval_max {
            return Some(GuestTerms { interval_max, gap_per_step: f64::INFINITY });
        }
        let interval_max = undisturbed_itl_p99?.mul_f64(INTERVAL_FACTOR);
        Some(GuestTerms { interval_max, gap_per_step: GAP_PER_STEP })
    }

    /// What a unit will hardly exceed.
    pub(super) fn expected(&self, cost: UnitCost) -> Duration {
        let by_rate = || Some(self.rate.mean()? * cost.work as f64);
        let seconds = self.by_size[class(cost)].expected().or_else(by_rate);
        seconds.and_then(|time| Duration::try_from_secs_f64(time).ok()).unwrap_or(UNIT_TIME)
    }

    /// A unit took so long.
    pub(super) fn record(&mut self, cost: UnitCost, took: Duration) {
        let seconds = took.as_secs_f64();
        self.by_size[class(cost)].record(seconds);
        if cost.work > 0 {
            self.rate.record(seconds / cost.work as f64);
        }
    }

    /// No turn was long enough for a unit.
    pub(super) fn waited_in_vain(&mut self, cost: UnitCost) {
        self.by_size[class(cost)].forget(FORGOTTEN);
    }
}

fn class(cost: UnitCost) -> usize {
    (u64::BITS - cost.work.leading_zeros()) as usize
}

/// A training, or what else computes for a while, on the cores of steps.
#[derive(Debug)]
pub(crate) struct BesideSteps {
    engine: EngineHandle,
    guest: Guest,
    slices: Slices,
    /// What comes next.
    next: UnitCost,
    /// Since when there was no turn that was long enough.
    waits_since: Option<Instant>,
}

impl BesideSteps {
    /// `None` while another training computes.
    pub(crate) fn new(engine: EngineHandle, interval_max: Option<Duration>) -> Option<Self> {
        let guest = engine.guest()?;
        let slices = Slices::new(interval_max);
        Some(Self { engine, guest, slices, next: UnitCost { work: 0 }, waits_since: None })
    }

    /// How long it has waited for a turn by now.
    pub(super) fn waiting(&self) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The bound that is kept now; `None` while training rests as soon as there are sequences.
    pub(crate) fn interval_max(&self) -> Option<Duration> {
        Some(self.slices.terms(self.engine.stats().undisturbed_itl_p99)?.interval_max)
    }

    /// Calls `advance`, which works unit by unit while it is told to, in every turn until it is done or it is `until`.
    pub(crate) fn work<E>(
        &mut self,
        until: Instant,
        mut advance: impl FnMut(&mut dyn FnMut(UnitCost) -> bool) -> Result<Progress, E>,
    ) -> Result<Progress, E> {
        let Self { engine, guest, slices, next, waits_since } = self;
        guest.set_terms(slices.terms(engine.stats().undisturbed_itl_p99));
        loop {
            let asked = Instant::now();
            let left = until.saturating_duration_since(asked);
            let Some(turn) = guest.enter(slices.expected(*next), left) else {
                slices.waited_in_vain(*next);
                waits_since.get_or_insert(asked);
                return Ok(Progress::Paused);
            };
            let mut began = Instant::now();
            let mut running = None;
            let mut go_on = |cost| {
                let now = Instant::now();
                if let Some(done) = running.take() {
                    slices.record(done, now - began);
                }
                (began, *next) = (now, cost);
                let goes_on = now < until && turn.has_time(slices.expected(cost));
                running = goes_on.then_some(cost);
                if goes_on {
                    *waits_since = None;
                }
                goes_on
            };
            let progress = advance(&mut go_on)?;
            if let Some(done) = running {
                slices.record(done, began.elapsed());
            }
            drop(turn);
            if progress == Progress::Done || Instant::now() >= until {
                return Ok(progress);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pleach_engine::engine::{BeforeStep, GapPlanner, PlannedStep};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn unit(work: u64) -> UnitCost {
        UnitCost { work }
    }

    #[test]
    fn units_are_expected_by_size_and_others_by_their_work() {
        let mut slices = Slices::new(None);
        assert_eq!(slices.expected(unit(7)), UNIT_TIME);
        for _ in 0..100 {
            slices.record(unit(40_000_000), MS);
            slices.record(unit(500_000), MS / 10);
        }
        let near = |cost, expected: Duration| {
            let ratio = slices.expected(cost).as_secs_f64() / expected.as_secs_f64();
            assert!((0.99..1.05).contains(&ratio), "{cost:?}: {ratio} of {expected:?}");
        };
        near(unit(40_000_000), MS);
        near(unit(35_000_000), MS);
        near(unit(400_000), MS / 10);
        assert!(slices.expected(unit(80_000_000)) > MS);
        for _ in 0..20 {
            slices.waited_in_vain(unit(40_000_000));
        }
        assert!(slices.expected(unit(40_000_000)) < MS / 100, "it is tried again some time");
    }

    #[test]
    fn the_bound_is_what_was_set_or_follows_from_what_was_measured() {
        let set = Slices::new(Some(30 * MS)).terms(Some(10 * MS)).unwrap();
        assert_eq!(set, GuestTerms { interval_max: 30 * MS, gap_per_step: f64::INFINITY });
        assert_eq!(Slices::new(None).terms(None), None);
        let measured = Slices::new(None).terms(Some(10 * MS)).unwrap();
        assert_eq!(measured, GuestTerms { interval_max: 15 * MS, gap_per_step: GAP_PER_STEP });
    }

    /// Numbers that look random, in `0..1`.
    fn random(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 40) as f64 / (1u64 << 24) as f64
    }

    /// What a simulated server came to.
    struct Simulated {
        /// Of single intervals between tokens, in seconds, ascending.
        intervals: Vec<f64>,
        guest: f64,
        /// What the bound would have left to a guest that knew all times before.
        left: f64,
    }

    /// Serves `n_steps` on a clock of its own: steps of about 8 ms, each fortieth reads a prompt for 20 ms, and units of
    /// three sizes whose times vary.
    fn simulate(slices: &mut Slices, n_steps: u32, is_training: bool) -> Simulated {
        let mut state = 11;
        let (mut planner, mut now) = (GapPlanner::default(), Instant::now());
        let mut simulated = Simulated { intervals: Vec::new(), guest: 0.0, left: 0.0 };
        let mut next = unit(0);
        for n in 0..n_steps {
            let began = now;
            let reads = n % 40 == 0;
            let step =
                PlannedStep { n_decoding: 4, only_decodes: !reads, is_crowded: false, room: 1.0 };
            let took =
                (if reads { 20 * MS } else { 8 * MS }).mul_f64(0.95 + 0.1 * random(&mut state));
            let terms = slices.terms(planner.interval_tail()).filter(|_| is_training);
            let wants = slices.expected(next);
            if let BeforeStep::Gap(until) = planner.before_step(step, terms, wants, now) {
                while now + slices.expected(next) <= until {
                    let time =
                        MS.mul_f64(next.work as f64 / 4e7 * (0.7 + 0.6 * random(&mut state)));
                    slices.record(next, time);
                    now += time;
                    simulated.guest += time.as_secs_f64();
                    let sizes = [40_000_000, 3_000_000, 500_000];
                    next = unit(
                        sizes[usize::from(random(&mut state) < 0.5)
                            + usize::from(random(&mut state) < 0.3)],
                    );
                }
                let terms = terms.unwrap();
                let left = terms.interval_max.saturating_sub(took).as_secs_f64();
                simulated.left += left.min(terms.gap_per_step * took.as_secs_f64());
            }
            now += took;
            planner.after_step(step, took, now);
            simulated.intervals.push((now - began).as_secs_f64());
        }
        simulated.intervals.sort_by(f64::total_cmp);
        simulated
    }

    #[test]
    fn a_training_keeps_to_its_bound_and_takes_what_that_leaves() {
        let p99 = |run: &Simulated| run.intervals[run.intervals.len() * 99 / 100];
        let alone = simulate(&mut Slices::new(None), 20_000, false);
        let tail = p99(&alone);
        // In a short gap, the time that is too short for another unit is a larger part.
        for (interval_max, share_min) in [(None, 0.6), (Some(12 * MS), 0.6), (Some(30 * MS), 0.8)] {
            let beside = simulate(&mut Slices::new(interval_max), 20_000, true);
            let bound = interval_max.map_or(1.5 * tail, |time| time.as_secs_f64().max(tail));
            let found = p99(&beside);
            assert!(found <= bound * 1.05, "{interval_max:?}: {found}, bound {bound}");
            let share = beside.guest / beside.left;
            assert!(share >= share_min, "{interval_max:?}: {share} of what was left");
        }
        let none = simulate(&mut Slices::new(Some(7 * MS)), 5_000, true);
        assert_eq!(none.guest.to_bits(), 0f64.to_bits(), "steps alone take longer");
    }
}
