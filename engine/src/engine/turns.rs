//! Turns on the cores: steps have them first, and one guest, a training, has what they leave.
//!
//! ```text
//! step ── tokens leave ── commands, next step planned ── gap: the guest's ── step ── …
//! no sequences: the guest's until a command comes
//! ```
//! A step waits for the last of its threads at each of some hundreds of operations, so whoever computes beside it delays
//! it by as long as that takes. A guest that computes between two steps delays the second by a time that both know
//! before. The owner thread waits for a guest that overruns for at most [`OVERRUN_MAX`].

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::gaps::{BeforeStep, GapPlanner, GuestTerms, PlannedStep};

/// How long a step waits for a guest whose time is over: about what the system's scheduler takes a core away for.
const OVERRUN_MAX: Duration = Duration::from_millis(5);

/// Who may compute.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// There are no sequences.
    Idle,
    /// A step is about to run, or runs.
    Steps,
    /// Between two steps.
    Gap { until: Instant },
}

#[derive(Debug, Default)]
struct GuestState {
    terms: Option<GuestTerms>,
    /// What it needs at least, while it waits for a turn.
    wants: Option<Duration>,
    entered: Option<Instant>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    guest: Option<GuestState>,
    /// How long guests have computed, all together.
    guest_time: Duration,
}

impl State {
    fn is_guest_inside(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.entered.is_some())
    }

    fn end_gap(&mut self) {
        if let Phase::Gap { .. } = self.phase {
            self.phase = Phase::Steps;
        }
    }
}

/// Shared by the owner thread, the guest and who sends commands. Locked for a few comparisons.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Turns {
    fn default() -> Self {
        let state = State { phase: Phase::Idle, guest: None, guest_time: Duration::ZERO };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `must_wait`, for at most `longest`.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        longest: Duration,
        must_wait: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout_while(state, longest, |state| must_wait(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes in a guest; `None` while there is one.
    pub(super) fn guest(self: &Arc<Self>) -> Option<Guest> {
        let mut state = self.lock();
        if state.guest.is_some() {
            return None;
        }
        state.guest = Some(GuestState::default());
        Some(Guest { turns: Arc::clone(self) })
    }

    /// A command was sent: a gap ends as soon as the guest can stop.
    pub(super) fn hurry(&self) {
        let mut state = self.lock();
        let Phase::Gap { until } = state.phase else { return };
        state.phase = if state.is_guest_inside() {
            Phase::Gap { until: until.min(Instant::now()) }
        } else {
            Phase::Steps
        };
        self.changed.notify_all();
    }

    /// How long guests have computed.
    pub(super) fn guest_time(&self) -> Duration {
        let state = self.lock();
        let inside = state.guest.as_ref().and_then(|guest| guest.entered);
        state.guest_time + inside.map_or(Duration::ZERO, |entered| entered.elapsed())
    }
}

/// The owner thread's side.
#[derive(Debug)]
pub(super) struct StepClock {
    turns: Arc<Turns>,
    planner: GapPlanner,
    began: Option<Instant>,
    overrun_max: Duration,
}

impl StepClock {
    pub(super) fn new(turns: Arc<Turns>) -> Self {
        Self { turns, planner: GapPlanner::default(), began: None, overrun_max: OVERRUN_MAX }
    }

    /// There are no sequences: the owner thread is about to sleep.
    pub(super) fn begin_idle(&mut self) {
        self.planner.idle();
        let mut state = self.turns.lock();
        state.phase = Phase::Idle;
        if state.guest.is_some() {
            self.turns.changed.notify_all();
        }
    }

    /// It has woken up: steps come next, after the guest's unit.
    pub(super) fn end_idle(&self) {
        let mut state = self.turns.lock();
        state.phase = Phase::Steps;
        drop(self.turns.wait(state, self.overrun_max, State::is_guest_inside));
    }

    /// Gives the guest what may be between the last step and this one. `is_urgent`, asked under the lock that
    /// [`Turns::hurry`] takes, says whether there is a command.
    pub(super) fn before_step(&mut self, step: PlannedStep, is_urgent: impl FnOnce() -> bool) {
        let turns = &self.turns;
        let mut state = turns.lock();
        let now = Instant::now();
        let guest = state.guest.as_ref();
        let terms = guest.and_then(|guest| Some((guest.terms?, guest.wants?)));
        let terms = terms.filter(|_| !is_urgent());
        let wants = terms.map_or(Duration::ZERO, |(_, wants)| wants);
        let before = self.planner.before_step(step, terms.map(|(terms, _)| terms), wants, now);
        if let BeforeStep::Gap(until) = before {
            state.phase = Phase::Gap { until };
            turns.changed.notify_all();
            let longest = until.saturating_duration_since(now).saturating_add(self.overrun_max);
            let is_gap = |state: &State| matches!(state.phase, Phase::Gap { .. });
            state = turns.wait(state, longest, is_gap);
            state.phase = Phase::Steps;
        }
        drop(state);
        self.began = Some(Instant::now());
    }

    /// The step has run and what came of it is known.
    pub(super) fn after_step(&mut self, step: PlannedStep) {
        let now = Instant::now();
        if let Some(began) = self.began.take() {
            self.planner.after_step(step, now - began, now);
        }
    }

    pub(super) fn planner(&self) -> &GapPlanner {
        &self.planner
    }
}

/// Who computes while no step runs. One at a time; dropping it makes room for another.
#[derive(Debug)]
pub struct Guest {
    turns: Arc<Turns>,
}

impl Guest {
    /// What it may have while sequences run; nothing at first.
    pub fn set_terms(&mut self, terms: Option<GuestTerms>) {
        if let Some(guest) = &mut self.turns.lock().guest {
            guest.terms = terms;
        }
    }

    /// Waits for a turn of at least `needed`, for at most `longest`.
    pub fn enter(&mut self, needed: Duration, longest: Duration) -> Option<Turn<'_>> {
        let mut state = self.turns.lock();
        state.guest.as_mut()?.wants = Some(needed);
        let mut state = self.turns.wait(state, longest, |state| state.phase == Phase::Steps);
        let may_enter = state.phase != Phase::Steps;
        let guest = state.guest.as_mut()?;
        guest.wants = None;
        guest.entered = may_enter.then(Instant::now);
        // Not `then_some`: a turn that is dropped takes the lock.
        may_enter.then(|| Turn { turns: &self.turns })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.guest = None;
        state.end_gap();
        self.turns.changed.notify_all();
    }
}

/// The cores are the guest's until this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
}

impl Turn<'_> {
    /// Whether there is time for something that takes so long.
    pub fn has_time(&self, needed: Duration) -> bool {
        match self.turns.lock().phase {
            Phase::Idle => true,
            Phase::Steps => false,
            Phase::Gap { until } => {
                let now = Instant::now();
                until > now && until - now >= needed
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        let entered = state.guest.as_mut().and_then(|guest| guest.entered.take());
        state.guest_time += entered.map_or(Duration::ZERO, |entered| entered.elapsed());
        state.end_gap();
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
            mpsc,
        },
        thread,
    };

    use super::*;

    /// Longer than any machine needs.
    const LONG: Duration = Duration::from_hours(1);
    const STEP: PlannedStep =
        PlannedStep { n_decoding: 1, only_decodes: true, is_crowded: false, room: 1.0 };
    const TERMS: GuestTerms = GuestTerms { interval_max: LONG, gap_per_step: f64::INFINITY };

    /// An engine that waits for its guest for as long as `overrun_max`, and has run a first step.
    fn clock(turns: &Arc<Turns>, overrun_max: Duration) -> StepClock {
        let mut clock = StepClock { overrun_max, ..StepClock::new(Arc::clone(turns)) };
        clock.end_idle();
        clock.before_step(STEP, || false);
        clock.after_step(STEP);
        clock
    }

    fn guest(turns: &Arc<Turns>) -> Guest {
        let mut guest = turns.guest().unwrap();
        guest.set_terms(Some(TERMS));
        guest
    }

    /// Steps until `is_over`.
    fn step_until(clock: &mut StepClock, is_over: impl Fn() -> bool, at_step: impl Fn()) {
        while !is_over() {
            clock.before_step(STEP, || false);
            at_step();
            clock.after_step(STEP);
        }
    }

    #[test]
    fn steps_and_a_guest_take_turns() {
        let turns = Arc::new(Turns::default());
        let (is_inside, n_turns) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut clock = clock(&turns, LONG);
        let mut guest = guest(&turns);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..100 {
                    let turn = guest.enter(Duration::ZERO, LONG).unwrap();
                    is_inside.store(true, SeqCst);
                    assert!(turn.has_time(Duration::from_mins(30)));
                    thread::yield_now();
                    is_inside.store(false, SeqCst);
                    drop(turn);
                    n_turns.fetch_add(1, SeqCst);
                }
                drop(guest);
            });
            let all_had = || n_turns.load(SeqCst) == 100;
            step_until(&mut clock, all_had, || assert!(!is_inside.load(SeqCst), "both at a time"));
        });
        assert!(turns.guest_time() > Duration::ZERO);
        assert!(turns.guest().is_some(), "the first has left");
    }

    #[test]
    fn a_guest_without_terms_waits_for_idle_cores_and_leaves_them_for_a_command() {
        let turns = Arc::new(Turns::default());
        let mut clock = clock(&turns, LONG);
        let mut guest = turns.guest().unwrap();
        assert!(turns.guest().is_none(), "one at a time");
        assert!(guest.enter(Duration::ZERO, Duration::ZERO).is_none(), "steps run");
        clock.begin_idle();
        let has_left = AtomicBool::new(false);
        let turn = guest.enter(LONG, LONG).unwrap();
        assert!(turn.has_time(LONG));
        thread::scope(|scope| {
            scope.spawn(|| {
                clock.end_idle();
                assert!(has_left.load(SeqCst), "steps begin after the unit");
            });
            while turn.has_time(Duration::ZERO) {
                thread::yield_now();
            }
            has_left.store(true, SeqCst);
            drop(turn);
        });
    }

    #[test]
    fn a_command_ends_a_gap() {
        let turns = Arc::new(Turns::default());
        let mut clock = clock(&turns, LONG);
        let mut guest = guest(&turns);
        let has_left = AtomicBool::new(false);
        let (entered, has_entered) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let turn = guest.enter(Duration::ZERO, LONG).unwrap();
                entered.send(()).unwrap();
                while turn.has_time(Duration::ZERO) {
                    thread::yield_now();
                }
                has_left.store(true, SeqCst);
            });
            scope.spawn(|| {
                step_until(&mut clock, || has_left.load(SeqCst), || ());
            });
            has_entered.recv().unwrap();
            turns.hurry();
        });
        // One that was there before is no gap at all.
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(guest.enter(Duration::ZERO, Duration::from_millis(20)).is_none());
                is_over.store(true, SeqCst);
            });
            while !is_over.load(SeqCst) {
                clock.before_step(STEP, || true);
                clock.after_step(STEP);
            }
        });
    }

    #[test]
    fn steps_do_not_wait_for_a_guest_that_never_leaves() {
        let turns = Arc::new(Turns::default());
        let mut clock = clock(&turns, Duration::from_millis(1));
        let mut guest = guest(&turns);
        guest.set_terms(Some(GuestTerms { interval_max: Duration::from_millis(20), ..TERMS }));
        let (entered, has_entered) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                let turn = guest.enter(Duration::ZERO, LONG).unwrap();
                entered.send(()).unwrap();
                may_leave.recv().unwrap();
                assert!(!turn.has_time(Duration::ZERO));
            });
            step_until(&mut clock, || has_entered.try_recv().is_ok(), || ());
            for _ in 0..3 {
                clock.before_step(STEP, || false);
                clock.after_step(STEP);
            }
            clock.begin_idle();
            clock.end_idle();
            leave.send(()).unwrap();
        });
    }
}
