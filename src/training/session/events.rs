//! What a training tells in words and numbers: that it begins, what each step came to, and what that means.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use pleach_store::{EventLevel, JobEvent, JobReport, JobStatus};
use pleach_trainer::{
    StepReport,
    data::Position,
    recipe::{Measured, Resolved},
};
use serde_json::json;

use super::{Rewards, RunError, Session};

/// Steps whose metrics are events; of longer trainings every so many.
const METRIC_EVENTS_MAX: u64 = 1000;

/// A training that waits so long for a turn says so.
const WAITS_LONG: Duration = Duration::from_secs(30);

impl Session<'_> {
    pub(in crate::training) fn announce(&mut self, resolved: &Resolved) -> Result<(), RunError> {
        let is_resumed = self.place.steps > 0;
        if is_resumed {
            self.events.clear();
            let at = self.place.steps;
            self.events.push(JobEvent::info(format!("Training goes on after step {at}")));
        } else {
            self.events.insert(0, JobEvent::info("Files validated, moving job to queued state"));
            let queued = JobReport {
                status: Some(JobStatus::Queued),
                events: std::mem::take(&mut self.events),
                ..JobReport::default()
            };
            self.obey(self.run.report(&queued)?)?;
            let mut settings = json!(resolved);
            settings["early_stopping"] = json!(self.run.spec.early_stopping);
            settings["memory_bytes"] = json!(self.memory_bytes);
            self.events.push(JobEvent {
                metrics: Some(settings),
                ..JobEvent::info("Fine-tuning job started")
            });
        }
        let running = JobReport {
            status: Some(JobStatus::Running),
            events: std::mem::take(&mut self.events),
            ..JobReport::default()
        };
        let itl_ms = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
        tracing::info!(
            job = self.run.job.id,
            undisturbed_itl_p99_ms = itl_ms(self.trainer.engine.stats().undisturbed_itl_p99),
            itl_budget_ms = itl_ms(self.beside.interval_max()),
            "training runs between steps"
        );
        self.run.server().telemetry.set_training_itl_budget(self.beside.interval_max());
        self.obey(self.run.report(&running)?)
    }

    /// Notes what a step came to.
    pub(in crate::training) fn note(
        &mut self,
        next: Position,
        report: &StepReport,
        rewards: Option<Rewards>,
        valid: Option<Measured>,
    ) {
        self.place.advance(next, report);
        let (step, total) = (self.place.steps, self.total_steps);
        let train = match rewards {
            Some(rewards) => Measured { loss: report.loss, accuracy: rewards.mean },
            None => Measured::of(report),
        };
        self.results.push(step, train, valid);
        if report.skipped {
            self.warn(format!(
                "Step {step}: a gradient or the loss is not finite, the weights stay"
            ));
        }
        // The loss of a policy gradient says nothing by its size: it is near zero before and after.
        if rewards.is_none() {
            let found = self.diagnosis.step(report);
            let found = found
                .into_iter()
                .chain(valid.and_then(|valid| self.diagnosis.validation(valid.loss)));
            for symptom in found.collect::<Vec<_>>() {
                self.warn(format!("Step {step}: {symptom}"));
            }
        }
        let stride = total.div_ceil(METRIC_EVENTS_MAX);
        if step.is_multiple_of(stride) || valid.is_some() {
            let mut metrics = metrics(step, report, rewards, valid);
            metrics["total_steps"] = json!(total);
            metrics["learning_rate"] = json!(report.learning_rate);
            metrics["grad_norm"] = json!(report.grad_norm);
            metrics["update_norm"] = json!(report.update_norm);
            metrics["memory_bytes"] = json!(self.memory_bytes);
            let (since, tokens) =
                std::mem::replace(&mut self.measured, (Instant::now(), self.place.tokens));
            let tokens = (self.place.tokens - tokens) as f64;
            metrics["tokens_per_second"] = json!(tokens / since.elapsed().as_secs_f64().max(1e-9));
            let mut message = match rewards {
                Some(rewards) => {
                    format!("Step {step}/{total}: training mean reward={:.2}", rewards.mean)
                }
                None => format!("Step {step}/{total}: training loss={:.2}", report.loss),
            };
            // Writing to a string cannot fail.
            let _ = match (valid, rewards) {
                (Some(valid), Some(_)) => {
                    write!(message, ", full validation mean reward={:.2}", valid.accuracy)
                }
                (Some(valid), None) => write!(message, ", full validation loss={:.2}", valid.loss),
                (None, _) => Ok(()),
            };
            self.events.push(JobEvent { metrics: Some(metrics), ..JobEvent::info(message) });
        }
    }

    /// Warns, once, when sequences have left no time for long.
    pub(super) fn tell_of_waiting(&mut self) {
        let waits = self.beside.waiting() >= WAITS_LONG;
        if waits && !self.told_waiting {
            self.warn(match self.beside.interval_max() {
                None => "The training waits: how long tokens take without it is not known yet".to_owned(),
                Some(time) => format!(
                    "The training waits: requests leave no time within {:.1} ms from token to token",
                    1000.0 * time.as_secs_f64()
                ),
            });
        }
        self.told_waiting = waits;
    }

    pub(super) fn warn(&mut self, message: String) {
        self.events.push(JobEvent { level: EventLevel::Warn, ..JobEvent::info(message) });
    }
}

/// With the names of `OpenAI`'s checkpoints.
pub(super) fn metrics(
    step: u64,
    report: &StepReport,
    rewards: Option<Rewards>,
    valid: Option<Measured>,
) -> serde_json::Value {
    let mut metrics = json!({ "step": step, "train_loss": report.loss });
    if let Some(rewards) = rewards {
        metrics["train_reward_mean"] = json!(rewards.mean);
        metrics["train_reward_std"] = json!(rewards.deviation);
        metrics["train_kl"] = json!(report.divergence);
        metrics["train_mean_completion_tokens"] = json!(rewards.completion_tokens);
        metrics["train_cut_share"] = json!(rewards.cut_share);
        metrics["train_flat_share"] = json!(rewards.flat_share);
        metrics["train_unread_share"] = json!(rewards.unread_share);
        if let Some(valid) = valid {
            metrics["valid_reward_mean"] = json!(valid.accuracy);
        }
        return metrics;
    }
    metrics["train_mean_token_accuracy"] = json!(Measured::of(report).accuracy);
    if let Some(valid) = valid {
        metrics["full_valid_loss"] = json!(valid.loss);
        metrics["full_valid_mean_token_accuracy"] = json!(valid.accuracy);
    }
    metrics
}
