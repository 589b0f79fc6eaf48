//! The time, as rows have it.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970-01-01 UTC; 0 on a clock that is before that.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    whole_ms(since)
}

/// A duration in whole milliseconds, as many as a row can hold.
pub(crate) fn whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
