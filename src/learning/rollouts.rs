//! Which requests go to a candidate, in memory: asked for every request whose name is on trial.
//!
//! A request that goes to either side of a [`Trial`] carries a [`Ticket`], which tells what became of it. What follows (the
//! next stage, an end) is decided here at once and written by the round's task, which is woken.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use pleach_adapters::{Alias, Generation, GenerationDigest, Namespace};
use serde_json::Value;

use super::{
    policy::Signals,
    refusals::{LOOKED_AT, is_refusal},
    token_times::{TokenTimes, mean_between},
    trial::{RequestEnd, Side, Trial, TrialPhase},
    wake::Wake,
};
use crate::http::choice::ChoiceDelta;

type Name = (Namespace, Arc<str>);

/// All names on trial.
#[derive(Debug)]
pub struct Rollouts {
    // A std lock: held for a look-up, never over an await.
    on_trial: RwLock<HashMap<Name, Arc<OnTrial>>>,
    wake: Arc<Wake>,
}

/// A name on trial.
#[derive(Debug)]
pub struct OnTrial {
    /// The round whose candidate it is.
    pub round: String,
    /// Where the name points while the candidate is not promoted; `None`: nowhere, the base answers under it.
    pub parent: Option<GenerationDigest>,
    /// What is on trial. Held, so that it stays.
    pub candidate: Arc<Generation>,
    /// What judgements mean.
    signals: Signals,
    trial: Mutex<Trial>,
}

impl OnTrial {
    /// A name whose trial begins or goes on.
    pub fn new(
        round: String,
        parent: Option<GenerationDigest>,
        candidate: Arc<Generation>,
        signals: Signals,
        trial: Trial,
    ) -> Self {
        Self { round, parent, candidate, signals, trial: Mutex::new(trial) }
    }

    /// The trial as it is now.
    pub fn trial(&self) -> Trial {
        self.lock().clone()
    }

    /// The candidate serves all from now on.
    pub fn watch(&self) -> Trial {
        let mut trial = self.lock();
        if !matches!(trial.phase, TrialPhase::Watched | TrialPhase::Settled) {
            trial.watch();
        }
        trial.clone()
    }

    /// Whether shadows are wanted now.
    pub(super) fn wants_shadows(&self) -> bool {
        self.lock().wants_shadows()
    }

    /// There was no room for a shadow.
    pub(super) fn shadow_dropped(&self) {
        self.lock().shadow_dropped();
    }

    /// Takes in what became of a shadow; whether something follows from it that is to be written.
    pub(super) fn shadow_ended(&self, end: RequestEnd) -> bool {
        self.change(|trial| trial.shadow_ended(end))
    }

    fn lock(&self) -> MutexGuard<'_, Trial> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the trial; whether something follows from it that is to be written.
    fn change(&self, change: impl FnOnce(&mut Trial)) -> bool {
        let mut trial = self.lock();
        let before = (trial.phase, trial.breach.is_some());
        change(&mut trial);
        (trial.phase, trial.breach.is_some()) != before
    }

    /// `None` is the base.
    fn side_of(&self, generation: Option<GenerationDigest>) -> Option<Side> {
        if generation == Some(self.candidate.digest) {
            return Some(Side::Candidate);
        }
        (generation == self.parent).then_some(Side::Current)
    }
}

/// What answers under a name that is on trial, unless the candidate does.
#[derive(Clone, Debug)]
pub enum Current {
    /// The base: the name has no adapter yet.
    Base,
    /// Where the name points.
    Adapter(Alias),
}

/// A request that is counted in a trial. Dropped before its end, it was given up by who sent it and counts for nothing.
pub struct Ticket {
    on_trial: Arc<OnTrial>,
    wake: Arc<Wake>,
    side: Side,
    /// What it runs on if the candidate cannot be had.
    instead: Option<Current>,
    has_shadow: bool,
    n_open: usize,
    end: RequestEnd,
    answers: HashMap<usize, Answer>,
}

/// What is seen of an answer.
#[derive(Debug, Default)]
struct Answer {
    /// How it begins.
    beginning: String,
    times: TokenTimes,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (round, side) = (&self.on_trial.round, self.side);
        formatter
            .debug_struct("Ticket")
            .field("round", round)
            .field("side", &side)
            .finish_non_exhaustive()
    }
}

impl Rollouts {
    /// Nothing on trial.
    pub fn new(wake: Arc<Wake>) -> Self {
        Self { on_trial: RwLock::default(), wake }
    }

    /// Puts a name on trial, or goes on with a trial.
    pub fn begin(&self, space: &Namespace, name: &str, on_trial: OnTrial) -> Arc<OnTrial> {
        let on_trial = Arc::new(on_trial);
        let key = (space.clone(), Arc::from(name));
        let mut all = self.on_trial.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, Arc::clone(&on_trial));
        on_trial
    }

    /// The trial of a name, if it is this round's.
    pub fn of_round(&self, space: &Namespace, name: &str, round: &str) -> Option<Arc<OnTrial>> {
        self.find(space, name).filter(|on_trial| on_trial.round == round)
    }

    /// A trial as it is now.
    pub fn trial_of(&self, space: &Namespace, name: &str) -> Option<Trial> {
        Some(self.find(space, name)?.trial())
    }

    /// Ends a round's trial; no request goes to the candidate by it any more.
    pub fn end(&self, space: &Namespace, name: &str, round: &str) {
        let key = (space.clone(), Arc::from(name));
        let mut all = self.on_trial.write().unwrap_or_else(PoisonError::into_inner);
        if all.get(&key).is_some_and(|on_trial| on_trial.round == round) {
            all.remove(&key);
        }
    }

    fn find(&self, space: &Namespace, name: &str) -> Option<Arc<OnTrial>> {
        let all = self.on_trial.read().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return None;
        }
        all.get(&(space.clone(), Arc::from(name))).cloned()
    }

    /// What a request for `name` runs on, whose name resolved to `alias` or, with `None`, to the base; and its ticket if
    /// the name is on trial. `unit` is who keeps to one side.
    pub fn route(
        &self,
        space: &Namespace,
        name: &str,
        alias: Option<Alias>,
        unit: impl FnOnce() -> String,
    ) -> (Option<Alias>, Option<Ticket>) {
        let Some(on_trial) = self.find(space, name) else { return (alias, None) };
        let here = alias.as_ref().map(|alias| alias.generation.digest);
        let (side, phase, has_shadow) = {
            let mut trial = on_trial.lock();
            let has_shadow = here == on_trial.parent && trial.has_shadow();
            (trial.side(&unit()), trial.phase, has_shadow)
        };
        let (chosen, instead) = match phase {
            // The name has been moved: all have it already.
            TrialPhase::Watched if here == Some(on_trial.candidate.digest) => (alias, None),
            TrialPhase::Shadow | TrialPhase::Stage(_) | TrialPhase::Done
                if here == on_trial.parent =>
            {
                match side {
                    Side::Current => (alias, None),
                    Side::Candidate => {
                        let generation = Arc::clone(&on_trial.candidate);
                        match alias {
                            Some(alias) => {
                                let chosen = Alias { generation, ..alias.clone() };
                                (Some(chosen), Some(Current::Adapter(alias)))
                            }
                            None => {
                                (Some(Alias::new(space, name, generation)), Some(Current::Base))
                            }
                        }
                    }
                }
            }
            // Somebody else has moved it: this trial is about something that is no more.
            TrialPhase::Shadow
            | TrialPhase::Stage(_)
            | TrialPhase::Done
            | TrialPhase::Watched
            | TrialPhase::Settled => {
                return (alias, None);
            }
        };
        let side = if phase == TrialPhase::Watched { Side::Candidate } else { side };
        let ticket = Ticket {
            on_trial,
            wake: Arc::clone(&self.wake),
            side,
            instead,
            has_shadow,
            n_open: 0,
            end: RequestEnd::default(),
            answers: HashMap::new(),
        };
        (chosen, Some(ticket))
    }

    /// Somebody gave a value of a metric to an answer of a name, which this generation gave, or the base.
    pub fn judged(
        &self,
        space: &Namespace,
        name: &str,
        generation: Option<GenerationDigest>,
        metric: &str,
        value: &Value,
    ) {
        let Some(on_trial) = self.find(space, name) else { return };
        let Some(side) = on_trial.side_of(generation) else { return };
        let rule = on_trial.signals.metrics.get(metric);
        let Some(good) = rule.and_then(|rule| rule.judge(value)) else { return };
        if on_trial.change(|trial| trial.judged(side, !good)) {
            self.wake.all();
        }
    }

    /// Whether nothing is on trial.
    pub fn is_empty(&self) -> bool {
        self.on_trial.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Ticket {
    /// Which side it is on.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The trial that its request is to be run for once more, if it is: told once.
    pub fn take_shadow(&mut self) -> Option<Arc<OnTrial>> {
        std::mem::take(&mut self.has_shadow).then(|| Arc::clone(&self.on_trial))
    }

    /// Its request is with the engine, with so many answers to come.
    pub fn begin(&mut self, n_answers: usize) {
        self.n_open = n_answers;
    }

    /// Takes in an addition to an answer. After the last one the request has ended.
    pub fn add(&mut self, delta: &ChoiceDelta) {
        let Answer { beginning, times } = self.answers.entry(delta.index).or_default();
        let n_missing = LOOKED_AT.saturating_sub(beginning.chars().count());
        beginning.extend(delta.text.chars().take(n_missing));
        delta.tokens.iter().for_each(|token| times.token(token.at));
        let Some(finish) = &delta.finish else { return };
        self.end.answers += 1;
        self.end.tokens += finish.completion_tokens as u64;
        self.end.refusals += u64::from(is_refusal(beginning));
        self.n_open = self.n_open.saturating_sub(1);
        if self.n_open == 0 {
            self.end.between_tokens =
                mean_between(self.answers.values().map(|answer| &answer.times));
            self.tell();
        }
    }

    /// The server failed the request.
    pub fn failed(mut self) {
        self.end.failed = true;
        self.tell();
    }

    /// The candidate cannot be had: what the request runs on instead, if it was on the candidate's side.
    pub fn instead(mut self) -> Option<Current> {
        let instead = self.instead.take()?;
        self.failed();
        Some(instead)
    }

    fn tell(&mut self) {
        let (side, end) = (self.side, self.end);
        if self.on_trial.change(|trial| trial.ended(side, end)) {
            self.wake.all();
        }
    }
}
