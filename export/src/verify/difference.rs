//! How far rows of logits are apart.

/// Rows whose two likeliest tokens are at least this far apart, in nats, have a clear choice: between others a rounding
/// anywhere decides.
const CLEAR_MARGIN: f32 = 0.05;

/// Over some rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Difference {
    pub(super) rows: usize,
    /// Largest absolute difference of a logit; infinite where one is no number.
    pub(super) logit_max: f32,
    kl_sum: f64,
    same_top: usize,
    clear_rows: usize,
    clear_same_top: usize,
}

impl Difference {
    /// Adds rows of `vocab` logits each.
    pub(super) fn add(&mut self, reference: &[f32], found: &[f32], vocab: usize) {
        assert_eq!(reference.len(), found.len(), "rows that are compared");
        for (reference, found) in reference.chunks_exact(vocab).zip(found.chunks_exact(vocab)) {
            self.rows += 1;
            for (a, b) in reference.iter().zip(found) {
                let difference = (a - b).abs();
                // `max` would pass over what is no number.
                let difference = if difference.is_nan() { f32::INFINITY } else { difference };
                self.logit_max = self.logit_max.max(difference);
            }
            self.kl_sum += kl(reference, found);
            let best = argmax(reference);
            let is_same = best == argmax(found);
            self.same_top += usize::from(is_same);
            if margin(reference, best) >= CLEAR_MARGIN {
                self.clear_rows += 1;
                self.clear_same_top += usize::from(is_same);
            }
        }
    }

    /// Mean Kullback–Leibler divergence of the found distributions from the reference, nats.
    pub(super) fn kl(&self) -> f64 {
        self.kl_sum / self.rows.max(1) as f64
    }

    /// Share of rows with the same likeliest token.
    pub(super) fn top1(&self) -> f64 {
        self.same_top as f64 / self.rows.max(1) as f64
    }

    /// The same over rows where the reference's choice is clear; 1 if there is none.
    pub(super) fn clear_top1(&self) -> f64 {
        if self.clear_rows == 0 {
            return 1.0;
        }
        self.clear_same_top as f64 / self.clear_rows as f64
    }
}

/// How far the best is above all others.
fn margin(logits: &[f32], best: usize) -> f32 {
    let others = logits.iter().enumerate().filter(|&(index, _)| index != best);
    logits[best] - others.map(|(_, &logit)| logit).fold(f32::NEG_INFINITY, f32::max)
}

fn kl(reference: &[f32], found: &[f32]) -> f64 {
    let (a, b) = (log_sum_exp(reference), log_sum_exp(found));
    let terms = reference.iter().zip(found).map(|(&p, &q)| {
        let log_p = f64::from(p) - a;
        log_p.exp() * (log_p - (f64::from(q) - b))
    });
    terms.sum()
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// The first of the largest.
pub(super) fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_do_not_differ_and_shifted_ones_have_no_divergence() {
        let mut difference = Difference::default();
        difference.add(&[1.0, 2.0, 0.5], &[1.0, 2.0, 0.5], 3);
        assert!(difference.logit_max < 1e-9 && difference.kl().abs() < 1e-12);
        assert!(difference.top1() > 0.999);
        difference.add(&[1.0, 2.0, 0.5], &[2.0, 3.0, 1.5], 3);
        assert!((difference.logit_max - 1.0).abs() < 1e-6 && difference.kl().abs() < 1e-12);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let mut difference = Difference::default();
        // p = (1/4, 3/4), q = (1/2, 1/2).
        difference.add(&[0.0, 3f32.ln()], &[7.0, 7.0], 2);
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((difference.kl() - expected).abs() < 1e-7, "{}", difference.kl());
        assert!(difference.top1() < 1e-9);
    }

    #[test]
    fn only_rows_with_a_clear_choice_count_as_clear() {
        let mut difference = Difference::default();
        assert!((difference.clear_top1() - 1.0).abs() < 1e-12);
        // Changed, but hardly decided.
        difference.add(&[1.0, 1.01, 0.5], &[1.01, 1.0, 0.5], 3);
        assert!(difference.top1() < 1e-9 && (difference.clear_top1() - 1.0).abs() < 1e-12);
        difference.add(&[1.0, 2.0, 0.5], &[1.0, 2.0, 0.5], 3);
        difference.add(&[1.0, 2.0, 0.5], &[2.0, 1.0, 0.5], 3);
        assert!((difference.top1() - 1.0 / 3.0).abs() < 1e-9);
        assert!((difference.clear_top1() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_number_is_no_small_difference() {
        let mut difference = Difference::default();
        difference.add(&[0.0, 1.0], &[f32::NAN, 1.0], 2);
        assert!(difference.logit_max.is_infinite());
    }
}
