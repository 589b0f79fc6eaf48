//! What is done with rows of more tokens than fit.

use super::{Encoder, Overlong};
use crate::data::{
    error::DataError,
    example::{Example, Record},
};

impl Encoder<'_> {
    /// Supervised records of the examples that fit and have targets.
    pub(super) fn fitting(
        &mut self,
        line: u64,
        examples: Vec<Example>,
    ) -> Result<Vec<Record>, DataError> {
        let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        let Some(overlong) = self.check_length(line, longest)? else {
            return Ok(Vec::new());
        };
        let mut records = Vec::with_capacity(examples.len());
        for example in examples {
            let n_over = if overlong { self.n_over(example.ids.len()) } else { 0 };
            let example = if n_over > 0 { example.without_first(n_over) } else { example };
            if example.n_targets() > 0 {
                self.counts.cut += u64::from(n_over > 0);
                records.push(Record::Supervised(example));
            }
        }
        self.counts.no_targets += u64::from(records.is_empty());
        Ok(records)
    }

    /// A pair loses as many tokens of the prompt on both sides, so that both answers follow the same text.
    pub(super) fn fitting_pair(
        &mut self,
        line: u64,
        pair: [Example; 2],
    ) -> Result<Vec<Record>, DataError> {
        let longest = pair.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        if self.check_length(line, longest)?.is_none() {
            return Ok(Vec::new());
        }
        let Some([preferred, rejected]) = self.without_prompts_beginning(longest, pair) else {
            return Ok(Vec::new());
        };
        Ok(vec![Record::Preference { preferred, rejected }])
    }

    pub(super) fn fitting_rated(
        &mut self,
        line: u64,
        example: Example,
        desirable: bool,
    ) -> Result<Vec<Record>, DataError> {
        let n_tokens = example.ids.len();
        if self.check_length(line, n_tokens)?.is_none() {
            return Ok(Vec::new());
        }
        let cut = self.without_prompts_beginning(n_tokens, [example]);
        let record = |[example]: [Example; 1]| Record::Rated { example, desirable };
        Ok(cut.map(record).into_iter().collect())
    }

    /// The ids, or the last of them.
    pub(super) fn fitting_ids(
        &mut self,
        line: u64,
        ids: &[u32],
    ) -> Result<Option<Box<[u32]>>, DataError> {
        let fits = self.check_length(line, ids.len())?;
        let n_over = self.n_over(ids.len());
        self.counts.cut += u64::from(fits.is_some() && n_over > 0);
        Ok(fits.map(|_| ids[n_over..].into()))
    }

    fn without_prompts_beginning<const N: usize>(
        &mut self,
        longest: usize,
        examples: [Example; N],
    ) -> Option<[Example; N]> {
        let n_over = self.n_over(longest);
        if n_over == 0 {
            return Some(examples);
        }
        let prompt =
            |example: &Example| example.spans.first().map_or(0, |span| span.start as usize);
        // One token must stay before the first target.
        if examples.iter().any(|example| n_over >= prompt(example)) {
            self.counts.skipped += 1;
            return None;
        }
        self.counts.cut += 1;
        Some(examples.map(|example| example.without_first(n_over)))
    }

    fn n_over(&self, n_tokens: usize) -> usize {
        n_tokens.saturating_sub(self.settings.tokens_max)
    }

    /// Whether the row is too long and to be cut; `None` if it is left out.
    fn check_length(&mut self, line: u64, tokens: usize) -> Result<Option<bool>, DataError> {
        let tokens_max = self.settings.tokens_max;
        if tokens <= tokens_max {
            return Ok(Some(false));
        }
        self.counts.overlong += 1;
        match self.settings.overlong {
            Overlong::Error => Err(DataError::TooLong { line, tokens, tokens_max }),
            Overlong::Skip => {
                self.counts.skipped += 1;
                Ok(None)
            }
            Overlong::CutLeft => Ok(Some(true)),
        }
    }
}
