//! Whether something happens more often on one side of a trial than on the other, told from chance.

use pleach_trainer::gate::{alpha_of_look, upper_quantile};

/// How often, over all looks of one trial, a candidate that is no worse may be taken for one.
const ALPHA: f64 = 0.05;
/// As good as endless: the t of so many degrees of freedom is the normal distribution's, within a thousandth.
const DEGREES_OF_FREEDOM: usize = 1000;

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) part: u64,
    pub(super) whole: u64,
}

impl Counted {
    pub(super) fn share(self) -> f64 {
        self.part as f64 / self.whole.max(1) as f64
    }

    /// Wilson's interval of the share, `z` standard deviations to each side.
    fn interval(self, z: f64) -> [f64; 2] {
        let (n, p) = (self.whole.max(1) as f64, self.share());
        let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        [middle - half, middle + half]
    }
}

/// Which look it is, from 1, if one is made when what is counted grows from `before` to `after`: with `first`, and
/// whenever there is half as much again. Who looked after each answer would find a difference in noise sooner or later.
pub(super) fn look_between(before: u64, after: u64, first: u64) -> Option<u32> {
    let (mut at, mut look) = (first.max(2), 0);
    let mut found = None;
    while at <= after {
        look += 1;
        if at > before {
            found = Some(look);
        }
        at = at.saturating_add(at.div_ceil(2));
        if at == u64::MAX {
            break;
        }
    }
    found
}

/// Whether the candidate's share is above the current generation's with the confidence of this look: the lower bound of
/// their difference, by Newcombe (1998), method 10, is above 0.
pub(super) fn is_more_often(candidate: Counted, current: Counted, look: u32) -> bool {
    let z = upper_quantile(alpha_of_look(ALPHA, look), DEGREES_OF_FREEDOM);
    let ([low, _], [_, high]) = (candidate.interval(z), current.interval(z));
    let (of_candidate, of_current) = (candidate.share(), current.share());
    let below = (of_candidate - low).hypot(high - of_current);
    of_candidate - of_current - below > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_grow_by_half() {
        let looks: Vec<(u64, u32)> =
            (0..40).filter_map(|n| Some((n + 1, look_between(n, n + 1, 5)?))).collect();
        assert_eq!(looks, [(5, 1), (8, 2), (12, 3), (18, 4), (27, 5)]);
        // Several answers at a time pass over one.
        assert_eq!(look_between(11, 13, 5), Some(3));
        assert_eq!(look_between(4, 20, 5), Some(4));
        assert_eq!(look_between(12, 12, 5), None);
        assert!(look_between(0, u64::MAX, 5).is_some());
    }

    /// Newcombe's own table, example (a): 56/70 and 48/80 have [0.0524, 0.3339] at 95 %.
    #[test]
    fn the_bound_is_newcombes() {
        let z = upper_quantile(0.025, 100_000);
        let (a, b) = (Counted { part: 56, whole: 70 }, Counted { part: 48, whole: 80 });
        let ([low, _], [_, high]) = (a.interval(z), b.interval(z));
        let lower = a.share() - b.share() - (a.share() - low).hypot(high - b.share());
        assert!((lower - 0.0524).abs() < 1e-4, "{lower}");
    }

    #[test]
    fn what_is_much_worse_shows_at_the_first_look() {
        let all = Counted { part: 5, whole: 5 };
        assert!(is_more_often(all, Counted { part: 0, whole: 5 }, 1));
        assert!(is_more_often(all, Counted { part: 20, whole: 100 }, 1));
        assert!(!is_more_often(Counted { part: 2, whole: 5 }, Counted { part: 20, whole: 100 }, 1));
        assert!(!is_more_often(all, all, 1));
    }

    /// Equals over a thousand judgements, looked at as a trial does: seldom taken for worse.
    #[test]
    fn equals_are_seldom_taken_for_worse() {
        let mut state = 7_u64;
        let mut draw = |share: f64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u64::from(((state >> 11) as f64 / (1_u64 << 53) as f64) < share)
        };
        for share in [0.05, 0.1, 0.3, 0.5] {
            let mut taken = 0;
            for _ in 0..400 {
                let mut sides = [Counted { part: 0, whole: 0 }; 2];
                for n in 0..1000 {
                    for side in &mut sides {
                        side.part += draw(share);
                        side.whole += 1;
                    }
                    let [candidate, current] = sides;
                    let look = look_between(n, n + 1, 5);
                    if look.is_some_and(|look| is_more_often(candidate, current, look)) {
                        taken += 1;
                        break;
                    }
                }
            }
            assert!(taken <= 28, "{taken} of 400 at {share}");
        }
    }
}
