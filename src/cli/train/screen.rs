//! What a training says: a line now and then, and a bar on a terminal.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]
#![expect(clippy::print_stderr, reason = "warnings go to the person who waits")]

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use pleach_trainer::{
    StepReport, StopSignal,
    recipe::{Compute, Measured, Method, Place, Prepared, TrainingMemory},
};

use super::{base::OpenBase, setup::Setup};
use crate::memory::show_bytes;

/// Lines about steps in a training: about so many.
const LINES: u64 = 20;

/// Lines to standard output, a bar to standard error.
#[derive(Debug)]
pub(super) struct Screen {
    is_quiet: bool,
    bar: ProgressBar,
    total: u64,
    began: Instant,
    /// Steps that were made before.
    before: u64,
    rows: usize,
}

impl Screen {
    pub(super) fn new(is_quiet: bool, total: u64) -> Self {
        let bar = if is_quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(total)
        };
        let template = "training [{bar:30}] {pos}/{len} {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { is_quiet, bar, total, began: Instant::now(), before: 0, rows: 0 }
    }

    fn say(&self, line: &str) {
        if !self.is_quiet {
            self.bar.suspend(|| println!("{line}"));
        }
    }

    pub(super) fn warn(&self, line: &str) {
        self.bar.suspend(|| eprintln!("warning: {line}"));
    }

    /// What is going to be done.
    pub(super) fn begin(
        &self,
        setup: &Setup,
        base: &OpenBase,
        prepared: &Prepared,
        need: &TrainingMemory,
        compute: Compute,
    ) {
        let settings = prepared.resolved();
        self.say(&format!(
            "model       {}, {}; {} threads, {} kernels, products in {}",
            setup.model,
            show_bytes(base.file_bytes),
            compute.threads,
            compute.isa,
            setup.precision,
        ));
        let beta = match setup.method {
            Method::Supervised => String::new(),
            Method::Dpo | Method::Kto | Method::Reinforcement => {
                format!(", beta {}", settings.beta)
            }
        };
        self.say(&format!(
            "training    {}: rank {}, {} parameters; {} epochs of {} steps of {} rows, learning rate {:.1e}{beta}, seed {}",
            setup.method.name(),
            settings.lora_rank,
            need.n_parameters,
            settings.n_epochs,
            prepared.steps_per_epoch(),
            settings.batch_size,
            settings.learning_rate,
            setup.seed,
        ));
        self.say(&format!(
            "memory      about {} beside the model",
            show_bytes(need.peak_bytes() as u64)
        ));
    }

    /// From where it begins.
    pub(super) fn resume(&mut self, place: &Place) {
        (self.before, self.began) = (place.steps, Instant::now());
        self.bar.set_position(place.steps);
        self.bar.reset_eta();
        if place.steps > 0 {
            self.say(&format!("going on after step {}", place.steps));
        }
    }

    pub(super) fn step(&mut self, step: u64, report: &StepReport) {
        self.rows += report.rows;
        self.bar.set_position(step);
        self.bar.set_message(format!("loss {:.3}", report.loss));
        let stride = self.total.div_ceil(LINES);
        let is_shown = step == 1 || step == self.total || step.is_multiple_of(stride);
        if !is_shown {
            return;
        }
        let Measured { loss, accuracy } = Measured::of(report);
        let seconds = self.began.elapsed().as_secs_f64();
        let left = seconds / (step - self.before).max(1) as f64 * (self.total - step) as f64;
        self.say(&format!(
            "step {step:>6}/{}  loss {loss:.4}  accuracy {:5.1} %  gradient norm {:.3}  rate {:.2e}  {:.0} tokens/s  {} left",
            self.total,
            100.0 * accuracy,
            report.grad_norm,
            report.learning_rate,
            self.rows as f64 / seconds.max(1e-9),
            show_time(left),
        ));
    }

    pub(super) fn validation(&self, step: u64, valid: Measured, verdict: StopSignal) {
        let words = match verdict {
            StopSignal::Best => "best so far, kept",
            StopSignal::Wait => "no better than the best",
            StopSignal::Stop => "no better for too long: enough",
        };
        self.say(&format!(
            "step {step:>6}/{}  validation loss {:.4}  accuracy {:.1} %  ({words})",
            self.total,
            valid.loss,
            100.0 * valid.accuracy,
        ));
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// `5 s`, `3 min`, `2.5 h`.
pub(in crate::cli) fn show_time(seconds: f64) -> String {
    let minutes = seconds / Duration::from_mins(1).as_secs_f64();
    if seconds < 100.0 {
        format!("{seconds:.0} s")
    } else if minutes < 100.0 {
        format!("{minutes:.0} min")
    } else {
        format!("{:.1} h", minutes / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!(show_time(0.4), "0 s");
        assert_eq!(show_time(99.4), "99 s");
        assert_eq!(show_time(180.0), "3 min");
        assert_eq!(show_time(9000.0), "2.5 h");
    }
}
