//! What one tenant may still do now: buckets for a minute's requests and tokens, counts of what is in progress.
//!
//! Pure: time is an argument, and whoever holds something gives it back ([`super::Admission`] does, by being dropped).
//! Limits are those of one process; two servers with one database have them twice.

use std::time::{Duration, Instant};

use pleach_store::Quotas;

use super::{
    Refusal,
    bucket::{Bucket, Lack},
};

/// A limit for a minute, as the `x-ratelimit-*` headers tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The limit.
    pub limit: u64,
    /// What is left now.
    pub remaining: u64,
    /// When all of it will be there again.
    pub full_after: Duration,
}

/// Both limits for a minute; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests.
    pub requests: Option<Rate>,
    /// Tokens of prompts and completions.
    pub tokens: Option<Rate>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Limiter {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    n_concurrent_max: Option<u64>,
    n_queued_max: Option<u64>,
    n_concurrent: u64,
    n_queued: u64,
}

impl Limiter {
    /// Nothing is in progress, the buckets are full.
    pub fn new(quotas: &Quotas, now: Instant) -> Self {
        let mut limiter = Self::default();
        limiter.set_quotas(quotas, now);
        limiter
    }

    /// Changes the limits. What is in progress stays, and what was taken stays taken.
    pub fn set_quotas(&mut self, quotas: &Quotas, now: Instant) {
        set_bucket(&mut self.requests, quotas.requests_per_minute, now);
        set_bucket(&mut self.tokens, quotas.tokens_per_minute, now);
        self.n_concurrent_max = quotas.concurrent_requests;
        self.n_queued_max = quotas.queued_requests;
    }

    /// A request comes.
    ///
    /// # Errors
    /// Too many at the same time, or in this minute; nothing was counted then.
    pub fn begin(&mut self, now: Instant) -> Result<(), Refusal> {
        if let Some(limit) = self.n_concurrent_max.filter(|&limit| self.n_concurrent >= limit) {
            return Err(Refusal::ConcurrentRequests { limit });
        }
        if let Some(requests) = &mut self.requests {
            requests.take(1, now).map_err(|lack| Refusal::RequestsPerMinute {
                limit: requests.limit(),
                retry_after: match lack {
                    Lack::For(time) => time,
                    // The limit is 0.
                    Lack::Forever => requests.full_after(now),
                },
            })?;
        }
        self.n_concurrent += 1;
        Ok(())
    }

    /// A request ended. One that was not `accepted` does not count for the minute.
    pub fn end(&mut self, accepted: bool, now: Instant) {
        debug_assert!(self.n_concurrent > 0, "a request ended that had not begun");
        self.n_concurrent = self.n_concurrent.saturating_sub(1);
        if let Some(requests) = self.requests.as_mut().filter(|_| !accepted) {
            requests.give_back(1, now);
        }
    }

    /// Sets tokens aside for a request.
    ///
    /// # Errors
    /// More than are left, or than there can be; nothing was set aside then.
    pub fn reserve(&mut self, n_tokens: u64, now: Instant) -> Result<(), Refusal> {
        let Some(tokens) = &mut self.tokens else { return Ok(()) };
        let (limit, requested) = (tokens.limit(), n_tokens);
        tokens.take(n_tokens, now).map_err(|lack| match lack {
            Lack::Forever => Refusal::MoreThanTheLimit { limit, requested },
            Lack::For(retry_after) => {
                let remaining = tokens.remaining(now);
                Refusal::TokensPerMinute { limit, remaining, requested, retry_after }
            }
        })
    }

    /// The request for which `n_reserved` tokens were set aside has used `n_used`.
    pub fn settle(&mut self, n_reserved: u64, n_used: u64, now: Instant) {
        let Some(tokens) = &mut self.tokens else { return };
        tokens.give_back(n_reserved.saturating_sub(n_used), now);
        tokens.charge(n_used.saturating_sub(n_reserved), now);
    }

    /// A request begins to wait.
    ///
    /// # Errors
    /// Too many wait; it was not counted then.
    pub fn queue(&mut self) -> Result<(), Refusal> {
        if let Some(limit) = self.n_queued_max.filter(|&limit| self.n_queued >= limit) {
            return Err(Refusal::QueuedRequests { limit });
        }
        self.n_queued += 1;
        Ok(())
    }

    /// A request waits no more.
    pub fn unqueue(&mut self) {
        debug_assert!(self.n_queued > 0, "a request left a queue that it was not in");
        self.n_queued = self.n_queued.saturating_sub(1);
    }

    /// The limits for a minute, and what is left of them.
    pub fn rates(&mut self, now: Instant) -> Rates {
        let rate = |bucket: &mut Bucket| Rate {
            limit: bucket.limit(),
            remaining: bucket.remaining(now),
            full_after: bucket.full_after(now),
        };
        Rates { requests: self.requests.as_mut().map(rate), tokens: self.tokens.as_mut().map(rate) }
    }

    /// Whether any request is in progress.
    pub fn is_busy(&self) -> bool {
        self.n_concurrent > 0
    }
}

fn set_bucket(bucket: &mut Option<Bucket>, limit: Option<u64>, now: Instant) {
    match (&mut *bucket, limit) {
        (Some(bucket), Some(limit)) => bucket.set_limit(limit, now),
        (_, limit) => *bucket = limit.map(|limit| Bucket::full(limit, now)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn quotas() -> Quotas {
        Quotas {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(600),
            concurrent_requests: Some(2),
            queued_requests: Some(1),
            ..Quotas::default()
        }
    }

    #[test]
    fn each_limit_refuses_by_its_name() {
        let now = Instant::now();
        let mut limiter = Limiter::new(&quotas(), now);
        limiter.begin(now).unwrap();
        limiter.begin(now).unwrap();
        assert_eq!(limiter.begin(now), Err(Refusal::ConcurrentRequests { limit: 2 }));
        limiter.queue().unwrap();
        assert_eq!(limiter.queue(), Err(Refusal::QueuedRequests { limit: 1 }));
        limiter.reserve(500, now).unwrap();
        assert_eq!(
            limiter.reserve(110, now),
            Err(Refusal::TokensPerMinute {
                limit: 600,
                remaining: 100,
                requested: 110,
                retry_after: Duration::from_secs(1)
            })
        );
        let error = limiter.reserve(601, now).unwrap_err();
        assert_eq!(error, Refusal::MoreThanTheLimit { limit: 600, requested: 601 });
        assert!(error.to_string().contains("never pass"), "{error}");
        limiter.end(true, now);
        for _ in 0..58 {
            limiter.begin(now).unwrap();
            limiter.end(true, now);
        }
        assert_eq!(
            limiter.begin(now),
            Err(Refusal::RequestsPerMinute { limit: 60, retry_after: Duration::from_secs(1) })
        );
    }

    #[test]
    fn without_quotas_there_are_no_limits() {
        let now = Instant::now();
        let mut limiter = Limiter::new(&Quotas::default(), now);
        for _ in 0..10_000 {
            limiter.begin(now).unwrap();
            limiter.queue().unwrap();
            limiter.reserve(u64::MAX, now).unwrap();
        }
        assert_eq!(limiter.rates(now), Rates::default());
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// Comes, and wants so many tokens.
        Begin(u64),
        /// One in progress ends, having used so many percent of what it reserved.
        End {
            index: usize,
            accepted: bool,
            used_percent: u64,
        },
        Pass(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            // A prompt has a token.
            3 => (1_u64..400).prop_map(Event::Begin),
            2 => (any::<usize>(), any::<bool>(), 0_u64..150)
                .prop_map(|(index, accepted, used_percent)| Event::End { index, accepted, used_percent }),
            1 => (0_u64..30_000).prop_map(Event::Pass),
        ]
    }

    proptest! {
        /// Against a model that knows who is in progress: the limits hold at any time, and when all have ended nothing is
        /// held any more; a minute later the buckets are full.
        #[test]
        fn limits_hold_and_everything_comes_back(events in prop::collection::vec(event(), 1..200)) {
            let mut now = Instant::now();
            let mut limiter = Limiter::new(&quotas(), now);
            let mut running: BTreeMap<usize, u64> = BTreeMap::new();
            for (id, event) in events.into_iter().enumerate() {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::Begin(n_tokens) => {
                        let begun = limiter.begin(now);
                        prop_assert!(begun.is_err() || running.len() < 2);
                        if begun.is_err() {
                            continue;
                        }
                        let before = limiter.rates(now).tokens.unwrap().remaining;
                        let is_reserved = limiter.reserve(n_tokens, now).is_ok();
                        prop_assert_eq!(is_reserved, n_tokens <= before);
                        if is_reserved {
                            running.insert(id, n_tokens);
                        } else {
                            limiter.end(false, now);
                        }
                    }
                    Event::End { index, accepted, used_percent } => {
                        let Some(&id) = running.keys().nth(index % running.len().max(1)) else { continue };
                        let n_reserved = running.remove(&id).unwrap();
                        let n_used = if accepted { n_reserved * used_percent / 100 } else { 0 };
                        limiter.settle(n_reserved, n_used, now);
                        limiter.end(accepted, now);
                    }
                }
                prop_assert_eq!(limiter.is_busy(), !running.is_empty());
            }
            for n_reserved in running.into_values() {
                limiter.settle(n_reserved, 0, now);
                limiter.end(false, now);
            }
            prop_assert!(!limiter.is_busy());
            // Debts are paid by then: at most half of what was reserved at a time.
            let rates = limiter.rates(now + Duration::from_mins(3));
            prop_assert_eq!((rates.requests.unwrap().remaining, rates.tokens.unwrap().remaining), (60, 600));
        }
    }
}
