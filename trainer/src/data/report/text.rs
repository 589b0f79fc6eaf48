//! The report for people.

use std::fmt;

use super::{DataReport, Level};

/// Classes that are printed; the most frequent first.
const CLASSES_SHOWN: usize = 10;

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows        {}, records {}", self.rows, self.encoding.records)?;
        let lengths = &self.lengths;
        writeln!(
            f,
            "tokens      {}; of a record: mean {:.0}, P50 {}, P95 {}, P99 {}, longest {}",
            self.tokens, lengths.mean, lengths.p50, lengths.p95, lengths.p99, lengths.max
        )?;
        if self.targets > 0 {
            let share = self.targets as f64 / self.tokens as f64 * 100.0;
            writeln!(f, "targets     {} ({share:.1} %)", self.targets)?;
        }
        writeln!(
            f,
            "duplicates  {} exact, {} near (in {} groups)",
            self.duplicates, self.near_duplicates, self.near_duplicate_groups
        )?;
        if !self.classes.is_empty() {
            let mut classes: Vec<_> = self.classes.iter().collect();
            classes.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let shown: Vec<String> =
                classes.iter().take(CLASSES_SHOWN).map(|(name, n)| format!("{name} {n}")).collect();
            let more = if classes.len() > CLASSES_SHOWN { ", …" } else { "" };
            writeln!(f, "classes     {}: {}{more}", classes.len(), shown.join(", "))?;
        }
        if self.validation_rows > 0 {
            writeln!(
                f,
                "validation  {} rows, {} near training rows",
                self.validation_rows, self.overlap
            )?;
        }
        for finding in &self.findings {
            writeln!(f, "{:<5} {}: {}", finding.level, finding.check, finding.message)?;
        }
        Ok(())
    }
}
