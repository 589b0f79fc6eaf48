//! How far a fetch is: a bar on a terminal, plain lines elsewhere, nothing when not asked for.
#![expect(clippy::print_stderr, reason = "progress goes to the terminal of the person who waits")]

use std::{
    borrow::Cow,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a line for each of so many hundredths …
const LINE_STEP_PERCENT: u64 = 10;
/// … and never more often than this.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Tells a person how far a fetch is.
#[derive(Debug)]
pub(super) enum Progress {
    /// Nobody asked.
    Silent,
    /// Standard error is a terminal.
    Terminal,
    /// Standard error is a file or a pipe.
    Lines,
}

impl Progress {
    /// Silent unless `wanted`; otherwise chosen by what standard error is.
    pub(super) fn new(wanted: bool) -> Self {
        match (wanted, std::io::stderr().is_terminal()) {
            (false, _) => Self::Silent,
            (true, true) => Self::Terminal,
            (true, false) => Self::Lines,
        }
    }

    /// A line to read.
    pub(super) fn say(&self, message: impl AsRef<str>) {
        match self {
            Self::Silent => {}
            Self::Terminal | Self::Lines => eprintln!("{}", message.as_ref()),
        }
    }

    /// Whether programs that we start may draw on the terminal.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal)
    }

    /// Counts bytes, `total` of them when that is known.
    pub(super) fn bytes(&self, label: impl Into<Cow<'static, str>>, total: Option<u64>) -> Meter {
        match self {
            Self::Silent => Meter::Silent,
            Self::Terminal => Meter::Bar(bar(label.into(), total)),
            Self::Lines => Meter::Lines(Lines {
                label: label.into(),
                total,
                done: 0,
                percent: 0,
                last: Instant::now(),
            }),
        }
    }
}

fn bar(label: Cow<'static, str>, total: Option<u64>) -> ProgressBar {
    let template = if total.is_some() {
        "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{msg} {spinner} {bytes} {bytes_per_sec}"
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style.progress_chars("=> ")).with_message(label)
}

/// Counts the bytes of one file.
#[derive(Debug)]
pub(super) enum Meter {
    /// See [`Progress::Silent`].
    Silent,
    /// See [`Progress::Terminal`].
    Bar(ProgressBar),
    /// See [`Progress::Lines`].
    Lines(Lines),
}

/// Plain lines at a slow pace.
#[derive(Debug)]
pub(super) struct Lines {
    label: Cow<'static, str>,
    total: Option<u64>,
    done: u64,
    percent: u64,
    last: Instant,
}

impl Meter {
    /// Bytes that were there before this run; they don't count for the speed.
    pub(super) fn resume_at(&mut self, bytes: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_position(bytes);
                bar.reset_eta();
            }
            Self::Lines(lines) => {
                lines.done = bytes;
                lines.percent = lines.percent();
                if bytes > 0 {
                    eprintln!("{}: going on after {bytes} bytes", lines.label);
                }
            }
        }
    }

    /// `bytes` more are here.
    pub(super) fn add(&mut self, bytes: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.inc(bytes),
            Self::Lines(lines) => lines.add(bytes),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn percent(&self) -> u64 {
        self.total
            .map_or(0, |total| self.done.saturating_mul(100).checked_div(total).unwrap_or(100))
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let percent = self.percent();
        let is_step = percent >= self.percent + LINE_STEP_PERCENT || self.total.is_none();
        if is_step && self.last.elapsed() >= LINE_INTERVAL {
            (self.percent, self.last) = (percent, Instant::now());
            match self.total {
                Some(total) => eprintln!("{}: {percent} % of {total} bytes", self.label),
                None => eprintln!("{}: {} bytes", self.label, self.done),
            }
        }
    }
}
