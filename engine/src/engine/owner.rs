//! The thread that owns the runner: commands in, steps, events out.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use super::{EngineStats, gaps::PlannedStep, outbox::Delivery, turns::StepClock};
use crate::{
    backend::{RunError, StepRunner},
    scheduler::{Scheduler, Sequence},
    sequence::FinishReason,
    step_batch::StepBatch,
};

/// Everything that can make the engine work, but for a dropped [`super::SequenceStream`]: its sequence notices by itself
/// that nobody listens.
#[derive(Debug)]
pub(super) enum Command {
    /// Run this.
    Submit(Box<Sequence>),
    /// End when all sequences have ended, at the latest at this time.
    Shutdown {
        /// `None` is never.
        deadline: Option<Instant>,
    },
}

/// What the owner thread has.
pub(super) struct EngineOwner {
    pub(super) runner: Box<dyn StepRunner>,
    pub(super) scheduler: Scheduler,
    pub(super) commands: Receiver<Command>,
    pub(super) delivery: Delivery,
    /// Written after every step, read by whoever asks; held for a copy only.
    pub(super) stats: Arc<Mutex<EngineStats>>,
    pub(super) clock: StepClock,
    pub(super) max_batch: usize,
    pub(super) ending: Option<Ending>,
}

/// Shut-down has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    deadline: Option<Instant>,
}

impl EngineOwner {
    /// Runs until shut-down, or until all handles are gone and all sequences have ended.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.step();
            self.publish();
        }
        self.end();
        self.publish();
    }

    /// Takes all commands that are there; waits for one when there is nothing to do. Whether to go on.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_empty() && self.ending.is_none() {
            self.clock.begin_idle();
            let command = self.commands.blocking_recv();
            self.clock.end_idle();
            match command {
                Some(command) => self.execute(command),
                None => self.ending = Some(Ending { deadline: None }),
            }
        }
        // Bounded, so that a flood of commands cannot hold up the steps.
        for _ in 0..self.commands.max_capacity() {
            match self.commands.try_recv() {
                Ok(command) => self.execute(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.ending.get_or_insert(Ending { deadline: None });
                    break;
                }
            }
        }
        match self.ending {
            None => true,
            Some(Ending { deadline }) => {
                !self.scheduler.is_empty()
                    && deadline.is_none_or(|deadline| Instant::now() < deadline)
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Submit(sequence) => self.scheduler.submit(*sequence),
            Command::Shutdown { deadline } => {
                let earlier = self.ending.and_then(|ending| ending.deadline);
                let deadline = earlier.into_iter().chain(deadline).min();
                self.ending = Some(Ending { deadline });
            }
        }
    }

    fn step(&mut self) {
        let Some(batch) = self.scheduler.schedule(Instant::now()) else { return };
        // Who was admitted is known before the step, which may take long.
        self.delivery.flush();
        let planned = self.planned(&batch);
        let commands = &self.commands;
        self.clock.before_step(planned, || !commands.is_empty());
        // The sequences of this batch fail, the others go on, even after a panic: the runner's state between steps is
        // weights, which a step does not write, and KV blocks, which `fail` takes out of the index.
        let result = catch_unwind(AssertUnwindSafe(|| self.runner.step(&batch)))
            .unwrap_or_else(|panic| Err(RunError::Device(panic_message(&*panic))));
        drop(batch);
        match result {
            Ok(sampled) => self.scheduler.apply(sampled, Instant::now()),
            Err(error) => {
                tracing::error!(%error, "step failed");
                self.scheduler.fail(&error.to_string());
            }
        }
        self.clock.after_step(planned);
    }

    fn planned(&self, batch: &StepBatch) -> PlannedStep {
        let n_decoding = batch.sequences.iter().filter(|sequence| sequence.rows.len() == 1).count();
        let stats = self.scheduler.stats();
        PlannedStep {
            n_decoding,
            only_decodes: n_decoding == batch.sequences.len(),
            is_crowded: stats.waiting > 0,
            room: self.max_batch.saturating_sub(stats.running.max(1) - 1) as f64
                / self.max_batch as f64,
        }
    }

    /// The numbers first: who has seen an event may count on them.
    fn publish(&self) {
        let stats = EngineStats {
            step_time: self.clock.planner().step_time(),
            undisturbed_itl_p99: self.clock.planner().interval_tail(),
            ..self.scheduler.stats()
        };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
        self.delivery.flush();
    }

    fn end(&mut self) {
        self.commands.close();
        self.scheduler.cancel_all();
        while let Some(command) = self.commands.blocking_recv() {
            match command {
                Command::Submit(sequence) => sequence.finish(FinishReason::Cancelled),
                Command::Shutdown { .. } => {}
            }
        }
    }
}

/// What a caught panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("no message"))
}
