//! Files of rows, and what is said of them before anything is learned.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use pleach_trainer::{
    data::{DataError, DataReport, Format, Level, Loaded, ReadLimits, RowReader, RowSource as _},
    recipe::{Method, load},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::base::OpenBase;
use crate::hex::hex;

/// A file of rows, as it was when a training began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct RowFile {
    pub(in crate::cli) path: PathBuf,
    sha256: String,
}

impl RowFile {
    /// # Errors
    /// When it cannot be read, by `flag`.
    pub(in crate::cli) fn open(flag: &str, path: &Path) -> anyhow::Result<Self> {
        let at = || format!("{flag} {}", path.display());
        let path = path.canonicalize().with_context(at)?;
        Ok(Self { sha256: sha256_of(&path).with_context(at)?, path })
    }

    /// # Errors
    /// When the file is not what it was.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let at = self.path.display();
        let found = sha256_of(&self.path).with_context(|| at.to_string())?;
        if found != self.sha256 {
            bail!("{at} is not what it was when the training began");
        }
        Ok(())
    }

    fn rows(&self) -> anyhow::Result<RowReader<BufReader<File>>> {
        let file = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        Ok(RowReader::new(BufReader::new(file), None, ReadLimits::default()))
    }

    /// The method that learns from such rows, by the first of them.
    ///
    /// # Errors
    /// When the first row is bad, or nothing learns from such rows.
    pub(in crate::cli) fn method(&self) -> anyhow::Result<Method> {
        let mut rows = self.rows()?;
        let at = || self.path.display().to_string();
        rows.next().ok_or(DataError::Empty).flatten().with_context(at)?;
        match rows.format() {
            Some(Format::Preference) => Ok(Method::Dpo),
            Some(Format::Kto) => Ok(Method::Kto),
            Some(Format::Supervised | Format::Text) => Ok(Method::Supervised),
            Some(Format::Reinforcement) => {
                bail!(
                    "{}: answers to such rows are sampled by a server: give it to a reinforcement job",
                    at()
                )
            }
            Some(Format::Classification | Format::Regression) | None => {
                bail!("{}: no method learns from such rows", at())
            }
        }
    }
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Reads and encodes all rows.
///
/// # Errors
/// The first bad lines.
pub(in crate::cli) fn read_rows(
    train: &RowFile,
    validation: Option<&RowFile>,
    base: &OpenBase,
) -> anyhow::Result<Loaded> {
    let mut rows = train.rows()?;
    let mut of_validation = validation.map(RowFile::rows).transpose()?;
    let more = of_validation.as_mut().map(|rows| rows as _);
    load(&mut rows, more, base.text(), base.spec().context).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let files = [Some(train), validation].into_iter().flatten();
        let files: Vec<String> = files.map(|file| file.path.display().to_string()).collect();
        anyhow!("{}:\n  {}", files.join(" or "), lines.join("\n  "))
    })
}

/// Says what the rows are and what stands out.
pub(in crate::cli) fn print_report(report: &DataReport) {
    let lengths = &report.lengths;
    println!(
        "data        {} rows, {} tokens, {} of them targets; an example has {:.0} tokens, P95 {}, at most {}",
        report.rows, report.tokens, report.targets, lengths.mean, lengths.p95, lengths.max,
    );
    if report.validation_rows > 0 {
        println!("validation  {} rows", report.validation_rows);
    }
    for finding in &report.findings {
        let level = match finding.level {
            Level::Note => "note",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        println!("{level:<11} {}: {}", finding.check, finding.message);
    }
}

/// # Errors
/// The first finding with which training makes no sense.
pub(super) fn refuse_failures(report: &DataReport) -> anyhow::Result<()> {
    match report.findings.iter().find(|finding| finding.level == Level::Fail) {
        Some(finding) => bail!("{}: {}", finding.check, finding.message),
        None => Ok(()),
    }
}
