//! A token bucket that refills continuously: its limit is both what it holds and what comes back in a minute.
//!
//! All sums are exact: what is in it is counted in parts of 1/60 000 000 000, of which a limit of 1 brings one each
//! nanosecond. Time is an argument, so nothing runs in the background.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_mins(1);
/// Parts of one.
const PARTS: i128 = MINUTE.as_nanos().cast_signed();

/// Why a bucket did not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It will have enough after this time, if nobody else takes any.
    For(Duration),
    /// It never holds so much.
    Forever,
}

/// See the module. It may owe: [`Self::charge`] takes what is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    limit: u64,
    /// In parts; at most `limit`, below zero while it owes.
    parts: i128,
    /// When `parts` was right.
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn full(limit: u64, now: Instant) -> Self {
        Self { limit, parts: parts_of(limit), at: now }
    }

    /// What it holds when full.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Changes the limit. What was taken stays taken.
    pub(super) fn set_limit(&mut self, limit: u64, now: Instant) {
        self.refill(now);
        self.parts += parts_of(limit) - parts_of(self.limit);
        self.limit = limit;
    }

    /// Takes `n`, or nothing.
    ///
    /// # Errors
    /// [`Lack`]; nothing was taken then.
    pub(super) fn take(&mut self, n: u64, now: Instant) -> Result<(), Lack> {
        self.refill(now);
        if n > self.limit {
            return Err(Lack::Forever);
        }
        let left = self.parts - parts_of(n);
        if left < 0 {
            return Err(Lack::For(self.time_for(-left)));
        }
        self.parts = left;
        Ok(())
    }

    /// Takes `n`, whether they are there or not.
    pub(super) fn charge(&mut self, n: u64, now: Instant) {
        self.refill(now);
        self.parts -= parts_of(n);
    }

    /// Puts back `n` that were taken and not used. It never holds more than its limit.
    pub(super) fn give_back(&mut self, n: u64, now: Instant) {
        self.refill(now);
        self.parts = (self.parts + parts_of(n)).min(parts_of(self.limit));
    }

    /// Whole ones that can be taken now.
    pub(super) fn remaining(&mut self, now: Instant) -> u64 {
        self.refill(now);
        u64::try_from(self.parts.max(0) / PARTS).unwrap_or(u64::MAX)
    }

    /// How long until it is full, if nobody takes any.
    pub(super) fn full_after(&mut self, now: Instant) -> Duration {
        self.refill(now);
        self.time_for(parts_of(self.limit) - self.parts)
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let elapsed = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let gained = i128::from(self.limit).saturating_mul(elapsed);
        self.parts = self.parts.saturating_add(gained).min(parts_of(self.limit));
    }

    /// The time in which so many parts come back, rounded up.
    fn time_for(&self, parts: i128) -> Duration {
        if parts <= 0 {
            return Duration::ZERO;
        }
        if self.limit == 0 {
            // Nothing ever comes back; it is as good a time as any to look whether the limit was changed.
            return MINUTE;
        }
        let limit = i128::from(self.limit);
        Duration::from_nanos(u64::try_from((parts + limit - 1) / limit).unwrap_or(u64::MAX))
    }
}

fn parts_of(n: u64) -> i128 {
    i128::from(n) * PARTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_refills_at_its_limit_a_minute() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        assert_eq!(bucket.take(60, start), Ok(()));
        assert_eq!(bucket.take(1, start), Err(Lack::For(SECOND)));
        assert_eq!(bucket.take(2, start), Err(Lack::For(2 * SECOND)));
        assert_eq!(bucket.take(61, start), Err(Lack::Forever));
        let later = start + SECOND;
        assert_eq!((bucket.remaining(later), bucket.full_after(later)), (1, 59 * SECOND));
        assert_eq!(bucket.take(1, later), Ok(()));
        assert_eq!(bucket.remaining(later + 10 * MINUTE), 60);
    }

    #[test]
    fn it_may_owe_and_lets_nobody_in_until_it_has_paid() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        bucket.charge(90, start);
        assert_eq!((bucket.remaining(start), bucket.full_after(start)), (0, 90 * SECOND));
        assert_eq!(bucket.take(1, start), Err(Lack::For(31 * SECOND)));
        assert_eq!(bucket.take(0, start), Err(Lack::For(30 * SECOND)));
        bucket.give_back(200, start);
        assert_eq!(bucket.remaining(start), 60);
    }

    #[test]
    fn what_was_taken_stays_taken_when_the_limit_changes() {
        let start = Instant::now();
        let mut bucket = Bucket::full(100, start);
        bucket.take(40, start).unwrap();
        bucket.set_limit(50, start);
        assert_eq!((bucket.limit(), bucket.remaining(start)), (50, 10));
        bucket.set_limit(0, start);
        assert_eq!((bucket.remaining(start), bucket.take(1, start)), (0, Err(Lack::Forever)));
        assert_eq!(bucket.remaining(start + 100 * MINUTE), 0);
        bucket.set_limit(1000, start);
        assert_eq!(bucket.remaining(start), 960);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Take(u64),
        GiveBack(u64),
        Charge(u64),
        Pass(Duration),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_u64..200).prop_map(Event::Take),
            (0_u64..50).prop_map(Event::GiveBack),
            (0_u64..150).prop_map(Event::Charge),
            (0_u64..20_000_000_000).prop_map(|ns| Event::Pass(Duration::from_nanos(ns))),
        ]
    }

    proptest! {
        /// Whatever happens in whichever pieces of time: no more is given than the limit and what came back since, a lack
        /// ends exactly when it was said to, and it never holds more than its limit.
        #[test]
        fn gives_what_comes_back_and_no_more(
            limit in 1_u64..150,
            events in prop::collection::vec(event(), 1..200),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::full(limit, start);
            let (mut given, mut put_back) = (0_i128, 0_i128);
            for event in events {
                match event {
                    Event::Pass(time) => now += time,
                    Event::GiveBack(n) => {
                        bucket.give_back(n, now);
                        put_back += i128::from(n);
                    }
                    Event::Charge(n) => {
                        bucket.charge(n, now);
                        given += i128::from(n);
                    }
                    Event::Take(n) => match bucket.take(n, now) {
                        Ok(()) => given += i128::from(n),
                        Err(Lack::Forever) => prop_assert!(n > limit),
                        Err(Lack::For(time)) => {
                            prop_assert!(time > Duration::ZERO);
                            let mut early = bucket;
                            prop_assert!(early.take(n, now + time.saturating_sub(Duration::from_nanos(1))).is_err());
                            let mut due = bucket;
                            prop_assert_eq!(due.take(n, now + time), Ok(()));
                        }
                    },
                }
                prop_assert!(bucket.remaining(now) <= limit);
                let mut full = bucket;
                let full_at = now + full.full_after(now);
                prop_assert_eq!(full.remaining(full_at), limit);
                let came_back = i128::from(limit) * i128::try_from((now - start).as_nanos()).unwrap();
                let owed = (given - put_back - i128::from(limit)) * PARTS - came_back;
                // What it owes was charged, and never taken.
                prop_assert!(owed <= 0 || bucket.remaining(now) == 0);
            }
        }

        /// Looking more often changes nothing.
        #[test]
        fn time_may_pass_in_any_pieces(limit in 1_u64..1_000_000, cuts in prop::collection::vec(0_u64..5_000_000_000, 1..50)) {
            let start = Instant::now();
            let mut often = Bucket::full(limit, start);
            often.take(limit, start).unwrap();
            let mut once = often;
            let mut now = start;
            for cut in cuts {
                now += Duration::from_nanos(cut);
                often.remaining(now);
            }
            once.remaining(now);
            prop_assert_eq!(often, once);
        }
    }
}
