//! What can be set about a tenant, as flags.

use std::{num::NonZeroU32, str::FromStr};

use crate::{
    memory::parse_bytes,
    tenants::{KEEP_DAYS_MAX, Quota, TenantChange},
};

/// Flags of `add` and `set`.
#[derive(Debug, clap::Args)]
pub(super) struct ChangeArgs {
    /// Share among the tenants of the same priority that wait, relative to theirs [default: 1].
    #[arg(long, value_name = "N")]
    weight: Option<NonZeroU32>,
    /// Class from 0 to 255; higher ones are served first [default: 0].
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// Requests in a minute; like all limits: none unless set, and "none" takes it away.
    #[arg(long, value_name = "N|none")]
    requests_per_minute: Option<Limit>,
    /// Tokens of prompts and completions in a minute.
    #[arg(long, value_name = "N|none")]
    tokens_per_minute: Option<Limit>,
    /// Requests at the same time.
    #[arg(long, value_name = "N|none")]
    concurrent_requests: Option<Limit>,
    /// Requests that wait for their adapter or the engine.
    #[arg(long, value_name = "N|none")]
    queued_requests: Option<Limit>,
    /// Names of adapters.
    #[arg(long, value_name = "N|none")]
    adapters: Option<Limit>,
    /// Bytes of the files of all adapters, such as 2GiB.
    #[arg(long, value_name = "BYTES|none", value_parser = parse_byte_limit)]
    adapter_bytes: Option<Limit>,
    /// Bytes of files to train on, such as 2GiB.
    #[arg(long, value_name = "BYTES|none", value_parser = parse_byte_limit)]
    file_bytes: Option<Limit>,
    /// Training jobs that wait or run.
    #[arg(long, value_name = "N|none")]
    training_jobs: Option<Limit>,
    /// Whether completions are kept, to learn from them, that did not ask for it [default: false].
    #[arg(long, value_name = "true|false")]
    capture: Option<bool>,
    /// Days that completions and feedback on them are kept [default: 30].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(KEEP_DAYS_MAX)))]
    keep_days: Option<u32>,
}

impl ChangeArgs {
    pub(super) fn into_change(self, name: Option<String>) -> TenantChange {
        let limits = [
            (Quota::RequestsPerMinute, self.requests_per_minute),
            (Quota::TokensPerMinute, self.tokens_per_minute),
            (Quota::ConcurrentRequests, self.concurrent_requests),
            (Quota::QueuedRequests, self.queued_requests),
            (Quota::Adapters, self.adapters),
            (Quota::AdapterBytes, self.adapter_bytes),
            (Quota::FileBytes, self.file_bytes),
            (Quota::TrainingJobs, self.training_jobs),
        ];
        let given = |(quota, limit): (Quota, Option<Limit>)| Some((quota, limit?.0));
        TenantChange {
            name,
            weight: self.weight,
            priority: self.priority,
            quotas: limits.into_iter().filter_map(given).collect(),
            capture: self.capture,
            keep_days: self.keep_days,
        }
    }
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let limit =
            text.parse().map_err(|_| format!("{text:?} is neither a number nor \"none\""))?;
        Ok(Self(Some(limit)))
    }
}

fn parse_byte_limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit(None)) } else { parse_bytes(text).map(Some).map(Limit) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        change: ChangeArgs,
    }

    fn change(flags: &[&str]) -> TenantChange {
        Harness::parse_from([&["set"], flags].concat()).change.into_change(None)
    }

    #[test]
    fn only_what_is_named_is_changed() {
        assert_eq!(change(&[]), TenantChange::default());
        let flags = [
            "--weight=3",
            "--priority=7",
            "--requests-per-minute=0",
            "--adapter-bytes=2GiB",
            "--queued-requests=none",
            "--capture=true",
            "--keep-days=7",
        ];
        let quotas = vec![
            (Quota::RequestsPerMinute, Some(0)),
            (Quota::QueuedRequests, None),
            (Quota::AdapterBytes, Some(2 << 30)),
        ];
        let expected = TenantChange {
            name: None,
            weight: NonZeroU32::new(3),
            priority: Some(7),
            quotas,
            capture: Some(true),
            keep_days: Some(7),
        };
        assert_eq!(change(&flags), expected);
    }

    #[test]
    fn every_quota_has_a_flag() {
        let flags = Quota::ALL.map(|quota| format!("--{}=1", quota.name().replace('_', "-")));
        let changed = change(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let quotas: Vec<_> = changed.quotas.into_iter().map(|(quota, _)| quota).collect();
        assert_eq!(quotas, Quota::ALL);
    }
}
