//! The rounds that this process looks after: claimed from the store, each followed by a task of its own.
//!
//! ```text
//! building ──> training ──> gating ──> (awaiting_approval) ──> (shadow) ──> canary ──> promoted ──> watched
//!     └─ skipped    │           └─ refused     │ vetoed           └─ rolled_back ──────────┘
//!                   └────────── failed, cancelled: from every state that is open
//! ```
//!
//! A step reads what is stored, does something that may be done again, and writes what came of it in one transaction. So
//! whoever follows a process that died goes on with the step that it was at.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pleach_store::{RoundChange, RoundSignal, RoundState, StoreError, StoredRound};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::sleep,
};

use super::{
    building::build,
    claims::{Followed, Following, beat},
    ending,
    examiner::Examiner,
    gating::{first_of_trial, gate, name_of},
    progress::Progress,
    promotion::{canary, watch},
    rollouts::Rollouts,
    shadows::{Shadows, run_shadows},
    steps::{Next, StepError, ends, refusal},
    training::train,
    triggers,
    wake::{Waiter, Wake},
};
use crate::http::{ids, state::AppState};

/// A process that was not heard of for so long has died.
const SILENCE: Duration = Duration::from_secs(15);
/// How often this one says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(3);
/// How often it is looked for what nobody told of.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long between two looks at the least, however much is told.
const REST: Duration = Duration::from_millis(100);
/// Of the time, looking takes one part in so many.
const LOOKS_ONE_PART_IN: u32 = 10;
/// How long a round rests that failed for the store's sake.
const STORE_REST: Duration = Duration::from_secs(5);
/// How long a round rests whose follower has panicked.
const PANIC_REST: Duration = Duration::from_secs(5);
/// Rounds that a process works on at a time. Those that wait for people or for requests do not count.
pub const ROUNDS_MAX: usize = 256;

/// The loop's part of what every handler shares.
#[derive(Debug)]
pub struct Learning {
    /// Names on trial.
    pub rollouts: Rollouts,
    /// Requests that are run on candidates for nobody to see.
    pub shadows: Shadows,
    /// Wakes all that waits for something of the loop to happen.
    pub wake: Arc<Wake>,
    /// Told of what rounds are made of: feedback and policies.
    pub fed: Wake,
    examiner: Option<Arc<dyn Examiner>>,
    rounds_max: usize,
}

impl Learning {
    /// With an examiner, or without: then no rounds are run here. `rounds_max` rounds are worked on at a time.
    pub fn new(examiner: Option<Arc<dyn Examiner>>, rounds_max: usize) -> Self {
        let wake = Arc::new(Wake::default());
        let rollouts = Rollouts::new(Arc::clone(&wake));
        let shadows = Shadows::new(Arc::clone(&wake));
        Self { rollouts, shadows, wake, fed: Wake::default(), examiner, rounds_max }
    }

    /// Whether this process runs rounds.
    pub fn is_on(&self) -> bool {
        self.examiner.is_some()
    }
}

/// Begins to run rounds, if this process can, and to end those that have ended. Ends when the server stops.
pub fn run_rounds(state: &Arc<AppState>) -> JoinHandle<()> {
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let finishing = tokio::spawn(ending::finish_all(Arc::clone(&state)));
        if let Some(examiner) = state.learning.examiner.clone() {
            run_all(state, examiner).await;
        }
        // It has no panic that would be told.
        let _ = finishing.await;
    })
}

async fn run_all(state: Arc<AppState>, examiner: Arc<dyn Examiner>) {
    let runner: Arc<str> = ids::random("loop-").into();
    let (mut waiter, mut fed) = (state.learning.wake.waiter(), state.learning.fed.waiter());
    let places = Arc::new(Semaphore::new(state.learning.rounds_max));
    let followed = Arc::new(Followed::default());
    // By itself: looking for rounds to begin takes as long as it takes.
    let beats = beat(state.store.clone(), Arc::clone(&runner), Arc::clone(&followed), BEAT_EVERY);
    let beats = tokio::spawn(beats);
    let shadows = tokio::spawn(run_shadows(Arc::clone(&state)));
    while state.is_serving() {
        let began = Instant::now();
        if let Err(error) = look(&state, &examiner, &runner, &places, &followed).await {
            tracing::warn!(%error, "rounds cannot be looked for");
            sleep(STORE_REST).await;
        }
        // However much is told and however many policies there are, looking takes little of the time.
        sleep(REST.max(began.elapsed() * LOOKS_ONE_PART_IN).min(LOOK_EVERY)).await;
        tokio::select! {
            () = waiter.wait(LOOK_EVERY) => {}
            () = fed.wait(LOOK_EVERY) => {}
        }
    }
    shadows.abort();
    // Whoever follows a round lets go of it.
    state.learning.wake.all();
    followed.ended().await;
    beats.abort();
}

async fn look(
    state: &Arc<AppState>,
    examiner: &Arc<dyn Examiner>,
    runner: &Arc<str>,
    places: &Arc<Semaphore>,
    ours: &Arc<Followed>,
) -> Result<(), StoreError> {
    triggers::look(state).await?;
    loop {
        let place = Arc::clone(places).try_acquire_owned().ok();
        let claimed = state.store.claim_round(runner, SILENCE, place.is_some()).await?;
        let Some(round) = claimed else { return Ok(()) };
        // What is followed here was silent because the store was.
        let Some(following) = ours.follow(&round.id) else { continue };
        let follower = Follower {
            _following: following,
            state: Arc::clone(state),
            examiner: Arc::clone(examiner),
            runner: Arc::clone(runner),
            waiter: state.learning.wake.waiter(),
            place: place.filter(|_| !round.state.waits()),
        };
        tokio::spawn(follow(follower, round));
    }
}

/// Follows a round. If that panics, the round is let go of after a rest: whoever takes it up goes on with the step that it
/// was at.
async fn follow(follower: Follower, round: StoredRound) {
    let (state, runner) = (Arc::clone(&follower.state), Arc::clone(&follower.runner));
    let ended = tokio::spawn(follower.follow(round.clone())).await;
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!(round = round.id, "what follows a round has panicked: it is begun anew");
        sleep(PANIC_REST).await;
        let_go(&state, &round, &runner).await;
    }
}

/// The same round, after a rest.
async fn again(round: StoredRound, error: &StoreError) -> Option<StoredRound> {
    tracing::warn!(round = round.id, %error, "a step is made again");
    sleep(STORE_REST).await;
    Some(round)
}

async fn let_go(state: &AppState, round: &StoredRound, runner: &str) {
    if let Err(error) = state.store.release_round(round, runner).await {
        // It is claimed again when its time is over.
        tracing::warn!(round = round.id, %error, "a round is not let go of");
    }
}

/// Follows one round.
struct Follower {
    /// While it is there, others hear that this process has the round.
    _following: Following,
    state: Arc<AppState>,
    examiner: Arc<dyn Examiner>,
    runner: Arc<str>,
    waiter: Waiter,
    /// While it works on the round.
    place: Option<OwnedSemaphorePermit>,
}

impl Follower {
    async fn follow(mut self, mut round: StoredRound) {
        tracing::info!(round = round.id, owner = %round.owner, adapter = round.name, state = round.state.name(), "a round goes on");
        while self.state.is_serving() {
            let next = match self.step(&round).await {
                Ok(next) => next,
                Err(error) => match error.lasting() {
                    Ok(error) => ends(RoundState::Failed, error),
                    Err(error) => {
                        tracing::warn!(round = round.id, %error, "a round rests");
                        sleep(STORE_REST).await;
                        continue;
                    }
                },
            };
            let followed = match next {
                Next::Change(change) => self.write(round, &change).await,
                Next::Wait => self.wait(round).await,
                Next::LetGo => {
                    let_go(&self.state, &round, &self.runner).await;
                    return;
                }
            };
            match followed {
                Some(next) => round = next,
                None => return,
            }
        }
        let_go(&self.state, &round, &self.runner).await;
    }

    async fn step(&self, round: &StoredRound) -> Result<Next, StepError> {
        let progress = Progress::of(round)?;
        // Another process may have made the name, or moved it.
        self.state.adapters.refresh(name_of(round)).await?;
        match round.state {
            RoundState::Building => build(&self.state, round, progress).await,
            RoundState::Training => train(&self.state, &self.examiner, round, progress).await,
            RoundState::Gating => gate(&self.state, &self.examiner, round, progress).await,
            RoundState::AwaitingApproval if round.is_approved() => {
                let state = Some(first_of_trial(&progress));
                Ok(Next::Change(Box::new(RoundChange { state, ..RoundChange::default() })))
            }
            RoundState::Shadow | RoundState::Canary => canary(&self.state, round, progress).await,
            RoundState::AwaitingApproval
            | RoundState::Promoted
            | RoundState::Refused
            | RoundState::Vetoed
            | RoundState::RolledBack
            | RoundState::Failed
            | RoundState::Skipped
            | RoundState::Cancelled => Ok(Next::LetGo),
        }
    }

    /// Writes a change; the round as it is then, unless it is over for this process.
    async fn write(&mut self, round: StoredRound, change: &RoundChange) -> Option<StoredRound> {
        match self.state.store.advance_round(&round, &self.runner, change).await {
            Ok(RoundSignal::GoOn(now)) => {
                if now.state != round.state {
                    tracing::info!(round = now.id, state = now.state.name(), error = ?now.error, "a round goes on");
                }
                if now.state.waits() {
                    // For as long as requests take to come: no place that others need.
                    drop(self.place.take());
                }
                if !now.state.is_final() {
                    return Some(*now);
                }
                self.state.telemetry.count_round(now.state.name());
                self.end(&now).await;
                None
            }
            // Somebody has ended it, and cleans up; but may have done so before the last step.
            Ok(RoundSignal::Ended(now)) => {
                self.end(&now).await;
                None
            }
            Ok(RoundSignal::Lost) => {
                tracing::warn!(round = round.id, "another process follows the round");
                self.leave(&round);
                None
            }
            Err(StoreError::WrongState { .. }) => {
                tracing::error!(round = round.id, ?change, "a step that leads nowhere");
                None
            }
            // An example or a file has gone meanwhile: then it is made of what is left.
            Err(error @ StoreError::NotFound { .. }) => again(round, &error).await,
            Err(error) if !error.may_pass() && change.state != Some(RoundState::Failed) => {
                let (state, error) = (Some(RoundState::Failed), Some(refusal(&error)));
                let failed = RoundChange { state, error, ..RoundChange::default() };
                Box::pin(self.write(round, &failed)).await
            }
            Err(error) => again(round, &error).await,
        }
    }

    async fn end(&mut self, round: &StoredRound) {
        ending::clean_up(&self.state, round).await;
        // What waits for the end of a round may begin now.
        self.state.learning.wake.all();
        if round.state == RoundState::Promoted {
            drop(self.place.take());
            watch(&self.state, round, &mut self.waiter).await;
        }
    }

    /// Waits until something has happened; the round as it is then, unless it has ended.
    async fn wait(&mut self, round: StoredRound) -> Option<StoredRound> {
        if !self.state.is_serving() {
            return Some(round);
        }
        self.waiter.wait(LOOK_EVERY).await;
        match self.state.store.round(&round.owner, &round.id).await {
            Ok(now) if now.state.is_final() => {
                self.end(&now).await;
                None
            }
            Ok(now) => Some(now),
            Err(error) => {
                tracing::warn!(round = round.id, %error, "a round is looked at later");
                Some(round)
            }
        }
    }

    fn leave(&self, round: &StoredRound) {
        let space = name_of(round).space();
        self.state.learning.rollouts.end(&space, &round.name, &round.id);
    }
}
