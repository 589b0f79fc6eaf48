//! The time between two tokens of an answer.

use std::time::Instant;

/// When the tokens of an answer came. How long it waited, and how long its prompt took, says nothing of the generation: both
/// are before the first token.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TokenTimes {
    first_and_last: Option<(Instant, Instant)>,
    n_tokens: u32,
}

impl TokenTimes {
    /// Another token came.
    pub(super) fn token(&mut self, at: Instant) {
        let first = self.first_and_last.map_or(at, |(first, _)| first);
        self.first_and_last = Some((first, at));
        self.n_tokens += 1;
    }

    /// The mean time from one token to the next, seconds; `None` of fewer than two.
    pub(super) fn between(&self) -> Option<f64> {
        let n_times = self.n_tokens.checked_sub(1).filter(|n_times| *n_times > 0)?;
        let (first, last) = self.first_and_last?;
        Some(last.saturating_duration_since(first).as_secs_f64() / f64::from(n_times))
    }
}

/// The mean over answers of which there is a time.
pub(super) fn mean_between<'t>(answers: impl Iterator<Item = &'t TokenTimes>) -> Option<f64> {
    let (sum, n_answers) = answers
        .filter_map(TokenTimes::between)
        .fold((0.0, 0_u32), |(sum, n_answers), time| (sum + time, n_answers + 1));
    (n_answers > 0).then(|| sum / f64::from(n_answers))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn answer(ms: &[u64]) -> TokenTimes {
        let (began, mut times) = (Instant::now(), TokenTimes::default());
        for ms in ms {
            times.token(began + Duration::from_millis(*ms));
        }
        times
    }

    #[test]
    fn what_is_before_the_first_token_does_not_count() {
        assert_eq!(answer(&[]).between(), None);
        assert_eq!(answer(&[9000]).between(), None);
        assert_eq!(answer(&[9000, 9500]).between(), Some(0.5));
        assert_eq!(answer(&[9000, 9100, 9750]).between(), Some(0.375));
        let answers = [answer(&[5]), answer(&[0, 250]), answer(&[70, 820])];
        assert_eq!(mean_between(answers.iter()), Some(0.5));
        assert_eq!(mean_between(answers[..1].iter()), None);
    }
}
